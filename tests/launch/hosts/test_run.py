"""Many hosts as real processes on this machine: start, agreement, stopping together, and the loss
of one.
"""

import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.compiler import flags
from tests.launch.commands import TINY, losses, records, run
from tests.launch.hosts.simulated import Hosts, environment, free_port

BOUND = 1200  # seconds: nobody is left behind for ever, however busy the machine is


@pytest.mark.thorough
def test_all_join_and_add_up_one_number(tmp_path):
    with Hosts(tmp_path, 2, "--steps=3") as hosts:
        assert hosts.wait()[0] == [0, 0], hosts.error(0) + hosts.error(1)
        # Process i contributes step + i: 2 step + 1.
        assert "step 1 3\nstep 2 5\nstep 3 7\n" in hosts.output(0)
        assert hosts.output(0).splitlines()[-3:] == hosts.output(1).splitlines()[-3:]


@pytest.mark.thorough
@pytest.mark.parametrize("alone", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_who_is_missing_is_named(tmp_path, alone):
    with Hosts(tmp_path, 2, "--start_timeout=2", started=[alone]) as hosts:
        codes, seconds = hosts.wait()
        words = hosts.error(0 if alone == 0 else 1)
    assert codes == [76]
    assert seconds < BOUND
    assert ("missing: process 1" if alone == 0 else "Process 0 could not be reached") in words
    assert "Traceback" not in words


def test_processes_that_differ_are_refused_before_the_first_step(tmp_path):
    with Hosts(tmp_path, 2, lambda i: f"--config.seed={i}") as hosts:
        codes, _ = hosts.wait()
        for index in range(2):
            words = " ".join(hosts.error(index).split())
            assert "--config.seed is 0 on process 0" in words
            assert "and 1 on process 1" in words
            assert "step" not in hosts.output(index)
    assert codes == [64, 64]


# ---------------------------------------------------------------- stopping and failing


@pytest.mark.slow
def test_a_notice_to_one_process_stops_all_at_one_step(tmp_path):
    with Hosts(tmp_path, 2) as hosts:
        hosts.until(3)
        hosts.processes[1].send_signal(signal.SIGTERM)
        codes, seconds = hosts.wait()
        assert codes == [75, 75], hosts.error(0) + hosts.error(1)
        assert seconds < BOUND
        last = [hosts.output(i).splitlines()[-1] for i in range(2)]
        assert last[0] == last[1]
        step = last[0].split()[1]
        assert all(f"Stopped after step {step}." in hosts.error(i) for i in range(2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("1:3:bug", 1, "process 1 .* failed first: ValueError: a bug in one process"),
        pytest.param(
            *("0:3:data", 65, "process 0 .* failed first: shard 3 is not there"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_an_error_in_one_process_ends_all_with_its_code_and_is_named(tmp_path, fault, code, words):
    with Hosts(tmp_path, 2, f"--fault={fault}") as hosts:
        codes, seconds = hosts.wait()
        other = hosts.error(1 - int(fault[0]))
    assert codes == [code, code], other
    assert seconds < BOUND
    assert re.search(words, other), other
    assert "Traceback" not in other


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_killed_process_takes_no_other_with_it_in_silence(tmp_path, victim):
    with Hosts(tmp_path, 2, "--heartbeat=10") as hosts:
        hosts.until(2)
        hosts.processes[victim].kill()
        codes, seconds = hosts.wait(1 - victim)
        assert codes == [76], hosts.error(1 - victim)
        assert seconds < BOUND
        assert "the loss of another\nprocess" in hosts.error(1 - victim)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "fault", "words"),
    [
        (2, "--fault=1:5:hang:2", "Stuck: step 5 has not ended"),
        pytest.param(
            *(1, "--fault=0:0:hang:2", "Stuck: the start of the run has not ended"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_stuck_process_shows_its_stacks_and_ends_the_run(tmp_path, count, fault, words):
    """In a step, and before the first one, where a single process is watched as well."""
    with Hosts(tmp_path, count, fault, "--config.stuck_after=1000") as hosts:
        codes, seconds = hosts.wait()
        error = hosts.error(count - 1)
    assert codes == [76] * count
    assert seconds < BOUND
    assert words in error
    lines = Path(__file__).with_name("simulated.py").read_text().splitlines()
    asleep = next(i for i, line in enumerate(lines, start=1) if "time.sleep(600)" in line)
    assert f'simulated.py", line {asleep} in hang' in error


@pytest.mark.thorough  # a quarter of a minute of waiting
def test_a_late_process_is_waited_for(tmp_path):
    with Hosts(tmp_path, 2, "--fault=1:3:sleep:12", "--steps=5", "--heartbeat=8") as hosts:
        assert hosts.wait()[0] == [0, 0], hosts.error(0)


# The same at the settings that users have, with more processes, and processes that are stopped.


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_leave_in_time_at_the_default_heartbeat(tmp_path, count, number, victim):
    with Hosts(tmp_path, count) as hosts:
        hosts.until(3)
        hosts.processes[victim].send_signal(number)
        rest = [i for i in range(count) if i != victim]
        codes, seconds = hosts.wait(*rest)
        assert codes == [76] * (count - 1), [hosts.error(i) for i in rest]
        assert seconds < BOUND


@pytest.mark.slow
def test_the_odd_one_of_four_is_named(tmp_path):
    with Hosts(tmp_path, 4, lambda i: f"--config.steps={7 if i == 2 else 5}") as hosts:
        assert hosts.wait()[0] == [64] * 4
        words = " ".join(hosts.error(3).split())
        assert "--config.steps is 7 on process 2" in words
        assert "and 5 on the other 3" in words


@pytest.mark.slow
def test_one_notice_stops_four_processes_at_one_step(tmp_path):
    with Hosts(tmp_path, 4) as hosts:
        hosts.until(3)
        hosts.processes[2].send_signal(signal.SIGTERM)
        assert hosts.wait()[0] == [75] * 4
        assert len({hosts.output(i).splitlines()[-1] for i in range(4)}) == 1


# ---------------------------------------------------------------- training


VISION = (*TINY, "--config.steps=4", "--config.batch_size=16", "--config.log_every=1")
TEXT = (
    "--config=configs/st_moe_tiny.py",
    "--config.model.d_model=16",
    "--config.model.d_ff=32",
    "--config.model.num_heads=2",
    "--config.model.head_dim=8",
    "--config.data.encoder_length=32",
    "--config.data.decoder_length=16",
    "--config.batch_size=16",
    "--config.eval_every=0",
    "--config.eval_batches=2",
    "--config.checkpoint.every=5",
    "--config.steps=4",
)
DENSE = (
    *TEXT,
    "--config.routing.num_experts=0",
    "--config.model.encoder_blocks=1",
    "--config.model.decoder_blocks=1",
)


def compare(tmp_path, count, arguments, name):
    """Trains on `count` processes, and on as many devices of one; returns both loss series."""
    (tmp_path / "hosts").mkdir()
    together, alone = f"--workdir={tmp_path / 'many'}", f"--workdir={tmp_path / 'one'}"
    with Hosts(tmp_path / "hosts", count, *arguments, together, module="launch.train") as hosts:
        assert hosts.wait(seconds=1200)[0] == [0] * count, hosts.error(0) + hosts.error(1)
        assert "Traceback" not in hosts.error(0)
    done = run("train", *arguments, alone, cache=tmp_path / "cache", XLA_FLAGS=flags(count))
    assert done.returncode == 0, done.stderr
    found = [
        [(r["step"], r["kind"], r[name]) for kind in ("train", "eval") for r in records(d, kind)]
        for d in (tmp_path / "many", tmp_path / "one")
    ]
    assert len(found[0]) == 5
    assert [row[:2] for row in found[0]] == [row[:2] for row in found[1]]
    return ([row[2] for row in rows] for rows in found)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        pytest.param(DENSE, "cross_entropy", marks=pytest.mark.slow),
        pytest.param(VISION, "loss", marks=pytest.mark.slow),
        pytest.param(TEXT, "cross_entropy", marks=pytest.mark.slow),
    ],
    ids=["dense", "vision", "mixture"],
)
def test_two_processes_train_as_one_does(tmp_path, arguments, name):
    many, one = compare(tmp_path, 2, arguments, name)
    assert many == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_run_of_two_goes_on_after_a_notice_and_after_a_kill(tmp_path):
    """What is lost is at most what was trained since the last checkpoint, and not a bit of what
    comes after it differs from a run that nothing happened to.
    """
    settings = (*TINY, "--config.steps=30", f"--workdir={tmp_path / 'run'}")

    def trained(folder, until=0, number=None):
        (tmp_path / folder).mkdir()
        with Hosts(tmp_path / folder, 2, *settings, module="launch.train") as hosts:
            deadline = time.monotonic() + 1200
            while number and len(losses(tmp_path / "run")) < until:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if number:
                hosts.processes[1].send_signal(number)
            codes, seconds = hosts.wait(seconds=1200)
            return codes, seconds, hosts.output(0)

    codes, _, _ = trained("notice", 3, signal.SIGTERM)
    assert codes == [75, 75]
    saved = len(losses(tmp_path / "run"))
    codes, seconds, output = trained("kill", saved + 8, signal.SIGKILL)
    assert codes == [76, -signal.SIGKILL]
    assert seconds < BOUND
    assert f"going on from {saved}" in output
    codes, _, output = trained("rest")
    assert codes == [0, 0]
    assert "going on from" in output
    settings = (*settings[:-1], f"--workdir={tmp_path / 'whole'}")
    assert trained("unbroken")[0] == [0, 0]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
    where = [f"--workdir={tmp_path / str(i)}" for i in range(2)]
    with Hosts(tmp_path, 2, *VISION, lambda i: where[i], module="launch.train") as hosts:
        assert hosts.wait(seconds=1200)[0] == [64, 64]
        assert "run.lock in --workdir" in " ".join(hosts.error(0).split())


def test_a_port_that_is_taken_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        address = f"--coordinator=127.0.0.1:{taken.getsockname()[1]}"
        done = run(
            "train",
            *TINY,
            f"--workdir={tmp_path}",
            address,
            "--processes=2",
            "--process=0",
            cache=tmp_path,
            **{k: v for k, v in environment().items() if k == "XLA_FLAGS"},
        )
    assert done.returncode == 64
    assert "another program uses it" in " ".join(done.stderr.split())
