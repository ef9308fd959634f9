"""Optimisers against NumPy transcriptions of their papers; masks, frozen weights, slot
shardings.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from trainlib.errors import ConfigError
from trainlib.model.weights import Spec
from trainlib.step.optimizers import defaults, make_optimizer, trained_names
from trainlib.step.slots import slot_shardings

RATES = np.array([0.1, 0.05, 0.2, 0.1, 0.02, 0.1])
SHAPES = {
    "stem.kernel": ((3, 4, 6), ("height", "conv_in", "conv_out")),
    "norm.scale": ((6,), ("channels",)),
    "head.kernel": ((6, 5), ("features", "classes")),
    "head.bias": ((5,), ("classes",)),
}


def specs(shapes=SHAPES):
    zeros = jax.nn.initializers.zeros
    return {
        n: Spec(shape, jnp.dtype("float32"), axes, zeros) for n, (shape, axes) in shapes.items()
    }


def arrays(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: scale * rng.normal(size=shape).astype("f4") for n, (shape, _) in shapes.items()}


def schedule(step):
    return jnp.asarray(RATES, jnp.float32)[step]


def train(config, gradients, shapes=SHAPES, **kwargs):
    """Runs the optimiser over the gradients, jitted; returns (weights, state)."""
    tx = make_optimizer(config, schedule, specs(shapes), **kwargs)
    params = jax.tree.map(jnp.asarray, arrays(0, shapes))
    state = tx.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        params, state = step(params, state, grads)
    return params, state


def run_reference(make_rule, gradients, shapes=SHAPES, prepare=lambda grads, params: grads):
    """The same loop in f64; `make_rule(name)` returns update(gradient, weight, rate, t) -> step."""
    params = {name: value.astype("f8") for name, value in arrays(0, shapes).items()}
    rules = {name: make_rule(name) for name in params}
    for t, grads in enumerate(gradients):
        grads = {name: grad.astype("f8") for name, grad in grads.items()}
        grads = prepare(grads, params)
        params = {n: w - rules[n](grads[n], w, RATES[t], t + 1) for n, w in params.items()}
    return params


def gradients(count=6, shapes=SHAPES, scale=1.0):
    return [arrays(100 + i, shapes, scale) for i in range(count)]


def assert_same(actual, expected, tolerance=3e-6):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )


def decays(name):
    return name.endswith("kernel")


def sgd_rule(momentum=0.9, nesterov=False, decay=0.0, multiplier=lambda name: 1.0):
    def make(name):
        memory = {"v": 0.0}

        def rule(g, w, rate, t):
            g = g + decay * w * decays(name)
            memory["v"] = momentum * memory["v"] + g
            direction = g + momentum * memory["v"] if nesterov else memory["v"]
            return rate * multiplier(name) * direction

        return rule

    return make


def rmsprop_rule(rho=0.9, momentum=0.9, eps=1e-3, decay=0.0):
    # TensorFlow's ApplyRMSProp: ms starts at 1, epsilon in the root, the rate inside the momentum.
    def make(name):
        memory = {"ms": 1.0, "mom": 0.0}

        def rule(g, w, rate, t):
            g = g + decay * w * decays(name)
            memory["ms"] = rho * memory["ms"] + (1 - rho) * g**2
            memory["mom"] = momentum * memory["mom"] + rate * g / np.sqrt(memory["ms"] + eps)
            return memory["mom"]

        return rule

    return make


def adamw_rule(b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    def make(name):
        memory = {"m": 0.0, "v": 0.0}

        def rule(g, w, rate, t):
            memory["m"] = b1 * memory["m"] + (1 - b1) * g
            memory["v"] = b2 * memory["v"] + (1 - b2) * g**2
            m, v = memory["m"] / (1 - b1**t), memory["v"] / (1 - b2**t)
            return rate * (m / (np.sqrt(v) + eps) + decay * w * decays(name))

        return rule

    return make


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"name": "sgd", "momentum": 0.0}, sgd_rule(momentum=0.0)),
        ({"name": "sgd", "momentum": 0.8}, sgd_rule(momentum=0.8)),
        ({"name": "sgd", "nesterov": True}, sgd_rule(nesterov=True)),
        (
            {"name": "sgd", "nesterov": True, "weight_decay": 0.1},
            sgd_rule(nesterov=True, decay=0.1),
        ),
        ({"name": "rmsprop"}, rmsprop_rule()),
        (
            {"name": "rmsprop", "weight_decay": 0.1, "rms_decay": 0.7, "rms_eps": 0.1},
            rmsprop_rule(rho=0.7, eps=0.1, decay=0.1),
        ),
        ({"name": "rmsprop", "momentum": 0.0}, rmsprop_rule(momentum=0.0)),
        ({"name": "adamw"}, adamw_rule()),
        ({"name": "adamw", "weight_decay": 0.3, "b2": 0.9}, adamw_rule(b2=0.9, decay=0.3)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_optimiser_is_the_rule_of_its_paper(config, rule):
    actual, _ = train(config, gradients())
    assert_same(actual, run_reference(rule, gradients()))


def rms(x, axes=None):
    return np.sqrt(np.mean(x**2, axis=axes, keepdims=axes is not None))


def adafactor_rule(rows, columns, decay_rate=0.8, limit=1.0, decay=0.0, block=None, scaled=True):
    """arXiv 1804.04235, algorithms 4 and 5; `rows`, `columns`: dimensions factored, or None."""

    def make(name):
        memory = {"v": 0.0, "row": 0.0, "column": 0.0}

        def rule(g, w, rate, t):
            b2 = 1 - t**-decay_rate
            square = g**2 + 1e-30
            if name in rows:
                r, c = rows[name], columns[name]
                memory["row"] = b2 * memory["row"] + (1 - b2) * square.mean(axis=r, keepdims=True)
                memory["column"] = b2 * memory["column"] + (1 - b2) * square.mean(
                    axis=c, keepdims=True
                )
                mean = memory["row"].mean(axis=c, keepdims=True)
                v = memory["row"] * memory["column"] / mean
            else:
                v = memory["v"] = b2 * memory["v"] + (1 - b2) * square
            axes = block[name] if block else None
            u = g / np.sqrt(v)
            if limit:
                u = u / np.maximum(1.0, rms(u, axes) / limit)
            if scaled:
                u = u * np.maximum(1e-3, rms(w, axes))
            return rate * (u + decay * w * decays(name))

        return rule

    return make


def test_adafactor_is_its_paper():
    config = {"name": "adafactor", "factored_min_size": 4, "weight_decay": 0.1}
    # At least 4 in two dimensions: stem (3, 4, 6) averages 6 in rows and 4 in columns; head 6 and
    # 5.
    rows, columns = {"stem.kernel": 2, "head.kernel": 0}, {"stem.kernel": 1, "head.kernel": 1}
    actual, state = train(config, gradients())
    assert state["factored"].v_row["stem.kernel"].shape == (3, 4)
    assert state["factored"].v_col["head.kernel"].shape == (6,)
    assert_same(actual, run_reference(adafactor_rule(rows, columns, decay=0.1), gradients()), 1e-5)


def test_adafactor_without_clip_and_scale():
    config = {"name": "adafactor", "update_clip": 0.0, "parameter_scale": False}
    actual, _ = train(config, gradients())
    expected = run_reference(adafactor_rule({}, {}, limit=0.0, scaled=False), gradients())
    assert_same(actual, expected, 1e-5)


STACKED = {
    "experts.kernel": ((2, 3, 5, 4), ("layers", "expert", "embed", "mlp")),
    "norm.scale": ((2, 5), ("layers", "embed")),
}


def test_adafactor_treats_each_layer_and_expert_as_a_weight_of_its_own():
    config = {"name": "adafactor", "factored_min_size": 4, "update_clip": 0.5}
    grads = gradients(shapes=STACKED)
    for grad in grads:
        grad["experts.kernel"][0, 1] *= 1000  # one loud expert must not quieten the others
    actual, _ = train(config, grads, STACKED, stacked_axes=("layers", "expert"))
    rule = adafactor_rule(
        {"experts.kernel": 2},
        {"experts.kernel": 3},
        limit=0.5,
        block={"experts.kernel": (2, 3), "norm.scale": (1,)},
    )
    assert_same(actual, run_reference(rule, grads, STACKED), 1e-5)
    for layer in range(2):
        for expert in range(3):
            alone = {"w.kernel": ((5, 4), ("embed", "mlp"))}
            tx = make_optimizer(config, schedule, specs(alone))
            weight = {"w.kernel": jnp.asarray(arrays(0, STACKED)["experts.kernel"][layer, expert])}
            state = tx.init(weight)
            for grad in grads:
                updates, state = tx.update(
                    {"w.kernel": grad["experts.kernel"][layer, expert]}, state, weight
                )
                weight = optax.apply_updates(weight, updates)
            np.testing.assert_allclose(
                actual["experts.kernel"][layer, expert], weight["w.kernel"], rtol=1e-5, atol=1e-6
            )


def test_adafactor_refuses_to_factor_over_experts():
    shapes = {"experts.kernel": ((64, 8, 4), ("expert", "embed", "mlp"))}
    config = {"name": "adafactor", "factored_min_size": 4}
    with pytest.raises(ConfigError, match=r"factored_min_size=4.*experts\.kernel.*expert"):
        make_optimizer(config, schedule, specs(shapes), stacked_axes=("expert",))


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_the_global_norm_is_clipped_before_decay(limit):
    config = {"name": "sgd", "clip_norm": limit, "weight_decay": 0.1}

    def clip(grads, params):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        return {name: g * min(1.0, limit / norm) for name, g in grads.items()}

    actual, _ = train(config, gradients())
    assert_same(actual, run_reference(sgd_rule(decay=0.1), gradients(), prepare=clip))


def test_decay_pattern_chooses_the_weights_that_decay():
    zero = [jax.tree.map(np.zeros_like, arrays(1))]
    config = {"name": "sgd", "weight_decay": 0.5, "decay_pattern": r"norm|^head\."}
    actual, _ = train(config, zero)
    start = arrays(0)
    shrink = {"stem.kernel": 1.0, "norm.scale": 0.95, "head.kernel": 0.95, "head.bias": 0.95}
    assert_same(actual, {name: start[name] * shrink[name] for name in start})


def test_lr_multipliers_multiply():
    config = {"lr_multipliers": ((r"^head\.", 10.0), ("bias", 0.5)), "weight_decay": 0.1}
    factors = {"head.kernel": 10.0, "head.bias": 5.0}
    actual, _ = train(config, gradients())
    rule = sgd_rule(decay=0.1, multiplier=lambda name: factors.get(name, 1.0))
    assert_same(actual, run_reference(rule, gradients()), 1e-5)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "adafactor"])
def test_frozen_weights_keep_their_bits_and_have_no_state(name):
    config = {"name": name, "frozen": ("^stem", "norm"), "weight_decay": 0.1, "clip_norm": 1.0}
    actual, state = train(config, gradients())
    start = arrays(0)
    for frozen in ("stem.kernel", "norm.scale"):
        np.testing.assert_array_equal(actual[frozen], start[frozen])
    assert not np.array_equal(actual["head.bias"], start["head.bias"])
    slots = {"sgd": 1, "rmsprop": 2, "adamw": 2, "adafactor": 3}[name]
    counters = {"sgd": 1, "rmsprop": 1, "adamw": 2, "adafactor": 2}[name]
    assert len(jax.tree.leaves(state)) == slots * 2 + counters
    paths = jax.tree_util.tree_leaves_with_path(state)
    assert not any("stem" in jax.tree_util.keystr(path) for path, _ in paths)


def test_frozen_weights_do_not_count_in_the_clipped_norm():
    grads = gradients()
    loud = [g | {"stem.kernel": g["stem.kernel"] * 1e6} for g in grads]
    config = {"frozen": ["stem"], "clip_norm": 1.0}
    quiet_result, _ = train(config, grads)
    loud_result, _ = train(config, loud)
    assert_same(loud_result, jax.tree.map(np.asarray, quiet_result), 0.0)


def test_frozen_weights_keep_negative_zero_and_nan():
    tx = make_optimizer({"frozen": ["norm"]}, schedule, specs())
    params = arrays(0) | {"norm.scale": np.array([-0.0, 0.0, np.nan, np.inf, 1, -1], "f4")}
    params = jax.tree.map(jnp.asarray, params)

    def apply(params, grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)

    for run in (apply, jax.jit(apply)):  # a compiler may drop the addition of 0, or not
        after = run(params, arrays(1))["norm.scale"]
        assert np.asarray(after).tobytes() == np.asarray(params["norm.scale"]).tobytes()


def test_gradients_of_frozen_weights_may_be_left_out():
    config = {"frozen": ["stem"]}
    whole, _ = train(config, gradients())
    trained = trained_names(config, specs())
    assert trained == {"norm.scale", "head.kernel", "head.bias"}
    part, _ = train(
        config, [{n: g for n, g in grad.items() if n in trained} for grad in gradients()]
    )
    assert_same(part, jax.tree.map(np.asarray, whole), 0.0)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "adamww"}, ("optimizer.name='adamww'", "'adamw'", "rmsprop")),
        ({"momentun": 0.9}, ("optimizer.momentun", "optimizer.momentum")),
        ({"momentum": 1.0}, ("optimizer.momentum=1.0",)),
        ({"momentum": "high"}, ("optimizer.momentum", "high")),
        ({"nesterov": 1}, ("optimizer.nesterov",)),
        ({"weight_decay": -1e-4}, ("optimizer.weight_decay=-0.0001",)),
        ({"clip_norm": float("inf")}, ("optimizer.clip_norm",)),
        ({"eps": 0.0}, ("optimizer.eps",)),
        ({"frozen": ["stemm.kernel"]}, ("optimizer.frozen", "stemm.kernel", "'stem.kernel'")),
        ({"frozen": ["^heed"]}, ("'head.",)),
        ({"frozen": ["("]}, ("optimizer.frozen", "regular expression")),
        ({"frozen": [3]}, ("optimizer.frozen", "3")),
        ({"frozen": ["."]}, ("optimizer.frozen", "no weight is left")),
        ({"lr_multipliers": [("hed", 2.0)]}, ("optimizer.lr_multipliers", "'head.")),
        ({"lr_multipliers": ["head"]}, ("optimizer.lr_multipliers", "pair")),
        ({"lr_multipliers": [("head", -1.0)]}, ("optimizer.lr_multipliers", "a number above 0")),
        ({"lr_multipliers": [("head", "2")]}, ("optimizer.lr_multipliers", "pair")),
        ({"weight_decay": 0.1, "decay_pattern": "kernal"}, ("optimizer.decay_pattern", "kernel")),
    ],
)
def test_what_cannot_work_is_refused_by_name(config, words):
    with pytest.raises(ConfigError) as caught:
        make_optimizer(config, schedule, specs())
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "adafactor", "lion", "nadam"])
def test_eight_devices_with_sharded_slots_are_one_device(name):
    shapes = {
        "body.kernel": ((8, 12), ("conv_in", "conv_out")),
        "head.kernel": ((16, 5), ("features", "classes")),
        "head.bias": ((5,), ("classes",)),
    }
    split = {"body.kernel": P("data", None), "head.kernel": P("data", None), "head.bias": P(None)}
    config = {"name": name, "clip_norm": 1.0, "factored_min_size": 5}
    config["weight_decay"] = 0.0 if name == "nadam" else 0.1  # nadam has none
    whole, _ = train(config, gradients(3, shapes), shapes)

    eight = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    places = {name: NamedSharding(eight, spec) for name, spec in split.items()}
    tx = make_optimizer(config, schedule, specs(shapes))
    params = jax.device_put(arrays(0, shapes), places)
    slots = slot_shardings(jax.eval_shape(tx.init, params), specs(shapes), places, eight)
    state = jax.jit(tx.init, out_shardings=slots)(params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, in_shardings=(places, slots, places), out_shardings=(places, slots))
    for grads in gradients(3, shapes):
        params, state = step(params, state, jax.device_put(grads, places))
    assert_same(params, jax.tree.map(np.asarray, whole), 1e-6)
    if name != "adafactor":
        held = [x for x in jax.tree.leaves(state) if x.shape == (8, 12)]
        assert held
        assert all(x.addressable_shards[0].data.shape == (1, 12) for x in held)


def test_every_option_has_a_one_line_meaning():
    assert all(doc and "\n" not in doc for _, doc in defaults().values())
