"""The router of this package."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.conformance.cases import Case
from moe.conformance.reference import Answer
from moe.conformance.settings import EXTENSIONS, Settings
from moe.conformance.verdict import CannotExpress
from moe.routing.config import RoutingConfig
from moe.routing.route import route

_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Ours:
    """`moe.route` under `jax.jit`, with gradients."""

    name = "moe"
    declares = ()
    understands = EXTENSIONS

    def route(self, case: Case) -> Answer:
        config = _config(case.settings)
        if case.layers > 1:
            layers = [self._one(case, logits, config) for logits in case.logits]
            balance, z = (sum(getattr(x, n) for x in layers) for n in ("balance", "z"))
            return Answer(balance=balance, z=z)
        return self._one(case, case.logits, config)

    def _one(self, case: Case, logits: np.ndarray, config: RoutingConfig) -> Answer:
        shape = logits.shape
        groups = len(logits) // case.settings.group_sequences

        def grouped(x: np.ndarray) -> np.ndarray:
            return x.reshape(groups, case.group_size, *x.shape[2:])

        arrays = [
            grouped(x) for x in (logits, case.mask, case.draws, case.cotangent.astype(np.float32))
        ]
        run = _compiled(config, case.mask.shape[1])
        bias = case.bias if config.balance_bias else None
        combine, position, balance, z, gradients = jax.device_get(run(*arrays, bias))
        return Answer(
            combine.reshape(shape),
            position.reshape(shape),
            float(balance),
            float(z),
            gradients={name: gradient.reshape(shape) for name, gradient in gradients.items()},
        )


def _config(settings: Settings) -> RoutingConfig:
    known = {field.name for field in dataclasses.fields(RoutingConfig)}
    values = settings.values()
    values.pop("group_sequences", None)
    for name in values:
        if name not in known:
            raise CannotExpress(f"no {name}")
    return RoutingConfig(**{"min_capacity": 1, "second_policy": "all", **values})


@functools.cache
def _compiled(config: RoutingConfig, length: int) -> Any:
    """(combine, position, balance, z, gradients) of logits, mask, draws and cotangent, by groups of
    sequences of `length`, and of the bias or None.
    """

    def run(logits: jax.Array, mask: Any, draws: Any, cotangent: Any, bias: Any) -> Any:
        def figures(logits: jax.Array) -> Any:
            routed = route(
                logits, config, train=True, mask=mask, draws=draws, length=length, bias=bias
            )
            combine = jnp.sum(routed.combine_weights(), axis=-1)
            parts = {
                n: jnp.sum(t) / jnp.maximum(jnp.sum(c), 1) for n, (t, c) in routed.losses.items()
            }
            return (combine, parts["balance"], parts["z"]), routed

        (combine, balance, z), back, routed = jax.vjp(figures, logits, has_aux=True)
        zeros = jnp.zeros_like(combine), 0.0, 0.0
        gradients = {
            "combine": back((cotangent, *zeros[1:]))[0],
            "balance": back((zeros[0], 1.0, 0.0))[0],
            "z": back((zeros[0], 0.0, 1.0))[0],
        }
        slots = jnp.arange(routed.capacity)
        taken = routed.dispatch_mask()
        position = jnp.where(taken.any(-1), jnp.sum(taken * slots, axis=-1), -1)
        return combine, position, balance, z, gradients

    return jax.jit(run, compiler_options=_QUICK)
