"""Optimisers of optax by name: they step as optax does, and what they do not take is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trainlib.step.test_optimizers import (
    arrays,
    assert_same,
    decays,
    gradients,
    schedule,
    specs,
    train,
)
from trainlib.errors import ConfigError
from trainlib.step import optax_rules
from trainlib.step.optimizers import make_optimizer


def optax_result(rule):
    """Weights after the gradients of the test, by optax alone."""
    params = jax.tree.map(jnp.asarray, arrays(0))
    state = rule.init(params)
    for grads in gradients():
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


MASK = {name: decays(name) for name in specs()}


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"name": "lion"}, optax.lion(schedule, weight_decay=0.0)),
        (
            {"name": "lion", "options": ("b1=0.8", "b2=0.7"), "weight_decay": 0.1},
            optax.lion(schedule, b1=0.8, b2=0.7, weight_decay=0.1, mask=MASK),
        ),
        ({"name": "adabelief"}, optax.adabelief(schedule)),
        ({"name": "nadam", "options": ["eps=0.001"]}, optax.nadam(schedule, eps=1e-3)),
        (
            {"name": "novograd", "options": ["weight_decay=0.1"]},
            optax.novograd(schedule, weight_decay=0.1),
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_rule_is_the_one_of_optax(config, rule):
    actual, _ = train(config, gradients())
    assert_same(actual, optax_result(rule))


@pytest.mark.thorough
@pytest.mark.parametrize("name", optax_rules.names())
def test_every_rule_of_optax_steps_or_says_why_not(name):
    """Those that need more than gradients are refused when they are built."""
    config = {"name": name, "options": ["seed=0"] if name == "noisy_sgd" else []}
    if name == "lbfgs":
        with pytest.raises(ConfigError, match=r"lbfgs.*gradients and weights alone"):
            make_optimizer(config, schedule, specs())
        return
    weights, _ = train(config, gradients(2))
    assert all(np.isfinite(value).all() for value in weights.values())


def test_frozen_weights_clipping_and_multipliers_hold_for_any_rule():
    config = {
        "name": "lion",
        "frozen": ["^stem"],
        "clip_norm": 1.0,
        "lr_multipliers": [("head", 0.0001)],
    }
    actual, state = train(config, gradients(1))
    np.testing.assert_array_equal(actual["stem.kernel"], arrays(0)["stem.kernel"])
    moved = np.abs(actual["head.bias"] - arrays(0)["head.bias"])  # lion steps by the rate
    np.testing.assert_allclose(moved, 0.1 * 0.0001, rtol=0.05)
    assert set(state) == {"clip", "optax", "multiply"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "lionn"}, ("optimizer.name='lionn'", "'lion'")),
        ({"name": "sm3"}, ("optimizer.name='sm3'",)),  # its rate is a number, no schedule
        ({"name": "lion", "options": ["b3=0.9"]}, ("b3", "optax.lion", "b1")),
        ({"name": "lion", "options": ["b1=high"]}, ("options: b1", "a finite number")),
        ({"name": "lion", "options": ["b1=0.9", "b1=0.8"]}, ("b1 is given twice",)),
        ({"name": "lion", "options": ["b1"]}, ("optimizer.options", "NAME=VALUE")),
        ({"name": "lion", "options": ["learning_rate=1"]}, ("learning_rate", "`schedule`")),
        ({"name": "lion", "options": ["weight_decay=1"]}, ("optimizer.weight_decay sets it",)),
        ({"name": "nadam", "options": ["nesterov=2"]}, ("options: nesterov", "true or false")),
        ({"name": "adabelief", "weight_decay": 0.1}, ("optax.adabelief has no weight decay",)),
        ({"name": "sgd", "options": ["momentum=0.5"]}, ("optimizer.options", "keys of its own")),
    ],
)
def test_what_a_rule_does_not_take_is_refused_by_name(config, words):
    with pytest.raises(ConfigError) as caught:
        make_optimizer(config, schedule, specs())
    assert all(word in str(caught.value) for word in words), str(caught.value)
