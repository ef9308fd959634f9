"""RetinaNet: what is computed on which map, by plain loops; gradients, devices, frozen parts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainlib.errors import InputError
from trainlib.model import statistics
from trainlib.model import weights as nn
from trainlib.model.flops import flops
from trainlib.sharding.constrain import activate
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve_specs
from vitattn.config import RULES, WHOLE_AXES
from vitattn.models import build, configure
from vitattn.models.counts import forward_flops
from vitattn.models.named import section
from vitattn.models.retinanet.config import frozen_stages

RULES_OF = {
    kind: {"batch": ("replica", "data"), **dict.fromkeys(WHOLE_AXES)} | rules
    for kind, rules in RULES.items()
}

TINY = {
    "name": "retinanet",
    "depth": 18,
    "blocks": (1, 1, 1, 1),
    "width": 0.125,
    "features": 16,
    "head_layers": 1,
    "num_classes": 3,
    "image_size": (128, 256),
}


def filled(specs, seed=0):
    """Arrays for specs, made without a compilation for each shape."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, spec in specs.items():
        values = rng.normal(size=spec.shape) / max(1, np.prod(spec.shape[:-1])) ** 0.5
        if name.endswith(("scale", "var")):
            values = np.ones(spec.shape)
        arrays[name] = jnp.asarray(values, jnp.float32)
    return arrays


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def ready(**config):
    spec = nn.abstract(build(TINY | config))
    return spec, filled(spec.params), filled(spec.model_state, 1)


def structs(specs):
    return {name: jax.ShapeDtypeStruct(s.shape, s.dtype) for name, s in specs.items()}


def shapes(config, batch=2):
    """Shapes of what a network gives for images of its size; nothing is computed."""
    spec, size = nn.abstract(build(config)), configure(config).size
    arrays = structs(spec.params), structs(spec.model_state)
    x = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    return jax.eval_shape(lambda p, s, x: spec.bind(p, s)(x, train=True), *arrays, x)


SMALL = {"max_level": 6, "image_size": (64, 128), "zero_init": False}

VARIANTS = [
    {"dtype": "bfloat16", "gate": "se", "aspect_ratios": (1.0,), "num_scales": 1},
    {"image_size": 128, "attention": {"kind": "augmented", "num_heads": 1, "upsilon": 0.5}},
    {"attention": {"kind": "local", "num_heads": 2}, "stem": "attention", "depth": 26},
    {"head_attention": "towers_and_pyramid", "head_norm": "group", "p6_from": "c5"},
    {"min_level": 2, "max_level": 5, "image_size": (32, 96), "head_layers": 0, "num_scales": 3},
    {"min_level": 5, "max_level": 9, "image_size": 512, "norm": "frozen", "head_norm": "none"},
]


