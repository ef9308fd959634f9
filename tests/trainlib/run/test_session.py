"""What surrounds a training loop, with steps and evaluations that the test makes up."""

import dataclasses
import functools
import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trainlib.checkpoint import states
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.config import COMMON, from_schema
from trainlib.errors import ConfigError, NumericAbort, Preempted
from trainlib.run import session as session_lib
from trainlib.run.session import Session
from trainlib.sharding.mesh import make_mesh
from trainlib.step import train_state
from trainlib.step.plan import Plan


class Source:
    digest = "of the records"

    def __len__(self):
        return 100


@dataclasses.dataclass
class Figures:
    loss: float

    def flat(self):
        return {"loss": self.loss}

    def phrase(self):
        return f"loss {self.loss}"


@pytest.fixture(scope="module")
def after():
    """Number -> the state after so many steps."""
    state, _ = states.make(one())
    return {n: dataclasses.replace(state, step=jnp.int32(n)) for n in range(9)}


def one():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opened(**changes)`: a session on one workdir, of six steps, saved and evaluated at even
    ones."""
    # TensorBoard's writer brings torch in, where that is installed.
    writers = functools.partial(session_lib.Writers, tensorboard=False)
    monkeypatch.setattr(session_lib, "Writers", writers)

    def make(**changes):
        config = from_schema(COMMON)
        config.update(name="test", steps=6, batch_size=8, eval_every=2, log_every=1)
        config.checkpoint.every = 2
        with config.unlocked():
            config.family = "vitattn"  # a workdir without it is no run's
        config.update(changes)
        mesh, abstract = one(), states.weights()
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        shardings = train_state.state_shardings(
            abstract, optimizer, mesh, states.RULES, with_ema=True
        )
        plan = Plan(
            config,
            mesh,
            states.RULES,
            None,
            abstract,
            lambda count: 0.1,
            optimizer,
            shardings,
            frozenset(abstract.params),
        )
        return Session[Figures](
            plan,
            tmp_path,
            Source(),
            fixed=("seed", "batch_size"),
            began=time.monotonic(),
            forward_flops=lambda: 1.0,
        )

    return make


def sums(number):
    values = {"loss": 1 / number, "skipped": 0, "skipped_in_row": 0}
    return {name: (np.float32(value), np.float32(1)) for name, value in values.items()}


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def loop(session, after, stop_at=None, stop_in_evaluation=None):
    """The loop of the families, without arithmetic; returns the numbers of its steps."""
    done = []

    def evaluate(number):
        with session.evaluating(number):
            if number == stop_in_evaluation:
                ask()
            session.give_up()
            session.result = Figures(10.0 * number)

    with session.running():
        if session.eval_pending:
            evaluate(session.start)
        for number, batch in session.steps(iter(range(session.start, 99))):
            assert batch == number - 1
            done.append(number)
            if number == stop_at:
                ask()
            session.record(number, sums(number))
            if session.eval_due(number):
                evaluate(number)
            if session.save_due(number):
                session.save(number, after[number])
    return done


def logged(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if r["kind"] == kind]


def metrics(workdir):
    kept = Checkpoints(workdir / "checkpoints").manifests()
    return {number: entry.metrics for number, entry in kept.items()}


def test_a_run_saves_with_what_was_measured_and_is_complete(opened, after, tmp_path, capsys):
    session = opened()
    assert not session.complete
    session.announce("what it is")
    assert loop(session, after) == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "config.json").exists()
    assert logged(tmp_path, "train") == [1, 2, 3, 4, 5, 6]
    assert logged(tmp_path, "eval") == [2, 4, 6]
    assert metrics(tmp_path)[6] == {"loss": 60.0}
    session.report({"loss": "60"}, "1/s", {}, [("r3", "torn")], "records", {"loss": 60.0})
    assert "1 records: r3: torn" in capsys.readouterr().out
    again = opened()
    assert again.complete
    assert again.report_complete() == 0
    assert "Complete: 6 steps are done" in capsys.readouterr().out


def test_the_first_step_is_read_before_the_second_is_dispatched(opened, tmp_path):
    session = opened()
    with session.running():
        for number, _ in session.steps(iter(range(6))):
            session.record(number, sums(number))
            # Rates count from the end of the first step; others are read behind the next.
            assert logged(tmp_path, "train") == list(range(1, max(2, number)))


def test_a_request_saves_after_the_step_and_the_next_start_makes_up(opened, after, tmp_path):
    session = opened()
    with pytest.raises(Preempted, match="after step 4 of 6"):
        loop(session, after, stop_at=4)
    # Step 4 was to be evaluated too, which a run that is to stop leaves to the next one.
    assert logged(tmp_path, "eval") == [2]
    assert not metrics(tmp_path)[4]
    session = opened()
    assert (session.start, session.eval_pending) == (4, True)
    assert int(session.state.step) == 4
    assert loop(session, after) == [5, 6]
    assert logged(tmp_path, "eval") == [2, 4, 6]
    assert metrics(tmp_path)[4] == {"loss": 40.0}


def test_a_request_in_an_evaluation_leaves_it_to_the_next_start(opened, after, tmp_path):
    with pytest.raises(Preempted, match="after step 6 of 6"):
        loop(opened(), after, stop_in_evaluation=6)
    session = opened()
    assert session.eval_pending
    assert not session.complete
    assert loop(session, after) == []
    assert metrics(tmp_path)[6] == {"loss": 60.0}
    complete = opened()
    assert complete.complete
    complete.report_complete()


def test_what_may_change_is_said_and_what_may_not_is_refused(opened, after, capsys):
    loop(opened(steps=2), after)
    session = opened(steps=4)
    session.announce("")
    assert "changed since step 2: steps: 2 -> 4" in capsys.readouterr().out
    assert loop(session, after) == [3, 4]
    with pytest.raises(ConfigError, match="batch_size: 8 -> 16"):
        opened(batch_size=16, steps=8)


def test_what_a_failed_evaluation_found_is_kept(opened, tmp_path):
    session = opened()
    said = pytest.raises(NumericAbort, match=r"not finite.*odd\.json")
    with said, session.running(), session.evaluating(1):
        raise NumericAbort("not finite.", evidence=("odd.json", "[1]"))
    assert (tmp_path / "odd.json").read_text() == "[1]"
