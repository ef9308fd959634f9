"""Objectives: how text becomes pairs of inputs and targets, one denoiser a file."""
