"""Layers and models as a Flax user takes them: built with `rngs`, they hold arrays, train in the
user's own module, and move their own running statistics.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from trainlib.errors import ConfigError
from trainlib.model import statistics
from trainlib.model import weights as nn
from vitattn import layers
from vitattn.layers.attention_stem import AttentionStem
from vitattn.layers.augmented import AugmentedConv
from vitattn.layers.conv import Classifier, Conv
from vitattn.layers.local import HaloAttention, LocalAttention
from vitattn.layers.norm import BatchNorm
from vitattn.layers.squeeze import Cbam, GatherExcite, SqueezeExcite
from vitattn.models import build

SMALL = {
    "resnet": {
        "name": "resnet",
        "depth": 18,
        "blocks": (1, 1, 1, 1),
        "width": 0.125,
        "num_classes": 3,
        "image_size": 16,
        "stem": "small_image",
        "attention": {"kind": "augmented", "num_heads": 1, "upsilon": 0.25, "min_key_depth": 2},
    },
    "wide_resnet": {
        "name": "wide_resnet",
        "depth": 10,
        "widening": 1,
        "num_classes": 3,
        "image_size": 8,
        "gate": "cbam",
    },
    "mnasnet": {
        "name": "mnasnet",
        "blocks": (1,) * 7,
        "width": 0.1,
        "num_classes": 3,
        "image_size": 16,
        "stem": "small_image",
    },
}


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


call = nnx.jit(lambda model, x, **options: model(x, **options), static_argnames="train")


def test_an_augmented_convolution_in_one_line():
    y = AugmentedConv(16, 32, 3, num_heads=2, rngs=nnx.Rngs(0))(images(2, 8, 6, 16))
    assert y.shape == (2, 8, 6, 32)
    assert y.dtype == jnp.float32
    assert bool(jnp.isfinite(y).all())


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (lambda r: Conv(3, 8, 3, 2, rngs=r), (2, 9, 8, 3), (2, 5, 4, 8)),
        (lambda r: Conv(8, 8, 3, depthwise=True, rngs=r), (2, 5, 5, 8), (2, 5, 5, 8)),
        (lambda r: Classifier(8, 3, rngs=r), (2, 8), (2, 3)),
        (lambda r: BatchNorm(8, rngs=r), (2, 4, 4, 8), (2, 4, 4, 8)),
        (lambda r: AugmentedConv(8, 16, size=4, num_heads=2, rngs=r), (2, 4, 4, 8), (2, 4, 4, 16)),
        (
            lambda r: AugmentedConv(8, 16, size=(4, 6), num_heads=2, stride=2, rngs=r),
            (2, 8, 12, 8),
            (2, 4, 6, 16),
        ),
        (lambda r: LocalAttention(8, 16, rngs=r), (2, 5, 9, 8), (2, 5, 9, 16)),
        (lambda r: HaloAttention(8, 16, rngs=r), (2, 5, 9, 8), (2, 5, 9, 16)),
        (lambda r: AttentionStem(3, 8, rngs=r), (2, 8, 8, 3), (2, 8, 8, 8)),
        (lambda r: SqueezeExcite(8, 2, rngs=r), (2, 4, 4, 8), (2, 4, 4, 8)),
        (lambda r: Cbam(8, 2, rngs=r), (2, 4, 4, 8), (2, 4, 4, 8)),
        (lambda r: GatherExcite(), (2, 4, 4, 8), (2, 4, 4, 8)),
    ],
)
def test_every_layer_is_called_as_it_stands(make, shape, expected):
    layer, x = make(nnx.Rngs(0)), images(*shape)
    y = layer(x)
    assert y.shape == expected
    np.testing.assert_allclose(call(layer, x), y, atol=1e-5)
    one, other = (jax.tree.leaves(nnx.state(make(nnx.Rngs(seed)))) for seed in (0, 0))
    assert all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


def test_a_layer_can_be_built_inside_a_program():
    """As Flax users make models that are sharded at once, or shapes without arrays."""

    @nnx.jit
    def make():
        return LocalAttention(8, 16, num_heads=2, window=3, rngs=nnx.Rngs(0))

    inside, outside = make(), LocalAttention(8, 16, num_heads=2, window=3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(inside.qkv[...], outside.qkv[...], atol=1e-6)
    shapes = nnx.eval_shape(lambda: AugmentedConv(8, 16, num_heads=2, rngs=nnx.Rngs(0)))
    assert shapes.qkv.get_value().shape == (8, 2 * 40 + 4)


def test_relative_positions_need_the_size_of_the_map_and_say_so():
    with pytest.raises(ConfigError, match="size="):
        AugmentedConv(8, 16, num_heads=2, position="relative", rngs=nnx.Rngs(0))
    assert AugmentedConv(8, 16, num_heads=2, rngs=nnx.Rngs(0)).position == "none"
    assert AugmentedConv(8, 16, num_heads=2, size=4, rngs=nnx.Rngs(0)).position == "relative"


class Own(nnx.Module):
    """A user's network of these layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.augmented = AugmentedConv(3, 16, 3, num_heads=2, size=8, rngs=rngs)
        self.norm = BatchNorm(16, rngs=rngs)
        self.local = LocalAttention(16, 16, num_heads=2, window=3, rngs=rngs)
        self.head = Classifier(16, 3, rngs=rngs)

    def __call__(self, x, train=False):
        x = jax.nn.relu(self.norm(self.augmented(x), train=train))
        return self.head(self.local(x).mean((1, 2)))


def trained(model, x, labels, steps=20):
    """Losses of plain training with `nnx.Optimizer`, and how often the step was traced."""
    traces = []
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)

        def loss_fn(model):
            logits = model(x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(steps)]
    return losses, len(traces)


