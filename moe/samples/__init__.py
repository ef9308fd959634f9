"""Samples of what a model of texts answers on held-out records, for the page of a run."""
