"""Damage of every kind to steps on the disk: seen, named, passed over, never loaded as good."""

import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from trainlib import run as run_lib
from trainlib.checkpoint import Checkpoints, DamagedStep
from trainlib.config import COMMON, from_schema, override
from trainlib.errors import CheckpointError
from trainlib.mesh import make_mesh

sys.path.insert(0, str(Path(__file__).parent))
from states import equal, make, shapes

SEEDS = {1: 11, 2: 12}  # step -> seed of its state


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two good steps: directory, number -> state, and the state as shapes."""
    folder = tmp_path_factory.mktemp("pristine")
    opened = Checkpoints(folder)
    states = {}
    for number, seed in SEEDS.items():
        states[number], like = make(make_mesh(1, 4, 2), width=1024, seed=seed)
        opened.save(number, states[number], run_lib.checkpoint_meta(config(), {}))
    opened.close()
    return folder, states, like


@pytest.fixture
def copied(pristine, tmp_path):
    folder, states, like = pristine
    shutil.copytree(folder, tmp_path / "checkpoints")
    return tmp_path / "checkpoints", states, like


def config(**changes) -> ConfigDict:
    made = from_schema(COMMON)
    for key, value in changes.items():
        override(made, key.replace("__", "."), value, "test")
    return made


def resume(folder, like, **changes):
    return run_lib.resume(Checkpoints(folder), config(**changes), (), lambda step: {}, like)


def files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flips(pristine, tmp_path, count: int) -> dict[str, int]:
    """Flips one random bit of a step at a time and reads it; counts what came of it."""
    folder, states, like = pristine
    step = tmp_path / "2"
    shutil.copytree(folder / "2", step)
    sizes = {path: path.stat().st_size for path in files(step)}
    draw = random.Random(5)
    outcome = {"detected": 0, "by digest": 0, "harmless": 0, "silent": 0}
    for _ in range(count):
        path = draw.choices(list(sizes), list(sizes.values()))[0]
        good = path.read_bytes()
        bit = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            found = Checkpoints(tmp_path).restore(2, like)
        except DamagedStep as error:
            outcome["detected"] += "Step 2" in str(error)
            outcome["by digest"] += "has digest" in str(error)
        else:
            outcome["harmless" if equal(found, states[2]) else "silent"] += 1
        path.write_bytes(good)
    return outcome


def test_no_flipped_bit_is_restored_silently(pristine, tmp_path):
    outcome = flips(pristine, tmp_path, 24)
    assert outcome["silent"] == 0
    assert outcome["by digest"] >= 4  # Orbax itself would have returned these


@pytest.mark.slow
def test_none_of_480_flipped_bits_is_restored_silently(pristine, tmp_path):
    outcome = flips(pristine, tmp_path, 480)
    print(outcome)
    assert outcome["silent"] == 0
    assert outcome["by digest"] >= 100


def corrupt_values(step: Path) -> str:
    """Changes the values of a leaf through Orbax itself, as bit rot that no checksum of the format
    sees would; returns the name of the leaf.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        values = writer.restore(step)
        name = "params/norm.scale"
        values[name] = values[name] + 1
        manifest = (step / "manifest.json").read_text()
        shutil.rmtree(step)
        writer.save(step, values)
        writer.wait_until_finished()
    content = json.loads(manifest)
    found = {p.relative_to(step).as_posix(): p.stat().st_size for p in files(step)}
    content["manifest"]["files"] = found
    import hashlib

    body = json.dumps(content["manifest"], sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    (step / "manifest.json").write_text(json.dumps(content))
    return name


def test_a_damaged_leaf_is_named_with_its_file_and_both_digests(copied, capsys):
    folder, states, like = copied
    expected = Checkpoints(folder).manifest(2).leaves["params/norm.scale"].digest
    name = corrupt_values(folder / "2")
    with pytest.raises(DamagedStep) as caught:
        Checkpoints(folder).restore(2, like)
    message = str(caught.value)
    assert f"leaf {name} in {folder}/2/" in message
    file = Path(message.split(" in ")[2].split(" has digest")[0].split(", ")[0])
    assert file.is_file()
    assert f"and {expected} was saved" in message
    with pytest.raises(DamagedStep, match=name):
        Checkpoints(folder).restore_some(2, {name: like.params["norm.scale"]})
    found = resume(folder, like)
    assert found.step == 1
    assert equal(found.state, states[1])
    warned = " ".join(capsys.readouterr().err.split())
    assert "warning: Step 2 in" in warned
    assert "was set aside" in warned
    assert Checkpoints(folder).numbers() == [1]
    assert (folder / "2.damaged").is_dir()


def test_fail_stops_at_damage(copied):
    folder, _, like = copied
    corrupt_values(folder / "2")
    with pytest.raises(CheckpointError, match=r"leaf params/norm\.scale") as caught:
        resume(folder, like, checkpoint__on_corrupt="fail")
    assert caught.value.exit_code == 66
    assert (folder / "2").is_dir()


def test_no_file_can_be_cut_or_missing_unseen(pristine, tmp_path):
    folder, _, like = pristine
    for path in files(folder / "2"):
        name = path.relative_to(folder)
        for damage in ("cut", "missing"):
            copy = tmp_path / damage / name.as_posix().replace("/", "_")
            shutil.copytree(folder, copy)
            if damage == "cut":
                (copy / name).write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            else:
                (copy / name).unlink()
            with pytest.raises(CheckpointError) as caught:
                Checkpoints(copy).restore(2, like)
            assert path.name in str(caught.value)
            assert Checkpoints(copy).latest() == 1
            assert resume(copy, like).step == 1


def test_a_run_does_not_start_over_when_every_step_is_damaged(copied):
    folder, _, like = copied
    for number in SEEDS:
        corrupt_values(folder / str(number))
    with pytest.raises(CheckpointError, match=r"No step in .* is whole: 2, 1 are damaged"):
        resume(folder, like)
    assert Checkpoints(folder).numbers() == [2, 1]


def test_foreign_and_partial_directories_are_passed_over_and_stay(copied, tmp_path, capsys):
    folder, states, like = copied
    (folder / "7" / "default").mkdir(parents=True)  # what an interrupted copy leaves
    shutil.copytree(folder / "2", folder / "8")
    (folder / "8" / "manifest.json").unlink()
    (folder / "9").symlink_to(folder / "2")
    (folder / "10").symlink_to(folder / "10")
    (folder / "11").write_text("a file")
    (folder / "012").mkdir()
    (folder / "notes").mkdir()
    (folder / "5.orbax-checkpoint-tmp").mkdir()
    names = sorted(p.name for p in folder.iterdir())
    opened = Checkpoints(folder)
    assert opened.steps() == [1, 2]
    assert opened.latest() == 2
    found = resume(folder, like)
    assert found.step == 2
    assert equal(found.state, states[2])
    assert sorted(p.name for p in folder.iterdir()) == names
    warned = " ".join(capsys.readouterr().err.split())
    for number in (7, 8, 9, 10, 11):
        assert f"Step {number} in" in warned
    with pytest.raises(CheckpointError, match=r"Step 7 .* there is no manifest"):
        opened.pick(7)


def test_a_step_under_another_number_does_not_count(copied):
    folder, _, like = copied
    shutil.copytree(folder / "1", folder / "30")
    with pytest.raises(DamagedStep, match="manifest is that of step 1"):
        Checkpoints(folder).restore(30, like)
    assert Checkpoints(folder).latest() == 2


def test_links_inside_a_step_are_refused(copied, tmp_path):
    folder, _, like = copied
    inside = next(p for p in files(folder / "2") if p.parent.name == "d")
    shutil.move(inside, tmp_path / "elsewhere")
    inside.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStep, match="is a link"):
        Checkpoints(folder).restore(2, like)
    manifest = folder / "1" / "manifest.json"
    shutil.move(manifest, tmp_path / "manifest.json")
    manifest.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(DamagedStep):
        Checkpoints(folder).manifest(1)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 100,
        b"[]",
        b"{}",
        b'{"sha256": 1, "manifest": {}}',
        b"[" * 200_000,
        b'{"manifest": {"format": 2}, "sha256": "?"}',
        b"\xff\xfe",
    ],
)
def test_a_manifest_that_is_none_is_damage(copied, content):
    folder, _, like = copied
    (folder / "2" / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedStep, match=r"manifest\.json is damaged"):
        Checkpoints(folder).manifest(2)
    assert resume(folder, like).step == 1


