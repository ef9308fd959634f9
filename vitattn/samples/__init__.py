"""Samples of what a model of images says of held-out records, for the page of a run."""
