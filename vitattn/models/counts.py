"""Parameters and FLOPs of a model without its arrays, FLOPs as in `trainlib.model.flops`."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from trainlib.errors import CheckpointError
from trainlib.model.flops import flops
from trainlib.model.weights import Abstract

MOST_LAYERS = 2000


def params_by_part(abstract: Abstract) -> dict[str, int]:
    """Parameters of each top-level part, in the order of the model: stem, conv2_x, .., head."""
    parts = Counter()
    for name, spec in abstract.params.items():
        parts[name.split(".", 1)[0]] += spec.size
    order = ["stem", *sorted(part for part in parts if part not in ("stem", "head")), "head"]
    return {part: parts[part] for part in order if part in parts}


def forward_flops(abstract: Abstract, image_size: tuple[int, int]) -> int:
    """FLOPs of classifying one image [H, W, 3] with running statistics."""

    def forward(params, model_state, images):
        return abstract.bind(params, model_state)(images, train=False)

    def structs(specs):
        return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}

    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    return flops(forward, structs(abstract.params), structs(abstract.model_state), images)


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
