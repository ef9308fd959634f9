"""FLOP counts of programs whose operations are counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from trainlib.model import weights as nn
from trainlib.sharding.constrain import lowered_for
from vitattn.layers.conv import convolve
from vitattn.models import build, configure
from vitattn.models.counts import flops, forward_flops, params_by_part


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_two_flops_a_multiply_add():
    assert flops(jnp.matmul, struct(3, 5), struct(5, 7)) == 2 * 3 * 5 * 7


def test_loops_count_as_often_as_they_run():
    def nested(x):
        def inner(carry, _):
            return carry @ x, None

        def outer(carry, _):
            return jax.lax.scan(inner, carry, None, length=5)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    assert flops(nested, struct(20, 20)) == 3 * 5 * 2 * 20**3


def test_loops_inside_a_checkpoint_and_a_jitted_function_are_found():
    @jax.jit
    def mapped(x):
        return jax.lax.map(jax.checkpoint(lambda row: jnp.outer(row, row) @ row), x)

    assert flops(mapped, struct(7, 16)) == 7 * 2 * 16 * 16


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (9, 3, 2), (20, 7, 2)])
def test_taps_on_padding_count(size, kernel, stride):
    outputs = -(-size // stride)
    counted = flops(
        lambda x, w: convolve(x, w, stride), struct(2, size, size, 3), struct(kernel, kernel, 3, 4)
    )
    assert counted == 2 * 2 * outputs**2 * kernel**2 * 3 * 4


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (9, 5, 2)])
def test_taps_of_depthwise_convolutions_count(size, kernel, stride):
    outputs = -(-size // stride)
    depthwise = flops(
        lambda x, w: convolve(x, w, stride), struct(2, size, size, 6), struct(kernel, kernel, 1, 6)
    )
    assert depthwise == 2 * 2 * outputs**2 * kernel**2 * 6


def xla_count(fn, *arguments):
    return jax.jit(fn).lower(*arguments).cost_analysis()["flops"]


def test_xla_counts_each_product_alike():
    product = struct(3, 5), struct(5, 7)
    assert xla_count(jnp.matmul, *product) == flops(jnp.matmul, *product)

    def valid(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=numbers)

    convolution = struct(2, 9, 9, 3), struct(3, 3, 3, 4)
    assert xla_count(valid, *convolution) == flops(valid, *convolution)


def test_xla_counts_a_whole_network_alike():
    # XLA adds normalisation and ReLU (0.6 %) and leaves out taps on padding (3.4 %).
    spec = nn.abstract(build({"name": "resnet"}))
    arrays = [
        {name: struct(*s.shape) for name, s in specs.items()}
        for specs in (spec.params, spec.model_state)
    ]
    with lowered_for("tpu"):  # on CPU some convolutions are made with fewer multiplications
        counted = xla_count(
            lambda p, s, x: spec.bind(p, s)(x, train=False), *arrays, struct(1, 224, 224, 3)
        )
    assert counted == pytest.approx(forward_flops(spec, (224, 224)), rel=0.03)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "config",
    [
        {"name": "resnet", "depth": 34, "attention": {"kind": "augmented"}, "image_size": 64},
        {"name": "wide_resnet", "depth": 16, "widening": 1, "gate": "se"},
        {"name": "mnasnet", "image_size": 64},
    ],
    ids=lambda config: config["name"],
)
def test_blocks_counted_once_are_those_of_the_whole_program(config):
    spec = nn.abstract(build(config))
    arrays = [
        {name: struct(*s.shape) for name, s in specs.items()}
        for specs in (spec.params, spec.model_state)
    ]
    size = configure(config).size
    whole = flops(lambda p, s, x: spec.bind(p, s)(x, train=False), *arrays, struct(1, *size, 3))
    assert forward_flops(spec, size) == whole


def test_parts_are_in_the_order_of_the_model_and_add_up():
    spec = nn.abstract(build({"name": "resnet", "depth": 26}))
    parts = params_by_part(spec)
    assert list(parts) == ["stem", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "head"]
    assert sum(parts.values()) == spec.param_count
