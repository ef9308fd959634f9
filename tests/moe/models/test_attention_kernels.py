"""Models whose attention is by the kernels, interpreted, against the plain form: loss and every
gradient, on one device and on eight; and what a program for a TPU holds at long lengths.
"""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import config as config_lib
from moe.models.stack import Stack
from moe.objective import Objective, loss_function
from trainlib.model import weights as nn
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs

# All that attention can be asked for: packed rows come from `text`.
FULL = {"dropout": 0.2, "remat": "minimal", "decoder_remat": "dots", "head_dim": 128}
OBJECTIVE = Objective(attention_z_loss=1e-2)


def trained(made, config, batch, quick, kernels, mesh=None, weights="replicated", only=""):
    """Loss and gradients of the weights whose name holds `only`, with dropout."""
    abstract, params = made(config)
    loss_of = loss_function(abstract, config.routing, OBJECTIVE)
    moved = {name: value for name, value in params.items() if only in name}

    def run(moved, params, batch):
        def loss(moved):
            return loss_of({**params, **moved}, {}, batch, jax.random.key(3))[0]

        return jax.value_and_grad(loss)(moved)

    with use_kernels(kernels):
        if mesh is None:
            return quick(run)(moved, params, batch)
        settings = config_lib.default_config("st_moe_tiny")
        settings.sharding = weights
        rules = config_lib.sharding_rules(settings)

        def on_mesh(*args):
            with activate(mesh, rules):
                return run(*args)

        places = resolve_specs(abstract.params, rules, mesh)
        shardings = {name: places[name] for name in moved}, places, batch_sharding(rules, mesh)
        args = jax.device_put((moved, params, batch), shardings)
        return quick(on_mesh, in_shardings=shardings)(*args)


def same(actual, wanted, tolerance=1e-4):
    np.testing.assert_allclose(actual[0], wanted[0], rtol=tolerance)
    assert actual[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        gradient = np.asarray(gradient, np.float64)
        scale = np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(
            actual[1][name], gradient, atol=tolerance * scale, rtol=0, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape", "weights"),
    [
        ("decoder", (1, 4, 2), "fsdp"),
        pytest.param("encoder_decoder", (1, 4, 2), "fsdp", marks=pytest.mark.slow),
        pytest.param("encoder_decoder", (2, 2, 2), "replicated", marks=pytest.mark.slow),
        pytest.param("encoder_decoder", (1, 8, 1), "fsdp", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_eight_devices_with_kernels_are_one_without(small, made, text, quick, kind, shape, weights):
    config = small(0, kind=kind, encoder_blocks=2, **(FULL | {"remat": "none"}))
    batch = text(8)
    alone = trained(made, config, batch, quick, "plain")
    split = trained(made, config, batch, quick, "interpret", make_mesh(*shape), weights)
    same(split, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experts", "change", "only"),
    [
        (4, {}, ""),
        (4, {"scan_layers": False, "remat": "none", "decoder_remat": "full"}, ""),
        (0, {"kind": "encoder", "encoder_blocks": 3}, ""),
        (0, {"kind": "decoder", "decoder_blocks": 3}, ""),
        (4, {}, "ffn"),  # the weights of attention do not move
        (4, {"head_dim": 64, "num_heads": 3}, ""),
    ],
    ids=str,
)
def test_kernels_change_nothing(small, made, text, quick, experts, change, only):
    config = small(experts, **(FULL | {"encoder_blocks": 2} | change))
    batch = text(2)
    if config.kind == "encoder":
        batch |= {name.replace("decoder", "encoder"): v for name, v in text(2, 12, 12).items()}
        batch |= {n: batch[n.replace("decoder", "encoder")] for n in batch if "decoder" in n}
    found = [
        trained(made, config, batch, quick, form, only=only) for form in ("interpret", "plain")
    ]
    same(*found)


@pytest.mark.slow
def test_bfloat16_comes_as_close_as_it_rounds(small, made, text, quick):
    """The plain form in float32 is what both forms in bfloat16 are compared with."""
    config = small(0, kind="decoder", **(FULL | {"remat": "none"}))
    batch = text(2)
    wide = trained(made, config, batch, quick, "plain")[1]
    config = dataclasses.replace(config, dtype="bfloat16")
    plain, kernels = (
        trained(made, config, batch, quick, form)[1] for form in ("plain", "interpret")
    )
    for name, gradient in wide.items():
        scale = np.abs(gradient).max() + 1e-6
        errors = [np.abs(form[name] - gradient).max() / scale for form in (kernels, plain)]
        assert errors[0] <= 1.5 * errors[1] + 0.02, name


LONG, FEWER = 8192, 1024


def program(small, kernels, encoder=LONG, decoder=FEWER):
    """The traced gradient of a model of one block a stack, for a TPU, as text."""
    size = {"d_model": 128, "num_heads": 2, "head_dim": 64, "dtype": "bfloat16"}
    config = small(0, encoder_blocks=1, decoder_blocks=1, sparse_period=1, **(FULL | size))
    config = dataclasses.replace(config, remat="full")
    stacks = {name: nn.abstract(Stack(config, name)) for name in ("encoder", "decoder")}
    weights = {
        stack: {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in spec.params.items()}
        for stack, spec in stacks.items()
    }
    lengths = {"encoder": encoder, "decoder": decoder}

    def loss(weights, x, segments):
        key, source, z = jax.random.key(0), None, jnp.zeros(())
        y = x["encoder"]
        for name, spec in stacks.items():
            stack = spec.bind(weights[name], {})
            before = () if source is None else (source, segments["encoder"])
            y, aux = stack(x[name], segments[name], *before, key=key, train=True)
            z += sum(jnp.sum(leaf) for leaf in jax.tree.leaves(aux))
            source = y
        return jnp.sum(y.astype(jnp.float32)) + z

    x = {n: jax.ShapeDtypeStruct((2, length, 128), jnp.bfloat16) for n, length in lengths.items()}
    segments = {n: jax.ShapeDtypeStruct((2, length), jnp.int32) for n, length in lengths.items()}
    with lowered_for("tpu"), use_kernels(kernels):
        return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(weights, x, segments))


def pairs(text: str, encoder=LONG, decoder=FEWER) -> set[str]:
    """Arrays of all queries by all keys."""
    shapes = [(q, k) for q in (encoder, decoder) for k in (encoder, decoder)]
    wanted = "|".join(rf"{q},{k}" for q, k in shapes)
    return set(re.findall(rf"\w+\[(?:\d+,)*(?:{wanted})\]", text))


def test_no_program_for_a_tpu_holds_all_pairs_of_tokens(small):
    """Encoder, decoder and cross-attention, forward and backward, with recomputation, dropout and
    the z-loss, at 8,192 tokens.
    """
    assert not pairs(program(small, "auto"))


def test_without_kernels_a_program_holds_them(small):
    """So that the test before this one would see them."""
    text = program(small, "plain", 512, 256)
    assert {"f32[2,2,512,512]", "f32[2,2,256,512]"} <= pairs(text, 512, 256)
    assert "pallas_call" not in text


def test_short_decoders_beside_long_encoders_take_kernels_where_they_pay(small):
    text = program(small, "auto", 512, 16)
    assert not pairs(text, 512, 512)
    assert "f32[2,2,16,512]" not in text
    assert "f32[2,2,16,16]" in text
