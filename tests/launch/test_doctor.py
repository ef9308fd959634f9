"""`launch.doctor`: what it says of versions, disks, data and devices, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import doctor
from launch.doctor import FAILED, NOTE, OK

sys.path.insert(0, str(Path(__file__).parent))
from hosts import ROOT, Hosts, environment


def examine(*arguments, **extra):
    return subprocess.run(
        [sys.executable, "-m", "launch.doctor", "--seconds=0.2", *arguments],
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_sound_machine_is_ready(tmp_path):
    flags = "--xla_force_host_platform_device_count=2"
    config = "--config=configs/resnet50.py:digits"
    done = examine(config, f"--workdir={tmp_path / 'not' / 'yet'}", XLA_FLAGS=flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("Ready.\n")
    for words in ("tested 3.11 and 3.12", "2 x cpu", "1,437 training records", "TFLOP/s", "GB/s"):
        assert words in done.stdout
    assert "over 2 devices" in done.stdout
    assert "FAILED" not in done.stdout
    assert not list(tmp_path.rglob(".doctor*"))


def test_what_fails_decides_the_exit_code(tmp_path):
    config = ("--config=configs/resnet50.py:digits", f"--config.data.source=folder:{tmp_path}")
    done = examine(*config, "--config.batch_size=30", "--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert found["data"]["state"] == FAILED
    assert str(tmp_path) in found["data"]["text"]
    assert found["configuration"]["state"] == OK
    assert done.returncode == 65
    assert "Traceback" not in done.stderr


def test_two_machines_are_compared_and_measured_together(tmp_path):
    with Hosts(tmp_path, 2, "--seconds=0.2", module="launch.doctor") as hosts:
        assert hosts.wait()[0] == [0, 0], hosts.error(0) + hosts.error(1)
        for index in range(2):
            assert "2 x cpu, 1 of them here, 2 processes" in hosts.output(index)
            assert "GB/s over 2 devices" in hosts.output(index)


# ---------------------------------------------------------------- single checks


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.10.4", FAILED), ("3.11.0", OK), ("3.12.9", OK), ("3.13.1", NOTE), ("4.0.0", NOTE)],
)
def test_python_versions(version, state):
    assert doctor.python_version(version).state == state


def test_constraints_are_read_for_the_python_at_hand():
    text = (ROOT / "constraints.txt").read_text()
    old, new = doctor.tested_versions(text, (3, 11)), doctor.tested_versions(text, (3, 12))
    assert old["jax"] == "0.10.2"
    assert doctor._order(new["jax"]) > doctor._order(old["jax"])
    assert old["orbax-checkpoint"] == new["orbax-checkpoint"]
    assert set(doctor.PACKAGES) <= set(old)


def test_the_lowest_versions_are_those_of_the_package():
    assert doctor.lowest_versions()["jax"] == "0.10.2"


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
    assert doctor.compared("jax", version, tested, lowest).state == state


def test_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    assert doctor.disk(tmp_path, probe=1000).state in (OK, NOTE)
    monkeypatch.setattr(doctor.os, "fsync", refuse)
    found = doctor.disk(tmp_path / "new")
    assert (found.state, found.code) == (FAILED, 74)
    assert "No space left on device" in found.text
    assert list(tmp_path.iterdir()) == []


def test_an_accelerator_that_jax_does_not_use(monkeypatch):
    assert doctor.devices().state == OK
    monkeypatch.setattr(doctor.multihost, "has_tpu", lambda: True)
    found = doctor.devices()
    assert (found.state, found.code) == (FAILED, 74)
    assert "a TPU is in this machine and JAX does not use it" in found.text


def test_tpus_are_known_by_their_vendor(tmp_path):
    (tmp_path / "0000:00:04.0").mkdir()
    vendor = tmp_path / "0000:00:04.0" / "vendor"
    vendor.write_text("0x8086\n")
    assert not doctor.multihost.has_tpu(tmp_path)
    vendor.write_text("0x1ae0\n")
    assert doctor.multihost.has_tpu(tmp_path)


def test_a_device_that_computes_wrong_is_found(monkeypatch):
    """A matrix of ones times itself over its size is ones; a device that says 2 is refused."""
    true = jax.numpy.ones
    monkeypatch.setattr(jax.numpy, "ones", lambda shape, dtype: 2 * true(shape, dtype))
    found = doctor.products(0.01)
    assert (found.state, found.code) == (FAILED, 74)
    assert "wrong result" in found.text


def test_errors_of_a_check_are_findings():
    def broken():
        raise RuntimeError("INTERNAL: device 0 is gone\nmore")

    found = doctor.guarded("all-reduce", broken)
    assert (found.state, found.code) == (FAILED, 74)
    assert found.text == "RuntimeError: INTERNAL: device 0 is gone"
