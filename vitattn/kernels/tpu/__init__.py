"""Kernels of attention for TPUs, taken where a program is traced for one; see docs/kernels.md."""
