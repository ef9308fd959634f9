"""Slots of optimisers lie as their weights do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.trainlib.step.test_optimizers import arrays, schedule, specs
from trainlib.step.optimizers import make_optimizer
from trainlib.step.slots import slot_shardings


def mesh():
    return Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))


PLACES = {
    "stem.kernel": P(None, "data", "model"),
    "norm.scale": P("model"),
    "head.kernel": P("data", None),
    "head.bias": P(None),
}


def shardings_of(config):
    tx = make_optimizer(config, schedule, specs())
    state = jax.eval_shape(tx.init, jax.tree.map(jnp.asarray, arrays(0)))
    places = {name: NamedSharding(mesh(), spec) for name, spec in PLACES.items()}
    return state, slot_shardings(state, specs(), places, mesh())


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_slots_follow_their_weights(name):
    state, placed = shardings_of({"name": name, "frozen": ["head.bias"]})
    assert jax.tree.structure(state) == jax.tree.structure(placed)
    seen = 0
    for path, sharding in jax.tree_util.tree_leaves_with_path(placed):
        weight = getattr(path[-1], "key", None)
        assert sharding.spec == (PLACES[weight] if weight in PLACES else P())
        seen += weight in PLACES
    assert seen == 3 * {"sgd": 1, "rmsprop": 2, "adamw": 2}[name]


def test_factored_slots_take_the_part_of_the_spec_that_is_left():
    state, placed = shardings_of({"name": "adafactor", "factored_min_size": 4})
    factored = placed["factored"]
    # stem (3, 4, 6): the row moment drops 6 ("model"), the column moment drops 4 ("data").
    assert factored.v_row["stem.kernel"].spec == P(None, "data")
    assert factored.v_col["stem.kernel"].spec == P(None, "model")
    assert factored.v["stem.kernel"].spec == P()
    # head (6, 5): rows drop 6 ("data"), columns drop 5.
    assert factored.v_row["head.kernel"].spec == P(None)
    assert factored.v_col["head.kernel"].spec == P("data")
    assert factored.v["norm.scale"].spec == P("model")
    assert factored.v_row["norm.scale"].spec == P()
    assert factored.count.spec == P()
    assert all(
        len(sharding.spec) <= len(slot.shape)
        for slot, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True)
    )


@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 4), (7, 3, 3), (3, 7, 3, 7), (5, 5, 2, 9, 5)])
def test_factored_slots_agree_with_optax_when_sizes_tie(shape):
    shapes = {"w.kernel": (shape, tuple("abcdefg"[: len(shape)]))}
    tx = make_optimizer({"name": "adafactor", "factored_min_size": 2}, schedule, specs(shapes))
    state = jax.eval_shape(tx.init, {"w.kernel": jnp.zeros(shape)})
    place = {"w.kernel": NamedSharding(mesh(), P(*[None] * len(shape)))}
    factored = slot_shardings(state, specs(shapes), place, mesh())["factored"]
    # Strict: had the rule dropped another dimension than optax, sizes would differ and it would
    # raise.
    assert len(factored.v_row["w.kernel"].spec) == len(shape) - 1


def test_slots_of_unknown_form_are_refused():
    places = {name: NamedSharding(mesh(), spec) for name, spec in PLACES.items()}
    for state in (
        {"mystery": {"stem.kernel": jnp.zeros((4, 6))}},
        {"momentum": {"elsewhere": jnp.zeros((4, 6))}},
        optax.TraceState(trace={"head.bias": jnp.zeros((5, 1))}),
    ):
        with pytest.raises(ValueError, match="follows from no weight"):
            slot_shardings(state, specs(), places, mesh())


def test_slots_of_any_rule_of_optax_lie_as_their_weights():
    state, placed = shardings_of({"name": "lion", "frozen": ["head.bias"]})
    moments = placed["optax"][0].mu
    assert {name: sharding.spec for name, sharding in moments.items()} == {
        name: PLACES[name] for name in ("stem.kernel", "norm.scale", "head.kernel")
    }
    assert jax.tree.structure(state) == jax.tree.structure(placed)


def test_slots_of_optax_that_are_smaller_than_their_weight_are_replicated_and_larger_ones_refused():
    places = {name: NamedSharding(mesh(), spec) for name, spec in PLACES.items()}

    def spec_of(slot, name="stem.kernel"):
        state = {"optax": ({"sums": {name: jnp.zeros(slot)}},)}
        return jax.tree.leaves(slot_shardings(state, specs(), places, mesh()))[0].spec

    assert spec_of((4,)) == P()
    assert spec_of((2,), "of_no_weight") == P()
    assert spec_of((10, 3, 4, 6)) == P(None, *PLACES["stem.kernel"])
    with pytest.raises(ValueError, match="follows from no weight"):
        spec_of((4, 3, 6))
