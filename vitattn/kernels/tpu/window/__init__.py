"""Attention in a window around each pixel, as Pallas kernels for the vector unit of a TPU."""
