"""`t5_attention` by its kernel, interpreted, against the plain form: values, every gradient, draws
of dropout; alone and on meshes of eight devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from moe.kernels.buckets import BUCKETS
from moe.layers.attention import kernel_for, t5_attention
from moe.layers.attention_bias import AttentionBias
from trainlib.errors import ConfigError, InputError
from trainlib.sharding.constrain import lowered_for
from trainlib.sharding.kernels import use_kernels

BATCH, HEADS, WIDTH = 4, 4, 64


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    queries: int = 10
    keys: int = 10
    bias: bool = True
    segments: bool = True
    dtype: Any = jnp.float32
    tolerance: float = 2e-6
    options: tuple = ()


CASES = [
    Case("encoder"),
    Case("decoder", options=(("causal", True), ("bidirectional", False))),
    Case("cross", 6, 10, bias=False),
    Case("without segments", segments=False, options=(("max_distance", 20),)),
    Case("dropped keys", options=(("dropout_rate", 0.3),)),
    Case("dropped pairs", 6, 10, options=(("dropout_rate", 0.3), ("dropout_of", "pairs"))),
    Case("bfloat16", dtype=jnp.bfloat16, tolerance=2e-2, options=(("dropout_rate", 0.3),)),
]
QUICK = ("decoder",)  # each takes seconds to compile, and the kernels have tests of their own
EACH = [
    pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
    for case in CASES
]


def operands(case: Case) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    made = {
        name: jnp.asarray(rng.normal(size=(BATCH, length, HEADS, WIDTH)) * 0.3, case.dtype)
        for name, length in (("query", case.queries), ("key", case.keys), ("value", case.keys))
    }
    if case.bias:
        made["bias_table"] = jnp.asarray(rng.normal(size=(BUCKETS, HEADS)), jnp.float32)
    return made


def segments(case: Case) -> dict[str, jax.Array]:
    """Two segments of every sequence and padding behind them; the last one is padding alone."""
    if not case.segments:
        return {}
    numbers = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0, 0]] * (BATCH - 1) + [[0] * 10], np.int32)
    return {
        "query_segments": jnp.asarray(numbers[:, :: 10 // case.queries][:, : case.queries]),
        "key_segments": jnp.asarray(numbers[:, : case.keys]),
    }


def value_and_gradients(case: Case, kernels: str, quick: Any) -> tuple:
    """Output and logsumexp of queries that see a key, and all gradients of a function of them."""
    seg = segments(case)
    real = seg["query_segments"] > 0 if seg else jnp.ones((BATCH, case.queries), bool)
    weights = jax.random.normal(jax.random.key(2), (BATCH, case.queries, HEADS, WIDTH))
    options = dict(case.options)
    if "dropout_rate" in options:
        options["dropout_key"] = jax.random.key(1)

    @quick
    def run(operands):
        def loss(operands):
            out, lse = t5_attention(**operands, **seg, **options)
            out = jnp.where(real[..., None, None], out, 0).astype(jnp.float32)
            lse = jnp.where(real[:, None], lse, 0)
            return jnp.sum(out * weights) + 0.1 * jnp.sum(jnp.square(lse)), (out, lse)

        return jax.value_and_grad(loss, has_aux=True)(operands)

    with use_kernels(kernels):
        (_, outputs), gradients = run(operands(case))
    return outputs, gradients


def compare(one, other, tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(
            a, b, atol=tolerance * max(1.0, np.abs(b).max()), rtol=0, err_msg=str(path)
        )


@pytest.mark.thorough
@pytest.mark.parametrize("case", EACH)
def test_the_kernel_is_the_plain_form(case, quick):
    plain = value_and_gradients(case, "plain", quick)
    compare(value_and_gradients(case, "interpret", quick), plain, case.tolerance)


def mesh_of(kind=AxisType.Auto, **sizes: int):
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (kind,) * len(sizes), devices=devices)


SIZES = ({"data": 4, "model": 2}, {"replica": 2, "data": 2, "model": 2}, {"data": 4})
ON_MESHES = [
    pytest.param(case, sizes, id=f"{case.name} {sizes}", marks=[] if quick else pytest.mark.slow)
    for case, quickly in ((CASES[1], None), (CASES[4], 0), (CASES[5], 1))
    for quick, sizes in ((number == quickly, sizes) for number, sizes in enumerate(SIZES))
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "sizes"), ON_MESHES)
def test_a_mesh_changes_nothing(case, sizes, quick):
    """The same sequences and keys are dropped on every mesh."""
    alone = value_and_gradients(case, "plain", quick)
    with jax.set_mesh(mesh_of(**sizes)):
        compare(value_and_gradients(case, "interpret", quick), alone, case.tolerance)


@pytest.mark.slow
def test_axes_of_explicit_types_are_those_of_a_user(quick):
    alone = value_and_gradients(CASES[4], "plain", quick)
    with jax.set_mesh(mesh_of(AxisType.Explicit, data=4)):
        compare(value_and_gradients(CASES[4], "interpret", quick), alone, 2e-6)


def test_a_mesh_that_cannot_split_the_heads_is_refused_by_name(quick):
    with (
        jax.set_mesh(mesh_of(data=1, model=8)),
        pytest.raises(ConfigError, match="4 along 'head'"),
    ):
        value_and_gradients(CASES[0], "interpret", quick)


def primitives(jaxpr) -> set[str]:
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in jax.core.jaxprs_in_params(equation.params):
            names |= primitives(inner)
    return names


@pytest.mark.parametrize(
    ("queries", "keys", "kernels", "options", "taken"),
    [
        (1024, 1024, "auto", {}, True),
        (1024, 1024, "plain", {}, False),
        (16, 1024, "auto", {}, True),
        (8, 1024, "auto", {}, False),  # few queries
        (114, 114, "auto", {}, False),  # short altogether
        (1024, 1024, "auto", {"causal": True, "first_query": 1}, False),
    ],
)
def test_when_a_tpu_gets_the_kernel(queries, keys, kernels, options, taken):
    shapes = [jax.ShapeDtypeStruct((2, n, 2, 64), jnp.bfloat16) for n in (queries, keys, keys)]
    with lowered_for("tpu"), use_kernels(kernels):
        jaxpr = jax.make_jaxpr(lambda *qkv: t5_attention(*qkv, **options))(*shapes)
    assert ("pallas_call" in primitives(jaxpr.jaxpr)) == taken


def test_what_is_asked_for_wrongly_is_refused():
    given = operands(CASES[0])
    with pytest.raises(InputError, match="are needed, or neither"):
        t5_attention(**given, query_segments=jnp.ones((BATCH, 10), jnp.int32))
    with pytest.raises(InputError, match="keys or pairs"):
        t5_attention(**given, dropout_of="heads")
    with pytest.raises(InputError, match="a share"):
        t5_attention(**given, dropout_rate=1.0, dropout_key=jax.random.key(0))


@pytest.mark.parametrize("kernels", ["plain", "interpret"])
@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("query", lambda x: x[0]),
        ("query", lambda x: x.astype(jnp.int32)),
        ("key", lambda x: x[:1]),
        ("key", lambda x: x[:, :, :1]),
        ("key", lambda x: x[:, :0]),
        ("value", lambda x: x[:, :3]),
        ("value", lambda x: x[..., :5]),
        ("bias_table", lambda x: x[:, :1]),
        ("key_segments", lambda x: x[:1]),
    ],
)
def test_shapes_that_do_not_go_together_are_refused_in_either_form(name, of, kernels):
    given = operands(CASES[0]) | segments(CASES[0])
    given[name] = of(given[name])
    with use_kernels(kernels), pytest.raises(InputError, match=f"{name} of t5_attention takes"):
        t5_attention(**given)


@pytest.mark.parametrize(
    "bias",
    [
        AttentionBias(jnp.ones((BUCKETS, 1))),
        AttentionBias.of(None, jnp.ones((1, 10), jnp.int32)),
    ],
    ids=["one head for all", "one row of segments for all"],
)
def test_what_is_shared_by_all_takes_the_plain_form(bias):
    shape = jax.ShapeDtypeStruct((BATCH, 10, HEADS, WIDTH), jnp.float32)
    with use_kernels("interpret"):
        assert kernel_for(shape, shape, AttentionBias())
        assert kernel_for(shape, shape, bias) is None
