"""What published figures are compared with: FLOPs as their authors count them, and the fit."""

from __future__ import annotations

import jax
import pytest

from benchmarks import predictions
from benchmarks.world.decoders import Decoder, arguments, gradients
from trainlib.sharding.mesh import make_mesh

VOCABULARY = 32_000
# Logged by the runs: seconds of a step, TFLOP/s and tokens of a device (tpu-recipes, trillium).
LOGGED = {
    "mt_llama_v6e": (9.052, 402.274e12, 905.021),
    "mt_mixtral_v6e": (8.409, 323.173e12, 3896.752),
}


@pytest.mark.parametrize("name", sorted(LOGGED))
def test_flops_are_counted_as_the_published_runs_count_them(name):
    one = next(one for one in predictions.PUBLISHED if one.name == name)
    seconds, rate, tokens = LOGGED[name]
    decoder = Decoder(**one.decoder)
    assert decoder.tokens == round(seconds * tokens)
    output = 6 * VOCABULARY * decoder.d_model * decoder.tokens  # no layer, so not ours
    assert decoder.model_flops + output == pytest.approx(seconds * rate, rel=1e-3)
    assert one.mfu == pytest.approx(rate / 918e12, abs=1e-3)


def test_a_factor_is_fitted_to_the_others_alone():
    # The first is twice too high, the others are right: only the others are spoilt by the first.
    fitted = predictions.leave_one_out([0.3, 0.5, 0.4], [0.6, 0.5, 0.4])
    assert fitted == pytest.approx([0.6, 0.5 / 2**0.5, 0.4 / 2**0.5])


@pytest.mark.parametrize(
    "extra",
    [{}, {"experts": 4, "capacity_factor": 1.25}, {"experts": 4}],
    ids=["dense", "dropping", "dropless"],
)
def test_layers_give_gradients_of_every_weight(extra):
    decoder = Decoder(
        **{"layers": 2, "d_model": 32, "d_ff": 64, "heads": 4, "key_heads": 2},
        **{"batch": 1, "length": 16, "head_dim": 8, "saved": ("query_proj",)},
        **extra,
    )
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    traced = gradients(decoder, mesh).trace(*arguments(decoder, mesh))
    weights, x = traced.out_info
    assert {name: leaf.shape for name, leaf in weights.items()} == {
        name: leaf.shape for name, leaf in arguments(decoder, mesh)[0].items()
    }
    assert x.shape == (1, 16, 32)
