"""Parameters and FLOPs of a model without its arrays, FLOPs as in `trainlib.model.flops`."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from trainlib.errors import CheckpointError
from trainlib.model.flops import flops, multiply_adds
from trainlib.model.weights import Abstract
from trainlib.sharding.constrain import active, platform

MOST_LAYERS = 2000


def params_by_part(abstract: Abstract) -> dict[str, int]:
    """Parameters of each top-level part, in the order of the model: stem, conv2_x, .., head; or
    backbone, pyramid, heads.
    """
    parts = Counter()
    for name, spec in abstract.params.items():
        parts[name.split(".", 1)[0]] += spec.size
    first, last = ("stem", "backbone"), ("head", "heads")
    order = [*first, *sorted(part for part in parts if part not in (*first, *last)), *last]
    return {part: parts[part] for part in order if part in parts}


def forward_flops(abstract: Abstract, image_size: tuple[int, int]) -> int:
    """FLOPs of one image [H, W, 3] through a model with running statistics.

    Blocks that are alike, of a model or of its backbone, are traced once in a process: 13 networks,
    the deepest of 50 blocks, have some 70 of them.
    """
    blocks: list[int] = []

    def forward(params, model_state, images):
        model = abstract.bind(params, model_state)
        if active() is None:
            stages = vars(getattr(model, "backbone", model))
            lists = {n: part for n, part in stages.items() if isinstance(part, nnx.List)}
            for name, part in lists.items():  # past Flax, which takes no functions for layers
                stages[name] = [functools.partial(_counted, block, blocks) for block in part]
        return model(images, train=False)

    def structs(specs):
        return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}

    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    around = flops(forward, structs(abstract.params), structs(abstract.model_state), images)
    return around + sum(blocks)


def _counted(
    block: nnx.Module, counts: list[int], x: jax.Array, *, train: bool, weights: None = None
) -> jax.Array:
    """Stands for a block while the network around it is traced: gives a result of the right shape,
    and adds the FLOPs of the block to `counts`.
    """
    key = (_likeness(block), x.shape, x.dtype, platform())
    if key not in _COUNTS:
        _COUNTS[key] = _traced(block, jax.ShapeDtypeStruct(x.shape, x.dtype))
    result, count = _COUNTS[key]
    counts.append(count)
    return jnp.zeros(result.shape, result.dtype)


_COUNTS: dict[Hashable, tuple[jax.ShapeDtypeStruct, int]] = {}


def _traced(block: Any, x: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, int]:
    """What a block gives for `x`, and its FLOPs."""
    graphdef, state = nnx.split(block)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)

    def forward(state, x):
        return nnx.merge(graphdef, state)(x, train=False)

    program, result = jax.make_jaxpr(forward, return_shape=True)(structs, x)
    return result, 2 * multiply_adds(program.jaxpr)


def _likeness(part: Any) -> Hashable:
    """What two layers share whose programs are the same: types, settings, and shapes of weights."""
    if isinstance(part, nnx.Variable):
        return part.shape, part.dtype
    if isinstance(part, nnx.Module):
        inner = {k: v for k, v in vars(part).items() if not k.startswith("_pytree")}
        return type(part), tuple((name, _likeness(inner[name])) for name in sorted(inner))
    return part


def check_size(config: ConfigDict) -> None:
    """Checks that the model of a configuration can be built in reasonable time, before it is.

    A configuration that comes with a file of weights can ask for any number of layers.

    Raises:
      CheckpointError: more layers than any model has.
    """
    for key in ("blocks", "depth"):
        value = config.model.get(key, 0)
        if sum(value if isinstance(value, tuple | list) else [value]) > MOST_LAYERS:
            raise CheckpointError(
                f"config.json: model.{key}={str(value)[:60]} is more than {MOST_LAYERS} layers."
            )
