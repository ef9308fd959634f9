"""`moe.SparseFFN` in a stranger's own transformer of Flax: alone, on a mesh of eight devices, and
its router without it. Written with public names alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import moe
from trainlib.errors import ConfigError

ROUTING = moe.RoutingConfig(num_experts=8, group_sequences=1)
WORDS, WIDTH, LENGTH, BATCH = 11, 16, 6, 16


class Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=WIDTH, decode=False, rngs=rngs
        )
        self.experts = moe.SparseFFN(WIDTH, 32, ROUTING, init_scale=1.0, rngs=rngs)

    def __call__(self, x, key, train):
        x = x + self.attention(self.norms[0](x))
        y, out = self.experts(self.norms[1](x), key=key, train=train)
        return x + y, moe.auxiliary_loss(out.losses, ROUTING)


class Tagger(nnx.Module):
    """Says of each word which word stands two places before it."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.place = nnx.Param(0.5 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.layer = Layer(rngs)
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, words, key=None, train=False):
        x, auxiliary = self.layer(self.embed(words) + self.place[...], key, train)
        return self.head(x), auxiliary


@nnx.jit
def train_step(model, optimizer, words, key):
    targets = jnp.roll(words, 2, axis=1)

    def loss_of(model):
        logits, auxiliary = model(words, key, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses.mean() + auxiliary, auxiliary

    (loss, auxiliary), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss, auxiliary


def trained(steps, mesh=None):
    """Losses and auxiliary losses of some steps, and the model."""
    model = Tagger(nnx.Rngs(0))
    words = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, WORDS)
    if mesh is not None:
        moe.shard_module(model, mesh)
        words = jax.device_put(words, NamedSharding(mesh, P("data")))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    keys = (jax.random.fold_in(jax.random.key(2), n) for n in range(steps))
    sums = [train_step(model, optimizer, words, key) for key in keys]
    return np.asarray(jax.device_get(sums)), model


@pytest.fixture(scope="module")
def alone():
    return trained(40)


@pytest.mark.slow
def test_a_transformer_of_ones_own_learns(alone):
    losses, _ = alone
    assert losses[-1, 0] < 0.5 * losses[0, 0], losses
    assert np.all((losses[:, 1] > 0) & (losses[:, 1] < 0.1))


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


@pytest.mark.slow
def test_it_trains_alike_on_eight_devices(alone):
    """Experts lie over `data`, the batch as well."""
    mesh = mesh_of(AxisType.Auto)
    with jax.set_mesh(mesh):
        losses, model = trained(3, mesh)
    np.testing.assert_allclose(losses, alone[0][:3], rtol=2e-4)
    up = model.layer.experts.up[...]
    assert {shard.data.shape for shard in up.addressable_shards} == {(1, WIDTH, 32)}


def of_layer(layer, x):
    y, out = layer(x)
    return jnp.sum(y**2) + moe.auxiliary_loss(out.losses, ROUTING)


@pytest.fixture(scope="module")
def layer_alone():
    """A builder of one layer, an input, and what a single device makes of them."""
    x = jax.random.normal(jax.random.key(0), (8, LENGTH, WIDTH))

    def make():
        return moe.SparseFFN(WIDTH, 32, ROUTING, rngs=nnx.Rngs(0))

    return make, x, nnx.jit(nnx.value_and_grad(of_layer))(make(), x)


KINDS = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)


@pytest.mark.thorough
@KINDS
def test_the_layer_runs_on_every_kind_of_mesh(layer_alone, kind):
    """The axes of `jax.make_mesh` have explicit types unless it is told otherwise."""
    make, x, expected = layer_alone
    layer, mesh = make(), mesh_of(kind)
    moe.shard_module(layer, mesh)
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = nnx.jit(nnx.value_and_grad(of_layer))(layer, split)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


def test_the_batch_stays_split_however_the_layer_is_called(layer_alone):
    """By keywords a key comes before x, which it must not be taken for."""
    make, x, _ = layer_alone
    mesh = mesh_of(AxisType.Explicit)
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        y = jax.eval_shape(lambda x: make()(key=jax.random.key(0), x=x)[0], split)
    assert y.sharding.spec[0] == "data"


@pytest.mark.slow
@KINDS
def test_the_layer_runs_on_a_mesh_without_being_compiled(layer_alone, kind):
    make, x, expected = layer_alone
    with jax.set_mesh(mesh_of(kind)):
        np.testing.assert_allclose(of_layer(make(), x), expected[0], rtol=1e-5)


@pytest.mark.slow
@KINDS
def test_a_whole_model_runs_and_generates_on_a_mesh_that_has_some_axes(kind):
    """A mesh of a stranger need not have an axis `model`."""
    routing = {"num_experts": 8, "group_sequences": 1}
    sizes = {"d_model": 16, "d_ff": 16, "num_heads": 2, "head_dim": 8, "vocab_size": 32}
    sizes |= {"encoder_blocks": 1, "decoder_blocks": 1, "dtype": "float32", "sparse_period": 1}

    def make():
        return moe.create_model("st_moe_tiny", rngs=nnx.Rngs(0), routing=routing, **sizes)

    tokens = jax.random.randint(jax.random.key(0), (8, LENGTH), 3, 32)
    run = nnx.jit(lambda model, tokens: model(tokens, tokens).logits)
    model, mesh = make(), mesh_of(kind)
    expected = run(model, tokens), moe.generate(model, tokens, max_length=3).tokens
    moe.shard_module(model, mesh)
    split = jax.device_put(tokens, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = run(model, split), moe.generate(model, split, max_length=3).tokens
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[1], expected[1])


