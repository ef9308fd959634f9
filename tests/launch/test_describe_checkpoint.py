"""`launch.describe --checkpoint`: what is in a step, whether it is whole, how its run differs."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs.common import load
from launch import describe
from tests.trainlib.checkpoint.states import make
from trainlib.checkpoint import manifest
from trainlib.checkpoint.checkpoints import Checkpoints
from trainlib.errors import CheckpointError
from trainlib.run.resume import checkpoint_meta
from trainlib.sharding.mesh import make_mesh

CONFIG = "configs/aa_resnet50.py:digits"


@pytest.fixture
def workdir(tmp_path):
    """Two steps of a small state, saved with a configuration that is shipped."""
    real, _ = make(make_mesh(1, 4, 2), width=1024)
    config = load.from_flags(CONFIG, {"seed": "7"}).config
    opened = Checkpoints(tmp_path / "checkpoints", axes={"norm.scale": ("channels",)})
    for step in (1, 2):
        opened.save(step, real, checkpoint_meta(config, {"next_batch": step}), {"top1": 0.5})
    opened.close()
    return tmp_path


def rot(step: Path) -> None:
    """Flips bits all over the data of a step."""
    for path in (p for p in step.rglob("d/*") if p.stat().st_size > 4096):
        content = bytearray(path.read_bytes())
        for place in range(100, len(content), 100):
            content[place] ^= 1
        path.write_bytes(content)


def test_a_good_checkpoint(workdir, capsys):
    before = sorted(p for p in workdir.rglob("*"))
    code = describe.main([f"--checkpoint={workdir}", f"--config={CONFIG}"])
    text = capsys.readouterr().out
    assert code == 0
    for words in (
        f"Step 2 in {workdir}/checkpoints",
        "params       2 leaves, 6,150 values, 0.02 MB, float32",
        "mesh data 4, model 2, replica 1",
        "top1         0.5",
        "13 of 13 leaves verified",
        "seed: 7 -> 0",
        "1: whole by its manifest; top1 0.5",
    ):
        assert words in text, words
    assert sorted(p for p in workdir.rglob("*")) == before


def test_one_step_as_json(workdir, capsys):
    code = describe.main([f"--checkpoint={workdir / 'checkpoints' / '1'}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (code, found["step"], found["damaged"], found["config_changes"]) == (0, 1, {}, {})
    assert found["meta"]["data"] == {"next_batch": 1}
    leaf = found["leaves"]["params/norm.scale"]
    assert leaf["axes"] == ["channels"]
    assert (leaf["shape"], leaf["bytes"], leaf["verified"]) == ([6], 24, True)
    assert found["bytes"] == sum(leaf["bytes"] for leaf in found["leaves"].values())


def test_damaged_leaves_are_named(workdir, capsys):
    rot(workdir / "checkpoints" / "2")
    assert describe.main([f"--checkpoint={workdir}", "--json"]) == 66
    found = json.loads(capsys.readouterr().out)
    assert "params/stem.0.kernel" in found["damaged"]
    assert not found["leaves"]["params/stem.0.kernel"]["verified"]
    assert found["leaves"]["step"]["verified"]
    assert describe.main([f"--checkpoint={workdir}"]) == 66
    text = capsys.readouterr().out
    assert "damaged: leaf params/stem.0.kernel in " in text
    assert f"{13 - len(found['damaged'])} of 13 leaves verified" in text


def test_a_damaged_step_beside_a_good_one(workdir, capsys):
    (workdir / "checkpoints" / "2" / "manifest.json").write_text("{}")
    (workdir / "checkpoints" / "7").mkdir()
    assert describe.main([f"--checkpoint={workdir}"]) == 66
    text = capsys.readouterr().out
    assert "Step 1 in" in text
    assert "2: damaged: Step 2" in text
    assert "7: not finished, or not ours" in text


def forged(step: Path, **changes) -> None:
    """Somebody else's manifest, with its checksum."""
    found = manifest.read(step)
    manifest.write(step, dataclasses.replace(found, **changes))


def test_a_leaf_of_terabytes_is_refused(workdir):
    leaf = manifest.Leaf((1 << 40,), "float32", "0" * 16)
    forged(workdir / "checkpoints" / "2", leaves={"more": leaf})
    with pytest.raises(CheckpointError, match=r"Leaf more of step 2 asks for 4,096\.0 GiB"):
        describe.main([f"--checkpoint={workdir}"])


def test_a_manifest_does_not_steer_the_terminal(workdir, capsys):
    forged(workdir / "checkpoints" / "2", meta={"versions": {"jax": "\x1b]0;\x07\n1"}})
    assert describe.main([f"--checkpoint={workdir}"]) == 0
    assert r"jax \x1b]0;\x07\x0a1" in capsys.readouterr().out


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"--checkpoint=.* holds no checkpoint"):
        describe.main([f"--checkpoint={tmp_path}"])
