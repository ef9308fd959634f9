"""Measures a list of programs on the accelerator that is there, beside their predictions."""
