"""The augmented convolution with its kernels, interpreted, against its plain form: options, meshes,
programs of networks for a TPU, and exports.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import configs
from tests.tpu_compiler import needs_libtpu
from trainlib import chips
from trainlib.formats import stablehlo
from trainlib.model.weights import abstract, initialise
from trainlib.planning import compile as planning
from trainlib.sharding.constrain import activate, lowered_for
from trainlib.sharding.kernels import use_kernels
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_sharding, resolve
from trainlib.step.step import compile_train
from vitattn import plan as plans
from vitattn.layers import AugmentedConv
from vitattn.models import build
from vitattn.objective import make_loss

BASE = {"kernel_size": 3, "num_heads": 2, "key_depth": 6, "value_depth": 4, "size": (5, 4)}
VARIANTS = {
    "strided_downsampled": {"stride": 2, "downsample": True},
    "attention_only": {"out_channels": 4},
    "no_position": {"position": "none"},
    "sine": {"position": "sine"},
    "coord": {"position": "coord"},
}
RULES = {"batch": ("replica", "data"), "channels": None, "conv_out": None}
RULES |= dict.fromkeys(("height", "width", "offset", "head_dim"))


def build_layer(in_channels=8, out_channels=10, images=2, **options):
    options = {**BASE, **options}
    spec = abstract(AugmentedConv(in_channels, out_channels, **options))
    params = initialise(spec.params, jax.random.key(0))
    height, width = (side * options.get("stride", 1) for side in options["size"])
    x = jax.random.normal(jax.random.key(1), (images, height, width, in_channels))
    return spec, params, x


def step(spec, kernels):
    """Value and gradients of a sum of the layer's outputs, by weights and input."""

    def loss(params, x):
        y = spec.bind(params, {})(x)
        return jnp.sum(jnp.sin(y)), y

    def run(params, x):
        with use_kernels(kernels):
            return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    return run


def compare(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.sample(1)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_change_nothing_but_roundings(variant):
    spec, params, x = build_layer(**VARIANTS[variant])
    program = jax.make_jaxpr(step(spec, "interpret"))(params, x)
    assert str(program).count("pallas_call[") == 2
    compare(jax.jit(step(spec, "interpret"))(params, x), jax.jit(step(spec, "plain"))(params, x))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, "data"], ids=["batch split", "fsdp"])
def test_eight_devices_equal_one(rule):
    """Each has its two images; the gradients of weights, split or not, are those of all sixteen."""
    rules = RULES | {"conv_in": rule}
    spec, params, x = build_layer(images=16)
    expected = jax.jit(step(spec, "plain"))(params, x)
    mesh = make_mesh(replica=2, data=4, devices=jax.devices()[:8])
    split = {n: resolve(n, s.shape, s.axes, rules, mesh) for n, s in spec.params.items()}

    def on_mesh(params, x):
        with activate(mesh, rules):
            return step(spec, "interpret")(params, x)

    rows = batch_sharding(rules, mesh)
    compiled = jax.jit(on_mesh, in_shardings=(split, rows))
    text = str(jax.make_jaxpr(on_mesh)(params, x))
    assert text.count("pallas_call[") == 2
    compare(compiled(jax.device_put(params, split), jax.device_put(x, rows)), expected)


def test_a_mesh_whose_axes_are_not_known_takes_the_plain_form():
    """The partitioner would have to split the kernel, which it refuses."""
    spec, params, x = build_layer(images=8)
    mesh = jax.make_mesh((8,), ("mine",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("mine")))
        text = str(jax.make_jaxpr(step(spec, "interpret"))(params, split))
    assert "pallas_call" not in text


@pytest.mark.thorough
def test_a_layer_with_arrays_under_nnx_jit_and_vmap():
    layer = AugmentedConv(8, 10, **BASE, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, 2, 5, 4, 8))
    expected = jnp.stack([layer(one) for one in x])

    @nnx.jit
    def run(layer, x):
        with use_kernels("interpret"):
            return jax.vmap(layer)(x)

    np.testing.assert_allclose(run(layer, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("platforms", "batch", "kernels"),
    [(("cpu", "tpu"), 4, 0), (("cpu", "tpu"), 0, 0), (("tpu",), 0, 0), (("tpu",), 4, 1)],
)
def test_exported_programs_have_the_kernel_where_they_are_for_a_tpu_alone(
    platforms, batch, kernels
):
    """And for a fixed batch. JAX lowers what is for several platforms for each of them."""
    spec, params, x = build_layer(images=4)
    data, _ = stablehlo.program(
        lambda params, statistics, inputs: spec.bind(params, statistics)(inputs["x"]),
        spec,
        {"x": (("batch", *x.shape[1:]), "float32")},
        dtypes=dict.fromkeys(params, np.dtype("float32")),
        platforms=platforms,
        batch=batch,
    )
    made = jax.export.deserialize(bytearray(data))
    assert made.mlir_module().count("@tpu_custom_call") == kernels
    if "cpu" in platforms:
        expected = spec.bind(params, {})(x)
        np.testing.assert_allclose(made.call(params, {"x": x}), expected, atol=1e-5)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("kernels", "times"), [("auto", 4), ("plain", 0)])
def test_the_train_step_of_a_network_for_a_tpu(kernels, times):
    """A network with four augmented layers; `kernels=plain` leaves no program of Pallas in it."""
    small = {"image_size": 64, "num_classes": 10, "blocks": (1, 2, 1, 1)}
    config = configs.load("aa_resnet50", batch_size=8, model=small, kernels=kernels)
    plan = plans.make(config, planning.mesh(config, chips.target("v5e-1")))
    train_step = compile_train(make_loss(plan), plan)
    text = train_step.trace(plan.abstract_state(), plans.abstract_batch(plan)).lower().as_text()
    assert text.count("augmented_half_forward") == text.count("augmented_half_backward") == times
    assert text.count("@tpu_custom_call") == 2 * times


AUGMENTED = sorted(path.stem for path in Path(configs.__file__).parent.glob("aa_*.py"))


@functools.cache
def traced(name):
    """(augmented layers, kernels) of the forward pass of a published network, for a TPU."""
    config = configs.load(name)
    model = build(config.model)
    spec = abstract(model)
    layers = [m for _, m in nnx.iter_modules(model) if isinstance(m, AugmentedConv)]
    weights, statistics = (
        {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in part.items()}
        for part in (spec.params, spec.model_state)
    )
    size = config.model.image_size
    images = jax.ShapeDtypeStruct((8, size, size, 3), jnp.float32)

    def forward(weights, statistics, images):
        return spec.bind(weights, statistics)(images)

    program = jax.make_jaxpr(forward)(weights, statistics, images)
    return len(layers), str(program).count("pallas_call[")


@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTED)
def test_every_site_of_the_published_networks_takes_the_kernel(monkeypatch, name):
    monkeypatch.setattr(
        "vitattn.kernels.tpu.relative.half.core_memory", lambda: 128 * 2**20
    )  # of v5e and v6e
    with lowered_for("tpu"):
        layers, kernels = traced(name)
    assert layers == kernels > 0
