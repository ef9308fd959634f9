"""Initialisers that layers share: `(key, shape, dtype) -> array`."""

from __future__ import annotations

import jax

ZEROS = jax.nn.initializers.zeros
ONES = jax.nn.initializers.ones

# Variance 1 / fan-in: projections of attention, which no ReLU follows.
LECUN_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# Variance 2 / fan-out, He et al. 2015 (arXiv 1502.01852): convolutions that a ReLU follows.
HE_NORMAL = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Variance 2 / fan-in: depthwise kernels [k, k, 1, C], whose fan-in k * k is also their fan-out, and
# gates.
HE_FAN_IN = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
