"""Dropless routing and chunked exchange over simulated devices, against `index` on one device with
room for every choice: outputs, losses and all gradients.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import moe.exchange.dropless
from moe.exchange.capacity import chunks
from moe.layers.sparse import SparseFFN
from moe.routing.config import RoutingConfig
from moe.routing.losses import auxiliary_loss
from moe.routing.placement import Placement
from tests.moe.meshes import close, run
from trainlib.errors import ConfigError
from trainlib.model import weights as nn

B, L, D, F, E = 8, 7, 6, 10, 8  # odd sizes
DROPLESS = RoutingConfig(E, dispatch="dropless", group_sequences=1, balance_loss_weight=1.0)


def result(config, shape=None, *, dtype="float32", router=1.0, bias="none"):
    """(loss, output), and gradients of weights and x; `router` scales the router's weights."""
    spec = nn.abstract(SparseFFN(D, F, config, init_scale=2.0, expert_bias=bias))
    rng = np.random.default_rng(0)
    params = {
        n: np.float32(rng.normal(size=s.shape) * s.shape[-2] ** -0.5)
        for n, s in sorted(spec.params.items())
    }
    params["router"] *= router
    x, dy = jnp.asarray(rng.normal(size=(2, B, L, D)), jnp.float32)
    mask = jnp.asarray(np.arange(L) < rng.integers(1, L + 1, (B, 1)))

    def loss(params, x):
        y, out = spec.bind(params, {})(x.astype(dtype), mask, jax.random.key(5), train=True)
        total = jnp.vdot(y.astype(jnp.float32), dy) + auxiliary_loss(out.losses, config)
        return total, y.astype(jnp.float32)

    step = jax.value_and_grad(loss, (0, 1), has_aux=True)
    return run(step, spec, params, x, shape=shape)


@functools.cache
def roomy(config, dtype="float32", router=1.0, bias="none"):
    """With capacity for all tokens in every expert, on one device."""
    index = dataclasses.replace(
        config, dispatch="index", capacity_factor=float(E), dropless_room=1.5, exchange_chunks=0
    )
    return result(index, dtype=dtype, router=router, bias=bias)


@pytest.fixture
def sent(request, monkeypatch):
    """Rounds as packets are sent or, as on a TPU, rows themselves; what sends them here is packets
    in both.
    """
    ragged = request.param == "ragged"
    monkeypatch.setattr(moe.exchange.dropless, "is_ragged", lambda: ragged)
    return request.param


def each(*often, rest=()):
    """Parameters whose last is the way to send; those of `rest` run nightly."""
    slow = [pytest.param(*values, marks=pytest.mark.slow) for values in rest]
    return [*often, *slow]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("top_k", "sent"),
    each(
        *((1, "ragged"), (3, "packets")),
        rest=[(1, "packets"), (2, "packets"), (2, "ragged"), (3, "ragged")],
    ),
    indirect=["sent"],
)
def test_any_number_of_choices_on_eight_devices(top_k, sent):
    """An expert a device, second choices sent at random, padding at the end of sequences."""
    config = dataclasses.replace(DROPLESS, top_k=top_k)
    close(result(config, (1, 8, 1)), roomy(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "room", "sent"),
    each(
        *(((1, 2, 2), 1.0, "ragged"), ((1, 4, 1), 1.0, "packets")),
        rest=[
            *(((1, 4, 2), room, way) for room in (1.0, 8.0) for way in ("packets", "ragged")),
            *(((2, 4, 1), room, way) for room in (1.0, 8.0) for way in ("packets", "ragged")),
        ],
    ),
    indirect=["sent"],
)
def test_all_tokens_to_the_same_experts(shape, room, sent):
    """A router of zeros prefers the first experts: one device gets everything and others nothing,
    in many rounds or in one, with a bias that empty rows would show.
    """
    config = dataclasses.replace(DROPLESS, dropless_room=room)
    got = result(config, shape, router=0.0, bias="additive")
    close(got, roomy(config, router=0.0, bias="additive"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["packets", "ragged"], indirect=True)
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 8), (1, 2, 4), (4, 2, 1)])
def test_any_placement(shape, sent):
    """Replicas, rows and columns; a strong router that loads experts unequally."""
    config = dataclasses.replace(DROPLESS, dropless_room=1.0, second_policy="all")
    close(result(config, shape, router=5.0), roomy(config, router=5.0))


@pytest.mark.thorough
@pytest.mark.parametrize("sent", ["packets"], indirect=True)
def test_bfloat16(sent):
    """Rows are rounded as on one device; sums over choices and columns are taken in float32."""
    got = result(DROPLESS, (1, 2, 2), dtype="bfloat16")
    close(got, roomy(DROPLESS, dtype="bfloat16"), tolerance=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shape", "options", "count"),
    [
        ((1, 2, 2), {"group_size": L}, 2),  # two groups of a device
        ((1, 4, 2), {"group_sequences": 1, "min_capacity": 3}, 3),  # three slots of one group
    ],
    ids=["groups", "slots"],
)
def test_chunks_change_nothing(shape, options, count):
    """Of a layer that drops most second choices, over rows and columns, with a bias."""
    whole = RoutingConfig(E, balance_loss_weight=1.0, exchange_chunks=1, **options)
    cut = dataclasses.replace(whole, exchange_chunks=count)
    got = result(cut, shape, bias="multiplicative")
    close(got, result(whole, shape, bias="multiplicative"), tolerance=1e-6)


ROWS = Placement(AbstractMesh((8,), ("data",)), ("data",), "data")


@pytest.mark.parametrize(
    ("asked", "buffer", "placement", "count"),
    [
        (0, (8, 4, 8, 64), ROWS, 1),  # not a TPU
        (3, (8, 6, 8, 64), ROWS, 3),
        (3, (8, 4, 9, 64), ROWS, 3),
        (3, (8, 4, 9, 64), Placement(), 1),  # one device exchanges nothing
    ],
)
def test_chunks_of_a_buffer(asked, buffer, placement, count):
    assert chunks(asked, buffer, 2, placement) == count


@pytest.mark.parametrize(
    ("buffer", "count"),
    [
        ((32, 8, 80, 1024), 4),
        ((64, 1, 40, 5120), 5),  # parts of 8 slots
        ((64, 1, 20, 5120), 1),  # none of whole tiles
        ((32, 8, 8, 64), 1),  # a quarter MiB
        ((32, 2, 20, 1024), 2),
    ],
)
def test_a_tpu_chooses(buffer, count, monkeypatch):
    monkeypatch.setattr("moe.exchange.capacity.platform", lambda: "tpu")
    assert chunks(0, buffer, 2, ROWS) == count
    columns = Placement(AbstractMesh((8, 8), ("data", "model")), ("data",), "data", "model")
    assert chunks(0, buffer, 2, columns) == 1


def test_chunks_that_do_not_divide_are_named():
    with pytest.raises(ConfigError, match=r"divides neither the 4 groups .* nor the 10 slots"):
        chunks(3, (8, 4, 10, 64), 2, ROWS)
    with pytest.raises(ConfigError, match="exchange_chunks=2"):
        RoutingConfig(8, exchange_chunks=2, partitioner="automatic")
    with pytest.raises(ConfigError, match="exchange_chunks=2"):
        RoutingConfig(8, exchange_chunks=2, dispatch="dropless")