@pytest.mark.sample(4)
@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_every_level_has_its_map(config):
    resolved = configure(TINY | config)
    outputs = shapes(TINY | config)
    assert len(outputs) == len(resolved.levels)
    per_place = len(resolved.aspect_ratios) * resolved.num_scales
    assert per_place == resolved.num_anchors
    height, width = resolved.size
    for level, output in zip(resolved.levels, outputs, strict=True):
        at = (2, height // 2**level, width // 2**level)
        assert at[1:] == resolved.map_sizes[level - resolved.min_level]
        assert output.classes.shape == (*at, 3 * per_place)
        assert output.boxes.shape == (*at, 4 * per_place)
        assert output.classes.dtype == output.boxes.dtype == jnp.float32


def test_blocks_counted_once_are_those_of_the_whole_program():
    config = TINY | {"head_attention": "towers", "depth": 26}
    spec, size = nn.abstract(build(config)), (128, 256)
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    arrays = structs(spec.params), structs(spec.model_state)
    whole = flops(lambda p, s, x: spec.bind(p, s)(x, train=False), *arrays, x)
    assert forward_flops(spec, size) == whole


def test_images_of_another_size_are_taken_and_of_a_wrong_one_refused():
    spec, params, state = ready()

    def network(*shape):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(lambda x: spec.bind(params, state)(x), x)

    assert [out.boxes.shape[1:3] for out in network(1, 256, 128, 3)][-1] == (2, 1)
    with pytest.raises(InputError, match="multiples of 128"):
        network(1, 128, 200, 3)


@pytest.mark.slow
@pytest.mark.parametrize("config", VARIANTS[2:4], ids=str)
def test_arrays_at_once_and_arrays_made_later_are_the_same_module(config):
    """Same names, shapes and types; only the counts of updates come in addition."""
    declared = nn.abstract(build(TINY | config))
    model = nnx.eval_shape(lambda: build(TINY | config, rngs=nnx.Rngs(0)))
    params = nn.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    stats = {n: v for n, v in nn.stats(model).items() if not n.endswith(".count")}
    for arrays, specs in ((params, declared.params), (stats, declared.model_state)):
        assert {n: (v.shape, v.dtype) for n, v in arrays.items()} == {
            n: (spec.shape, spec.dtype) for n, spec in specs.items()
        }


def convolved(x, kernel, bias, stride=1):
    """A convolution [H, W, C] -> [H', W', F] in loops over its taps, padded as an odd one is."""
    size = kernel.shape[0]
    side = size // 2
    x = np.pad(x, ((side, side), (side, side), (0, 0)))
    rows, columns = ((n - 2 * side - 1) // stride + 1 for n in x.shape[:2])
    y = np.zeros((rows, columns, kernel.shape[-1])) + bias
    for a in range(size):
        for b in range(size):
            tap = x[a::stride, b::stride][:rows, :columns]
            y += tap @ kernel[a, b]
    return y


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.slow
@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_pyramid_and_heads_against_plain_loops(p6_from):
    """Without normalisations, on one image; the predictors give each anchor its outputs in turn."""
    config = {"p6_from": p6_from, "pyramid_norm": "none", "head_norm": "none", "num_scales": 1}
    spec, params, state = ready(**config)
    x = images(1, 128, 128, 3)

    @jax.jit
    def network(x):
        model = spec.bind(params, state)
        return model.backbone.features(x), model(x)

    maps, outputs = network(x)
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    c3, c4, c5 = (np.asarray(m[0], np.float64) for m in maps[1:])

    def layer(name, x, stride=1):
        return convolved(x, w[f"{name}.kernel"], w[f"{name}.bias"], stride)

    merged = [layer(f"pyramid.lateral.{n}", c) for n, c in enumerate((c3, c4, c5))]
    for finer in (1, 0):
        merged[finer] = merged[finer] + merged[finer + 1].repeat(2, 0).repeat(2, 1)
    levels = [layer(f"pyramid.output.{n}", m) for n, m in enumerate(merged)]
    levels.append(layer("pyramid.coarse.0", c5 if p6_from == "c5" else levels[-1], 2))
    levels.append(layer("pyramid.coarse.1", relu(levels[-1]), 2))
    for level, output in zip(levels, outputs, strict=True):
        for head, outs in (("classes", 3), ("boxes", 4)):
            name = f"heads.{head}"
            y = relu(layer(f"{name}.tower.0.conv", level))
            kernel, bias = w[f"{name}.predictor.kernel"], w[f"{name}.predictor.bias"]
            result = np.asarray(getattr(output, head)[0]).reshape(*y.shape[:2], 3, outs)
            for anchor in range(3):
                expected = convolved(y, kernel[..., anchor, :], bias[anchor])
                np.testing.assert_allclose(result[:, :, anchor], expected, atol=1e-4)


def test_initial_values():
    """The prior of every class everywhere, and boxes close to their anchors."""
    config = TINY | {"prior": 0.02, "head_layers": 2}
    spec = nn.abstract(build(config))
    heads = {n: s for n, s in spec.params.items() if n.startswith("heads") and "norm" not in n}
    arrays = nn.initialise(heads, jax.random.key(0))
    logit = arrays["heads.classes.predictor.bias"]
    np.testing.assert_allclose(jax.nn.sigmoid(logit), 0.02, rtol=1e-5)
    assert not arrays["heads.classes.predictor.kernel"].any()
    assert not arrays["heads.boxes.predictor.bias"].any()
    for name in ("boxes.predictor", "boxes.tower.0.conv", "classes.tower.1.conv"):
        assert float(arrays[f"heads.{name}.kernel"].std()) == pytest.approx(0.01, rel=0.1)


def test_values_of_attention_in_heads_start_small():
    spec = nn.abstract(build(TINY | {"head_attention": "towers", "features": 64}))
    name = "heads.classes.tower.0.conv.qkv"
    q, k, v = jnp.split(nn.initialise({name: spec.params[name]}, jax.random.key(0))[name], 3, 1)
    assert float(v.std()) == pytest.approx(0.01, rel=0.1)
    assert float(q.std()) == pytest.approx(64**-0.5, rel=0.1)
    assert float(k.std()) == pytest.approx(64**-0.5, rel=0.1)


def test_frozen_normalisations_are_statistics_that_stay():
    spec, params, state = ready(**SMALL, norm="frozen", pyramid_norm="none", head_norm="none")
    assert not [name for name in spec.params if "norm" in name]
    assert {n.rpartition(".")[2] for n in spec.model_state} == {"scale", "bias", "mean", "var"}

    @jax.jit
    def network(x):
        model = spec.bind(params, state)
        trained, other = model(x, train=True), model(x)
        return trained, other, nn.observed(model), nn.stats(model)

    trained, other, seen, after = network(images(2, 64, 128, 3))
    assert not seen
    jax.tree.map(np.testing.assert_array_equal, trained, other)
    for name, value in after.items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.thorough
def test_frozen_parts_have_no_backward_pass():
    """With these patterns in `optimizer.frozen`, which leaves the weights that they match out of
    what is differentiated, each frozen part takes multiply-adds out of the program.
    """
    spec, params, state = ready(**SMALL)
    x = jax.ShapeDtypeStruct((1, 64, 128, 3), jnp.float32)

    def cost(number):
        (pattern,) = frozen_stages(number) or ("^$",)
        fixed = {name: value for name, value in params.items() if re.search(pattern, name)}
        learned = {name: value for name, value in params.items() if name not in fixed}

        def loss(learned, x):
            outputs = spec.bind(learned | fixed, state)(x, train=True)
            return sum(jnp.sum(level.classes) + jnp.sum(level.boxes) for level in outputs)

        return flops(jax.grad(loss), learned, x)

    assert cost(2) < cost(0)


# ---------------------------------------------------------------- training on devices


@functools.cache
def on_devices(count, kind, **config):
    """Images and weights of rows -> gradients of a sum over the rows that count, outputs, and what
    the layers saw: a network of `SMALL` on so many devices.
    """
    spec, params, state = ready(**SMALL, **config)
    mesh, rules = make_mesh(data=count, devices=jax.devices()[:count]), RULES_OF[kind]

    def on_mesh(params, state, x, weights):
        def loss(params):
            model = spec.bind(params, state)
            levels = model(x, train=True, weights=weights)
            rows = [jnp.sum(jnp.square(y - 0.5), (1, 2, 3)) for y in jax.tree.leaves(levels)]
            return jnp.sum(weights * sum(rows)), (levels, nn.observed(model))

        with activate(mesh, rules):
            return jax.grad(loss, has_aux=True)(params)

    places = [resolve_specs(specs, rules, mesh) for specs in (spec.params, spec.model_state)]
    rows = batch_sharding(rules, mesh)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    compiled = jax.jit(on_mesh, in_shardings=(*places, rows, rows), out_shardings=whole)
    return lambda x: jax.device_get(compiled(params, state, x, WEIGHTS))


def before_a_norm(name):
    """Biases that a normalisation takes away: their gradients are what rounding leaves of 0."""
    return name.endswith((".conv.bias", "output.0.bias", "output.1.bias", "coarse.0.bias"))


WEIGHTS = jnp.asarray([1.0, 1, 0, 1, 1, 1, 1, 0])


@pytest.fixture(scope="module")
def on_one_device():
    return on_devices(1, "replicated")(images(8, 64, 128, 3))


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_weight(on_one_device):
    spec, (found, (_, seen)) = ready(**SMALL)[0], on_one_device
    assert set(found) == set(spec.params)
    for name, gradient in found.items():
        assert np.isfinite(gradient).all(), name
        assert gradient.any() or before_a_norm(name), name
        assert not (
            gradient.any() and ".conv.bias" in name
        )  # 0, and not what rounding leaves of it
    assert sorted(seen) == statistics.layers(spec.model_state)


def test_rows_that_do_not_count_change_nothing(on_one_device):
    """Neither gradients and outputs of the others nor what the layers saw."""
    x = images(8, 64, 128, 3)
    disturbed = x.at[2].set(50 * x[0]).at[7].set(-3.0)
    other = on_devices(1, "replicated")(disturbed)
    for name, gradient in on_one_device[0].items():
        if not before_a_norm(name):
            close(other[0][name], gradient)
    (levels, seen), (levels_of_other, seen_of_other) = on_one_device[1], other[1]
    jax.tree.map(close, seen, seen_of_other)
    counted = np.flatnonzero(WEIGHTS)
    jax.tree.map(lambda a, b: close(a[counted], b[counted]), levels, levels_of_other)


def close(actual, expected):
    scale = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, atol=2e-4 * scale, rtol=1e-3)


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(on_one_device):
    found, (levels, _) = on_devices(8, "fsdp")(images(8, 64, 128, 3))
    for name, gradient in on_one_device[0].items():
        if not before_a_norm(name):
            close(found[name], gradient)
    jax.tree.map(close, levels, on_one_device[1][0])


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_in_bfloat16():
    """As vectors: where one device rounds between two operations and the other does not, single
    numbers differ by a tenth of the largest.
    """
    x = images(8, 64, 128, 3)
    one, eight = (on_devices(count, "fsdp", dtype="bfloat16")(x) for count in (1, 8))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(eight))
    levels = (jax.tree.leaves(found[1][0]) for found in (one, eight))
    for expected, actual in zip(*levels, strict=True):
        assert np.linalg.norm(actual - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("name", ["retinanet_resnet50", "retinanet_sasa_resnet50"])
def test_every_weight_has_a_place_on_a_mesh(name, kind):
    spec = nn.abstract(build(section(name, {"head_attention": "towers"})))
    places = resolve_specs(spec.params | spec.model_state, RULES_OF[kind], make_mesh(1, 8))
    split = {name for name, place in places.items() if "data" in place.spec}
    assert bool(split) == (kind == "fsdp")
    if split:
        assert {"heads.classes.predictor.kernel", "backbone.conv5_x.2.conv3.kernel"} <= split
