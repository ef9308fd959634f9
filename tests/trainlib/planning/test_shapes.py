"""Arguments of functions as one types them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from trainlib.errors import ConfigError
from trainlib.planning.shapes import bound, read


def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("text", "positional", "named"),
    [
        ("", [], {}),
        ("bf16[8,128]", [array("bfloat16", 8, 128)], {}),
        ("f32[], s32[3],", [array("float32"), array("int32", 3)], {}),
        ("float32[2],bool[4]", [array("float32", 2), array("bool", 4)], {}),
        ("c64[2],s4[8]", [array("complex64", 2), array("int4", 8)], {}),
        ("f8e4m3b11fnuz[2]", [array("float8_e4m3b11fnuz", 2)], {}),
        ("(u8[2],f32[])", [(array("uint8", 2), array("float32"))], {}),
        ("{w:f32[2],b:{c:pred[]}}", [{"w": array("float32", 2), "b": {"c": array("bool")}}], {}),
        ("f32[2],scale=0.5,train=true", [array("float32", 2)], {"scale": 0.5, "train": True}),
        ("8,-1e-3,none", [8, -1e-3, None], {}),
        ("()", [()], {}),
    ],
)
def test_arguments(text, positional, named):
    assert read(text) == (positional, named)


def test_a_key_of_random_numbers():
    (key,), _ = read("key[]")
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bf17[3]", "Did you mean 'bf16'"),
        (
            "f32[4],f64[4]",
            r"'f64\[4\]' \(character 8\) would be float32",
        ),
        ("c128[4]", "would be complex64"),
        (
            "{a:f32[2],b:f32[2],a:f32[3]}",
            r"'a:f32\[3\]\}' \(character 20\) is a key for the second",
        ),
        ("u64[4]", "JAX_ENABLE_X64=1"),
        ("bf16[4,", "ends"),
        ("bf16[4", "ends"),
        ("f32[-1]", "no size"),
        ("f32[2] f32[2]", "stands where ','"),
        ("x=f32[2],f32[2]", "has no name"),
        ("x=f32[2],x=f32[2]", "no new name"),
        ("f32[2]!", "is not expected"),
        ("wide", "neither an array nor a value"),
        ("(" * 11_000, "more than 10,000"),
        ("(" * 9_000, "nested"),
    ],
)
def test_mistakes_are_told_where_they_are(text, said):
    with pytest.raises(ConfigError, match=said):
        read(text)


def test_a_jitted_function_of_arrays_stays_what_it_is():
    function = jax.jit(lambda x, y: x + y)
    assert bound(function, *read("f32[2],f32[2]"))[0] is function


def test_values_of_python_are_bound():
    def function(x, size, *, scale, weights):
        return jnp.ones(size) * scale + x @ weights["w"]

    called, shapes = bound(function, *read("f32[2],3,weights={w:f32[2,3]},scale=2"))
    assert shapes == [array("float32", 2), array("float32", 2, 3)]
    assert jax.eval_shape(called, *shapes).shape == (3,)


def test_types_of_64_bits_are_those_of_jax_with_64_bits():
    with jax.enable_x64(True):
        (found,), _ = read("s64[2]")
    assert found.dtype == "int64"