def test_mistakes_of_a_mesh_are_named():
    layer = moe.SparseFFN(WIDTH, 32, moe.RoutingConfig(num_experts=6), rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=r"6 along 'expert'.*8 devices of mesh axis data"):
        moe.shard_module(layer, mesh_of(AxisType.Auto))
    with pytest.raises(ConfigError, match="axes of the mesh are x, and none of them is known"):
        moe.shard_module(layer, jax.make_mesh((8,), ("x",)))
    with pytest.raises(ValueError, match=r"SparseFFN needs `key`.*second_policy='random'"):
        layer(jnp.zeros((1, 4, WIDTH)), train=True)
    with pytest.raises(ValueError, match=r"takes .* \[batch, length, d_model=16\]"):
        layer(jnp.zeros((4, 8)))


# ------------------------------------------------------------------ the router without a layer
POLICIES = ("all", "none", "threshold", "random", "if_dropped")
CASES = (
    *({"second_policy": policy, "top_k": 3} for policy in POLICIES),
    {"second_policy": "if_dropped", "batch_prioritized": True, "capacity_factor": 0.6},
    {"second_policy": "all", "batch_prioritized": True, "normalize_gates": False},
    {"top_k": 1, "capacity_factor": 0.5, "min_capacity": 1},
    {"router": "experts_choose", "capacity_factor": 2.0},
    {"second_policy": "all", "dispatch": "dropless"},
)


QUICK = (3, 5, 7, 8, 9)  # the random policy, priority with a second try, Switch, and the others


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            options,
            id="-".join(map(str, options.values())),
            marks=() if number in QUICK else pytest.mark.thorough,
        )
        for number, options in enumerate(CASES)
    ],
)
def test_the_dense_form_of_a_routing_dispatches_and_combines_alike(options):
    """Einsums of the papers against the maps, and each choice where expert and position say."""
    groups, size, experts = 2, 13, 5
    config = moe.RoutingConfig(experts, **{"min_capacity": 1, **options})
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(groups, size, experts)) * 2 + rng.normal(size=experts)
    mask = rng.random((groups, size)) < 0.8
    draws = rng.random((groups, size, config.top_k - 1)).astype(np.float32)

    @jax.jit
    def run(logits, x):
        routing = moe.route(logits, config, train=True, mask=mask, draws=draws)
        sent = moe.dispatch(x, routing.slot, routing.source)
        back = moe.combine(sent, routing.gates, routing.slot, routing.source)
        dense = routing.dispatch_mask(), routing.combine_weights()
        return routing, routing.expert_and_position(), dense, sent, back

    x = rng.normal(size=(groups, size, 3)).astype(np.float32)
    routing, (expert, position), (sends, weights), sent, back = run(jnp.float32(logits), x)
    assert sends.shape == weights.shape == (groups, size, experts, routing.capacity)
    assert (sends.dtype, weights.dtype) == (bool, np.float32)
    buffer = np.einsum("gsec,gsd->egcd", sends, x)
    np.testing.assert_allclose(buffer, sent, atol=1e-6)
    np.testing.assert_allclose(np.einsum("gsec,egcd->gsd", weights, buffer), back, atol=1e-5)
    assert np.asarray(sends).sum(1).max() == 1  # no slot holds two tokens

    expected = np.zeros(weights.shape, np.float32)
    for g, s, k in np.ndindex(*expert.shape):
        if position[g, s, k] >= 0:
            expected[g, s, expert[g, s, k], position[g, s, k]] = routing.gates[g, s, k]
        else:
            assert routing.gates[g, s, k] == 0
    np.testing.assert_array_equal(expected, weights)
    assert np.all(np.asarray(expert)[~mask] == -1)
    dropped = (np.asarray(expert) >= 0) & (np.asarray(position) < 0)
    assert dropped.sum() == np.asarray(routing.metrics["dropped_choices"][0]).sum()
    assert np.all((np.asarray(expert) >= 0) | (np.asarray(position) < 0))


def test_gates_learn_through_the_dense_form():
    logits = jax.random.normal(jax.random.key(0), (1, 6, 4))
    values = jax.random.normal(jax.random.key(1), (1, 6, 4, 2))
    config = moe.RoutingConfig(4, second_policy_eval="all", min_capacity=2)

    def dense(logits):
        weights = moe.route(logits, config).combine_weights()
        return jnp.sum(weights[..., :2] * values)

    def sparse(logits):
        routing = moe.route(logits, config)
        expert, position = routing.expert_and_position()
        tokens = jnp.arange(6)[None, :, None]
        chosen = values[0, tokens, expert, jnp.clip(position, 0, 1)]
        kept = (position >= 0) & (position < 2)
        return jnp.sum(jnp.where(kept, routing.gates * chosen, 0.0))

    one, other = jax.jit(lambda x: (jax.grad(dense)(x), jax.grad(sparse)(x)))(logits)
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one).max() > 0


def test_a_router_tells_its_mistakes():
    with pytest.raises(ValueError, match=r"\[groups, tokens, experts=4\].*one is x\[None\]"):
        moe.route(jnp.zeros((6, 4)), moe.RoutingConfig(4))
    with pytest.raises(ValueError, match=r"'random' needs draws.*jax\.random\.uniform"):
        moe.route(jnp.zeros((1, 6, 4)), moe.RoutingConfig(4), train=True)
