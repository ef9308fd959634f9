"""Which steps `--profile` means, and what is said of a trace that was cut off or did not begin."""

import contextlib
import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from trainlib.errors import ConfigError
from trainlib.step.profile import FOLDER, Profile, Steps, steps


@pytest.mark.parametrize(
    ("text", "start", "traced"),
    [("10:15", 0, (10, 15)), ("10:15", 7, (10, 15)), ("7:7", 0, (7, 7)), ("5", 0, (3, 7))]
    + [("1", 100, (103, 103))],
)
def test_the_steps_of_a_flag(text, start, traced):
    assert steps(text).after(start) == traced


@pytest.mark.parametrize("text", ["", "0", "5:3", "0:3", "a", "1:2:3", "-1", "1.5", ":4"])
def test_a_flag_that_names_no_steps_is_refused(text):
    with pytest.raises(ConfigError, match="--profile=10:15"):
        steps(text)


def run(asked, tmp_path, *, start=0, total=6):
    """A loop as `trainlib.run.session` makes it; returns what was said."""
    said, step = [], jax.jit(lambda x: x @ x)
    profile = Profile(asked, tmp_path, start)
    with profile.run(said.append, contextlib.nullcontext):
        for number in range(start + 1, start + total + 1):
            with profile.step(number):
                profile.dispatched(number, step(jnp.eye(8)))
    return said


def traced_steps(tmp_path):
    (path,) = (tmp_path / FOLDER).glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    return path, sorted(map(int, marks))


def test_a_trace_has_the_steps_that_were_asked_for(tmp_path):
    (said,) = run(Steps(first=2, last=4), tmp_path)
    path, numbers = traced_steps(tmp_path)
    assert numbers == [2, 3, 4]
    for words in ("steps 2 to 4:", str(path), "https://ui.perfetto.dev", "tensorboard --logdir="):
        assert words in said


def test_a_run_that_ends_within_the_steps_keeps_what_there_is(tmp_path):
    (said,) = run(Steps(count=50), tmp_path)
    assert traced_steps(tmp_path)[1] == [3, 4, 5, 6]
    assert "the run ended before 52" in said


def test_steps_that_did_not_come_are_said(tmp_path):
    (said,) = run(Steps(first=2, last=4), tmp_path, start=10)
    assert "no profile was written" in said
    assert "11 to 16" in said
    assert not (tmp_path / FOLDER).exists()


def test_no_profile_says_nothing(tmp_path):
    assert run(None, tmp_path) == []