def resealed(change, manifest: Path) -> None:
    """Changes a manifest and its checksum with it, as a forger would."""
    import hashlib

    content = json.loads(manifest.read_text())
    change(content["manifest"])
    body = json.dumps(content["manifest"], sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=2),
        lambda m: m.update(step=-1),
        lambda m: m.update(step=True),
        lambda m: m["files"].update({"../../secret": 1}),
        lambda m: m["files"].update({"/etc/passwd": 1}),
        lambda m: m["leaves"]["step"].update(digest="../x"),
        lambda m: m["leaves"]["step"].update(shape=[2**63]),
        lambda m: m["leaves"]["step"].update(shape=["1"]),
        lambda m: m["leaves"].update({"a\n": m["leaves"]["step"]}),
        lambda m: m.update(leaves=[]),
        lambda m: m.pop("mesh"),
        lambda m: m.update(metrics={"top1": "x"}),
    ],
)
def test_a_forged_manifest_is_refused(copied, change):
    folder, _, _ = copied
    resealed(change, folder / "2" / "manifest.json")
    with pytest.raises(DamagedStep):
        Checkpoints(folder).manifest(2)


def test_shapes_of_a_manifest_allocate_nothing(copied):
    """A shape of terabytes is another model, and no array of it is ever made."""
    folder, _, like = copied
    resealed(
        lambda m: m["leaves"]["params/norm.scale"].update(shape=[1 << 42]),
        folder / "2" / "manifest.json",
    )
    with pytest.raises(CheckpointError, match=r"\(4398046511104,\) float32 in the checkpoint"):
        Checkpoints(folder).restore(2, like)
    assert Checkpoints(folder).shapes(2)["params/norm.scale"].shape == (1 << 42,)


def test_a_huge_manifest_is_not_read(copied):
    folder, _, _ = copied
    os.truncate(folder / "2" / "manifest.json", 1 << 40)
    with pytest.raises(DamagedStep, match="not a file of at most"):
        Checkpoints(folder).manifest(2)


def test_resume_refuses_another_model_instead_of_passing_it_over(copied):
    folder, _, _ = copied
    wider = shapes(make_mesh(), width=24)
    with pytest.raises(CheckpointError, match="holds another model"):
        resume(folder, wider)
