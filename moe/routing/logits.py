"""The product of a router: G groups, S tokens of a group, D model width, E experts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from trainlib.sharding.constrain import platform

# A TPU would otherwise round float32 operands to bfloat16.
_EXACT = lax.Precision.HIGHEST


def router_logits(x: jax.Array, router: jax.Array) -> jax.Array:
    """x [G, S, D] and router [D, E], of one type -> [G, S, E] in that type."""
    return _turned(x, router) if platform() == "cpu" else _plain(x, router)


def _plain(x: jax.Array, router: jax.Array) -> jax.Array:
    return jnp.einsum("gsd,de->gse", x, router, precision=_EXACT)


# The CPU compiler makes a product of few columns, as the gradient of the router is, 4 to 10 times
# slower than one of few rows; it would turn the one into the other if it could see through.
_turned = jax.custom_vjp(_plain)


def _forward(x, router):
    return _plain(x, router), (x, router)


def _backward(saved, dlogits):
    x, router = saved
    dx = jnp.einsum("gse,de->gsd", dlogits, router, precision=_EXACT)
    turned = jnp.einsum("gse,gsd->ed", dlogits, x, precision=_EXACT)
    return dx, lax.optimization_barrier(turned).T


_turned.defvjp(_forward, _backward)