@pytest.mark.slow
def test_a_users_own_module_trains_and_moves_its_statistics():
    model, x = Own(nnx.Rngs(0)), images(12, 8, 8, 3)
    losses, traces = trained(model, x, jnp.arange(12) % 3)
    assert losses[-1] < 0.7 * losses[0]
    assert int(model.norm.count[...]) == statistics.FRESH + 20
    assert float(jnp.abs(model.norm.mean[...]).max()) > 0
    assert call(model, x).shape == (12, 3)
    assert traces == 1  # a call changes arrays, not the module: nothing is compiled again


class Mixed(nnx.Module):
    """Layers of ours between layers of Flax, in bfloat16 where they attend."""

    def __init__(self, rngs: nnx.Rngs):
        options = {"num_heads": 2, "dtype": jnp.bfloat16, "rngs": rngs}
        self.augmented = layers.AugmentedConv(3, 16, 3, size=6, **options)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.local = layers.LocalAttention(16, 16, window=3, **options)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x, train=False):
        x = self.norm(self.augmented(x), use_running_average=not train)
        return self.head(self.local(nnx.relu(x)).mean((1, 2)).astype(jnp.float32))


@pytest.fixture(scope="module")
def mixed():
    """Such a network, trained, with its losses, an input and what it gives for that."""
    model, x = Mixed(nnx.Rngs(0)), images(12, 6, 6, 3)
    losses, traces = trained(model, x, jnp.arange(12) % 3)
    assert traces == 1
    return model, losses, x, call(model, x)


@pytest.mark.thorough
def test_layers_train_between_those_of_flax(mixed):
    model, losses, x, _ = mixed
    assert losses[-1] < 0.7 * losses[0]
    attended = jax.eval_shape(model.augmented, x)
    assert attended.dtype == jax.eval_shape(model.local, attended).dtype == jnp.bfloat16
    kernel, table = model.augmented.conv.kernel[...], model.local.rel_row[...]
    assert kernel.dtype == table.dtype == jnp.float32


def test_vmap_split_and_merge_see_plain_modules(mixed):
    model, _, x, whole = mixed
    graphdef, state = nnx.split(model)
    np.testing.assert_array_equal(call(nnx.merge(graphdef, state), x), whole)
    one_by_one = jax.jit(jax.vmap(lambda image: model(image[None])[0]))(x)
    np.testing.assert_allclose(one_by_one, whole, atol=0.05)  # bfloat16
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert {"augmented.rel_h", "local.qkv", "head.kernel"} <= names


def test_a_checkpoint_of_the_users_own_by_orbax(mixed, tmp_path):
    """Only arrays are saved: nothing of a layer has to be pickled."""
    model, _, x, whole = mixed
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "mine", nnx.to_pure_dict(nnx.state(model)))
        checkpointer.wait_until_finished()
        fresh = Mixed(nnx.Rngs(1))
        state = nnx.state(fresh)
        read = checkpointer.restore(tmp_path / "mine", nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, read)
    nnx.update(fresh, state)
    np.testing.assert_array_equal(call(fresh, x), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet", pytest.param("wide_resnet", marks=pytest.mark.thorough)]
)
def test_a_model_from_its_configuration_trains(name):
    model, size = build(SMALL[name], rngs=nnx.Rngs(0)), SMALL[name]["image_size"]
    losses, _ = trained(model, images(6, size, size, 3), jnp.arange(6) % 3)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_mobile_networks_draw_by_a_key():
    model, x = build(SMALL["mnasnet"], rngs=nnx.Rngs(0)), images(2, 16, 16, 3)
    assert call(model, x).shape == (2, 3)
    assert call(model, x, train=True, key=jax.random.key(0)).shape == (2, 3)
    with pytest.raises(ValueError, match="key="):
        call(model, x, train=True)


@pytest.mark.thorough
def test_statistics_move_as_the_step_moves_them():
    """Three batches, one of which has rows that do not count."""
    layer = BatchNorm(5, decay=0.8, rngs=nnx.Rngs(0))
    declared = nn.abstract(BatchNorm(5, decay=0.8))
    params = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
    running = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    counts = statistics.fresh(running)
    for seed, weights in enumerate((None, jnp.asarray([1.0, 1, 0, 1]), None)):
        x = images(4, 3, 3, 5, seed=seed)
        bound = declared.bind(params, running)
        expected = bound(x, train=True, weights=weights)
        running, counts = statistics.follow(running, counts, nn.observed(bound))
        np.testing.assert_array_equal(layer(x, train=True, weights=weights), expected)
    for name, value in running.items():
        np.testing.assert_array_equal(getattr(layer, name)[...], value)
    assert int(layer.count[...]) == int(counts[0]) == statistics.FRESH + 3


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", SMALL)
def test_arrays_at_once_and_arrays_made_later_are_the_same_module(name):
    """Same names, shapes and types; only the counts of updates come in addition."""
    declared = nn.abstract(build(SMALL[name]))
    model = build(SMALL[name], rngs=nnx.Rngs(0))
    params = nn.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    stats = {n: v for n, v in nn.stats(model).items() if n.rpartition(".")[2] != "count"}
    for arrays, specs in ((params, declared.params), (stats, declared.model_state)):
        assert {n: (v.shape, v.dtype) for n, v in arrays.items()} == {
            n: (spec.shape, spec.dtype) for n, spec in specs.items()
        }
    size = SMALL[name]["image_size"]
    x = images(2, size, size, 3)
    later = jax.jit(lambda params, stats: declared.bind(params, stats)(x))(params, stats)
    np.testing.assert_allclose(later, call(model, x), atol=1e-5)
