"""Plain networks and their parts against textbook forms of flax.linen, by the TPU's compiler.

Both sides are compiled here, side by side, and every operation counts: those without an estimate of
the compiler, by their bytes. The ratios were taken with libtpu 0.0.42; another version is told
apart, for it may cost either side something else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.textbook import linen_peers
from tests.tpu_compiler import needs_figures
from trainlib.model.weights import abstract, observed
from trainlib.planning.ledger import ledger_of
from trainlib.sharding.constrain import lowered_for
from vitattn.layers.attention import Site
from vitattn.models.mnasnet import InvertedBlock, MnasNetConfig, Row
from vitattn.models.resnet.config import ResNetConfig
from vitattn.models.resnet.network import Bottleneck, Stem
from vitattn.models.wide_resnet import WideBlock, WideResNetConfig

pytestmark = needs_figures
SLACK = 1.005  # statistics of a batch are stored, which the peer's moves are fused with

RESNET = ResNetConfig(dtype="bfloat16", zero_init=False)
MNASNET, WIDE = MnasNetConfig(dtype="bfloat16"), WideResNetConfig(dtype="bfloat16")
PARTS = {  # ours, the peer, input, output
    "stem": (
        lambda: Stem(RESNET, 64),
        linen_peers.Stem(),
        (64, 224, 224, 3),
        (64, 56, 56, 64),
    ),
    "bottleneck": (
        lambda: Bottleneck(RESNET, 512, 128, Site(3, 1, 28, 28)),
        linen_peers.Bottleneck(128),
        (64, 28, 28, 512),
        (64, 28, 28, 512),
    ),
    "depthwise": (
        lambda: InvertedBlock(MNASNET, Row(2, 6, 3, 24, 2, 0), 24, Site(3, 1, 56, 56), 1),
        linen_peers.InvertedBlock(24, 6, 3, 1, 0.0),
        (64, 56, 56, 24),
        (64, 56, 56, 24),
    ),
    "wide": (
        lambda: WideBlock(WIDE, 160, 320, Site(3, 2, 16, 16)),
        linen_peers.WideBlock(320, 2),
        (128, 32, 32, 160),
        (128, 16, 16, 320),
    ),
}


def shape(dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


def ours(module, dims, out):
    """The ledger of a layer of ours, forward and backward, rows weighed as in training."""
    spec = abstract(module())
    plain = {name: shape(s.shape, s.dtype) for name, s in (spec.params | spec.model_state).items()}
    params = {name: plain[name] for name in spec.params}
    state = {name: plain[name] for name in spec.model_state}

    def both(params, state, x, g, weights):
        def forward(params, x):
            model = spec.bind(params, state)
            return model(x, train=True, weights=weights), observed(model)

        images = x.shape[-1] == 3  # which no gradient is asked for
        run = (lambda params: forward(params, x)) if images else forward
        with lowered_for("tpu"):
            y, pull, seen = jax.vjp(run, params, *(() if images else (x,)), has_aux=True)
            return y, seen, pull(g)

    return ledger_of(both, params, state, shape(dims), shape(out), shape(dims[:1], jnp.float32))


def textbook(module, dims, out):
    """The ledger of the same layer in flax.linen."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(lambda k, x: module.init(k, x, train=False), key, shape(dims))

    def both(variables, x, g):
        def forward(params, x):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            return module.apply(given, x, train=True, mutable=["batch_stats"])

        images = x.shape[-1] == 3
        run = (lambda params: forward(params, x)) if images else forward
        weights = variables["params"]
        y, pull, seen = jax.vjp(run, weights, *(() if images else (x,)), has_aux=True)
        return y, seen, pull(g)

    return ledger_of(both, variables, shape(dims), shape(out))


# (time, bytes) over those of the textbook.
@pytest.mark.parametrize(
    ("part", "most"),
    [
        pytest.param("stem", (0.66, 0.66), marks=pytest.mark.slow),
        pytest.param("depthwise", (SLACK, SLACK), marks=pytest.mark.slow),
        pytest.param("bottleneck", (SLACK, SLACK), marks=pytest.mark.slow),
        pytest.param("wide", (SLACK, SLACK), marks=pytest.mark.slow),
    ],
)
def test_a_part_is_no_slower_and_moves_no_more_than_the_textbook(part, most):
    module, peer, dims, out = PARTS[part]
    one, other = ours(module, dims, out), textbook(peer, dims, out)
    ratios = one.seconds / other.seconds, one.hbm_bytes / other.hbm_bytes
    assert ratios[0] <= most[0], (ratios, one.by("op")[:5])
    assert ratios[1] <= most[1], (ratios, one.by("op")[:5])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["v5e-1", "v6e-1"])
@pytest.mark.parametrize("network", ["resnet50", "wrn28_10", "mnasnet"])
def test_a_train_step_is_no_slower_and_moves_no_more_than_the_textbook(network, target):
    from benchmarks.textbook import networks
    from trainlib.chips import target as target_of

    one = networks.figures(networks.ours(network, target_of(target)))
    other = networks.figures(networks.textbook(network, target))
    ratios = {name: value / other[name] for name, value in one.items()}
    assert max(ratios.values()) <= 1, ratios
