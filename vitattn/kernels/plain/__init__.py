"""Attention in operations of JAX alone, for every platform: what kernels are compared with."""
