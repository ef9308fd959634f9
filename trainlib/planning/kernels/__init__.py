"""Pallas kernels of a compiled program: their time, blocks and products."""

from trainlib.planning.kernels.kernel import Kernel, kernels

__all__ = ["Kernel", "kernels"]
