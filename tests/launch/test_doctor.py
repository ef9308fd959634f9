"""`launch.doctor`: what it says of versions, disks, data and devices, and its exit codes."""

import json
import subprocess
import sys
import types

import jax
import pytest

from configs.common import load
from launch.doctor import configuration, machine, measure, software
from launch.doctor.machine import GIB
from launch.doctor.report import FAILED, NOTE, OK, Finding, guarded
from launch.hosts import find
from tests.launch.hosts.simulated import ROOT, Hosts, environment
from trainlib.errors import DataError, PeerLost


def examine(*arguments, **extra):
    return subprocess.run(
        [sys.executable, "-m", "launch.doctor", "--seconds=0.2", *arguments],
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=1200,
    )


@pytest.mark.thorough
def test_a_sound_machine_is_ready(tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    config = "--config=configs/resnet50.py:digits"
    done = examine(config, f"--workdir={tmp_path / 'not' / 'yet'}", XLA_FLAGS=flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Ready.\n")
    for words in ("tested 3.11 to 3.13", "2 x cpu", "1,437 training records", "TFLOP/s", "GB/s"):
        assert words in done.stdout
    assert "over 2 devices" in done.stdout
    assert "FAILED" not in done.stdout
    assert "the checkpoints of this configuration take" in done.stdout
    assert not list(tmp_path.rglob(".doctor*"))


@pytest.mark.thorough
def test_what_fails_decides_the_exit_code(tmp_path):
    config = ("--config=configs/resnet50.py:digits", f"--config.data.source=folder:{tmp_path}")
    done = examine(*config, "--config.batch_size=30", "--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["data"]["state"] == FAILED
    assert str(tmp_path) in found["data"]["text"]
    assert found["configuration"]["state"] == OK
    assert done.returncode == 65
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_machines_are_compared_and_measured_together(tmp_path):
    with Hosts(tmp_path, 2, "--seconds=0.2", module="launch.doctor") as hosts:
        assert hosts.wait()[0] == [0, 0], hosts.error(0) + hosts.error(1)
        for index in range(2):
            assert "2 x cpu, 1 of them here, 2 processes" in hosts.output(index)
            assert "GB/s over 2 devices" in hosts.output(index)


# ---------------------------------------------------------------- single checks


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("3.10.4", FAILED),
        ("3.11.0", OK),
        ("3.12.9", OK),
        ("3.13.1", OK),
        ("3.14.0", NOTE),
        ("4.0.0", NOTE),
    ],
)
def test_python_versions(version, state):
    assert software.python_version(version).state == state


def test_constraints_are_read_for_the_python_at_hand():
    text = (ROOT / "constraints.txt").read_text()
    old, new = software.tested_versions(text, (3, 11)), software.tested_versions(text, (3, 12))
    assert old["jax"] == "0.10.2"
    assert software._order(new["jax"]) > software._order(old["jax"])
    assert old["orbax-checkpoint"] == new["orbax-checkpoint"]
    assert set(software.PACKAGES) <= set(old)


def test_the_lowest_versions_are_those_of_the_package():
    assert software.lowest_versions()["jax"] == "0.10.2"


@pytest.mark.parametrize(
    ("version", "tested", "lowest", "state"),
    [
        ("0.10.2", "0.10.2", "0.10.2", OK),
        ("0.11.0", "0.10.2", "0.10.2", NOTE),
        ("0.9.9", "0.10.2", "0.10.2", FAILED),
        ("0.10.10", "0.10.2", "0.10.9", NOTE),
        ("1.0", "", "", OK),
    ],
)
def test_versions_against_the_tested_range(version, tested, lowest, state):
    assert software.compared("jax", version, tested, lowest).state == state


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    assert machine.disk(tmp_path, probe=1000).state in (OK, NOTE)
    monkeypatch.setattr(machine.os, "fsync", refuse)
    found = machine.disk(tmp_path / "new")
    assert (found.state, found.code) == (FAILED, 74)
    assert "No space left on device" in found.text
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_for_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(
        machine.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=20 * GIB)
    )
    # Keep 3, write one more, keep the best as well: 5 checkpoints of 4.1 GiB.
    found = machine.disk(tmp_path, int(5 * 4.1 * GIB), probe=1000)
    assert (found.state, found.code) == (FAILED, 74)
    assert "take 20.5 GiB: 1 GiB too few" in found.text
    there = tmp_path / "checkpoints" / "100"
    there.mkdir(parents=True)
    with open(there / "data", "wb") as file:
        file.truncate(GIB)
    found = machine.disk(tmp_path, int(5 * 4.1 * GIB), probe=1000)
    assert found.state == OK
    assert "1.0 of them are there" in found.text


def test_checkpoints_are_those_kept_one_more_and_the_best():
    kept = {"checkpoint.keep": "4", "checkpoint.best": ""}
    config = load.from_flags("configs/resnet50.py:digits", kept).config
    plans = []
    assert configuration.planned(config, plans).state == OK
    one = configuration.checkpoint_bytes(plans[0]) / 5
    # Weights, momentum and moving average in f32, beside small statistics.
    assert one == pytest.approx(12 * plans[0].abstract.param_count, rel=0.01)
    config.checkpoint.best = "top1"
    assert configuration.checkpoint_bytes(plans[0]) == 6 * one


MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\n"


@pytest.mark.parametrize(
    ("group", "files", "free"),
    [
        ("", {}, 48),
        # Version 2, in a container: the path is the one outside. 10 - (7 - 3 dropped at will).
        ("0::/pod/1", {"": ("10", "7", "3")}, 6),
        ("0::/pod/1", {"": ("max", "7", "3")}, 48),
        # The narrowest of the nested limits decides: 8 - 2 at the pod, 9 - 1 in it.
        ("0::/pod/1", {"pod": ("8", "2", "0"), "pod/1": ("9", "1", "0")}, 6),
        # Version 1; without a limit it says a number near 2^63.
        ("4:memory:/job", {"memory/job": ("12", "4", "1"), "memory": (str(2**33), "4", "1")}, 9),
    ],
)
def test_memory_is_what_the_container_has_left(tmp_path, group, files, free):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"1:cpu:/\n{group}\n" if group else "")
    for place, (limit, used, cache) in files.items():
        folder = tmp_path / "sys" / "fs" / "cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        old = place.startswith("memory")
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if old
            else ("memory.max", "memory.current")
        )
        for name, value in zip(names, (limit, used), strict=True):
            (folder / name).write_text(f"{int(value) * GIB if value != 'max' else value}\n")
        stat = "total_inactive_file" if old else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\n{stat} {int(cache) * GIB}\n")
    found = next(iter(machine.memory(tmp_path)))
    assert found.text.startswith(f"{free:.1f} GiB free of ")


def test_a_system_without_proc_says_how_much_memory_there_is(tmp_path):
    (found,) = machine.memory(tmp_path)
    assert found.state == NOTE
    assert "does not say what is free" in found.text


def test_an_accelerator_that_jax_does_not_use(monkeypatch):
    assert machine.devices().state == OK
    monkeypatch.setattr(find, "has_tpu", lambda: True)
    found = machine.devices()
    assert (found.state, found.code) == (FAILED, 74)
    assert "a TPU is in this machine and JAX does not use it" in found.text


def test_tpus_are_known_by_their_vendor(tmp_path):
    (tmp_path / "0000:00:04.0").mkdir()
    vendor = tmp_path / "0000:00:04.0" / "vendor"
    vendor.write_text("0x8086\n")
    assert not find.has_tpu(tmp_path)
    vendor.write_text("0x1ae0\n")
    assert find.has_tpu(tmp_path)


def test_a_device_that_computes_wrong_is_found(monkeypatch):
    """A matrix of ones times itself over its size is ones; a device that says 2 is refused."""
    true = jax.numpy.ones
    monkeypatch.setattr(jax.numpy, "ones", lambda shape, dtype: 2 * true(shape, dtype))
    found = measure.products(0.01)
    assert (found.state, found.code) == (FAILED, 74)
    assert "wrong result" in found.text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            RuntimeError("INTERNAL: device 0 is gone\nmore"),
            74,
            "RuntimeError: INTERNAL: device 0 is gone",
        ),
        (AssertionError(), 74, "AssertionError: no reason given"),
        (ImportError("libx.so: cannot open"), 64, "libx.so: cannot open; install again: pip"),
        (DataError("no such\nfolder"), 65, "no such folder"),
        (PeerLost("process 1 is gone"), 74, "process 1 is gone"),
    ],
)
def test_errors_of_a_check_are_findings(error, code, words):
    """What was found before stays, and no code is one that asks to be started again."""

    def broken():
        yield Finding("first", OK, "fine")
        raise error

    first, found = guarded("all-reduce", broken)
    assert first.state == OK
    assert (found.name, found.state, found.code, found.broken) == ("all-reduce", FAILED, code, True)
    assert found.text.startswith(words)


def test_a_check_that_hangs_is_left_behind(tmp_path):
    """It is reported, and the process ends all the same, though its thread never does."""
    program = (
        "import threading\nfrom launch.doctor import report\n"
        "printed = report.Report(False)\n"
        "assert not printed.add(report.guarded('devices', threading.Event().wait, 0.2))\n"
        "printed.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert (done.returncode, done.stderr) == (74, "")
    assert "FAILED  devices          no answer within 0 s" in done.stdout
    assert done.stdout.endswith("To repair: devices.\n")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("cuda", 64, "where JAX_PLATFORMS=cuda asks for one"),
        ("no jax", 64, "FAILED  jax              libx.so: cannot open"),
    ],
)
def test_a_machine_without_what_is_needed_gets_a_line_for_it(tmp_path, case, code, words):
    extra = {"JAX_PLATFORMS": "cuda"}
    if case == "no jax":
        (tmp_path / "jax.py").write_text("raise ImportError('libx.so: cannot open')\n")
        extra = {"PYTHONPATH": str(tmp_path)}
    done = examine("--config=configs/resnet50.py:digits", f"--workdir={tmp_path}", **extra)
    assert done.returncode == code, done.stdout
    assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "matrix products" not in done.stdout
    assert ("1,437 training records" in done.stdout) == (case == "cuda")
