"""Damage of every kind to steps on the disk: seen, named, passed over, never loaded as good."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import re
import shutil
from pathlib import Path

import jax
import pytest
import tensorstore
from ml_collections import ConfigDict

from tests.trainlib.checkpoint.states import as_nobody, equal, make, shapes
from trainlib.checkpoint import read as reading
from trainlib.checkpoint import write as saving
from trainlib.checkpoint.checkpoints import Checkpoints, DamagedStep
from trainlib.config import COMMON, from_schema, override
from trainlib.errors import CheckpointError, StorageError
from trainlib.run import resume as run_resume
from trainlib.run.resume import checkpoint_meta
from trainlib.sharding.mesh import make_mesh

SEEDS = {1: 11, 2: 12}  # step -> seed of its state


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Two good steps: directory, number -> state, and the state as shapes."""
    folder = tmp_path_factory.mktemp("pristine")
    opened = Checkpoints(folder)
    states = {}
    for number, seed in SEEDS.items():
        states[number], like = make(make_mesh(1, 4, 2), width=1024, seed=seed)
        opened.save(number, states[number], checkpoint_meta(config(), {}))
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
    return run_resume.resume(Checkpoints(folder), config(**changes), (), lambda step: {}, like)


def files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flips(pristine, tmp_path, count: int) -> dict[str, int]:
    """Flips one random bit of a step at a time and reads it; counts what came of it."""
    folder, states, like = pristine
    step = tmp_path / "2"
    shutil.copytree(folder / "2", step)
    sizes = {path: path.stat().st_size for path in files(step)}
    draw = random.Random(5)
    outcome = {"detected": 0, "by digest": 0, "with its file": 0, "harmless": 0, "silent": 0}
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
            outcome["with its file"] += path.name in str(error)
        else:
            outcome["harmless" if equal(found, states[2]) else "silent"] += 1
        path.write_bytes(good)
    return outcome


@pytest.mark.thorough
@pytest.mark.filterwarnings("error")  # a failed read leaves no traceback behind
def test_no_flipped_bit_is_restored_silently(pristine, tmp_path):
    outcome = flips(pristine, tmp_path, 24)
    assert outcome["silent"] == 0
    assert outcome["with its file"] == outcome["detected"] == 24 - outcome["harmless"]
    assert outcome["by digest"] >= 4  # Orbax itself would have returned these


@pytest.mark.slow
def test_none_of_480_flipped_bits_is_restored_silently(pristine, tmp_path):
    outcome = flips(pristine, tmp_path, 480)
    print(outcome)
    assert outcome["silent"] == 0
    assert outcome["with its file"] == outcome["detected"] == 480 - outcome["harmless"]
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
        lambda m: m["meta"].update(config=[1]),
    ],
)
def test_a_forged_manifest_is_refused(copied, change):
    folder, _, _ = copied
    resealed(change, folder / "2" / "manifest.json")
    with pytest.raises(DamagedStep):
        Checkpoints(folder).manifest(2)


def test_a_step_of_a_later_version_stops_the_run_and_stays(copied):
    """To go on from an older step would throw away what the later version did."""
    folder, _, like = copied
    resealed(lambda m: m.update(format=2), folder / "2" / "manifest.json")
    with pytest.raises(CheckpointError, match=r"later version.* has format 2") as caught:
        resume(folder, like)
    assert not isinstance(caught.value, DamagedStep)
    assert Checkpoints(folder).numbers() == [2, 1]
    assert Checkpoints(folder).latest() == 1


@contextlib.contextmanager
def refusing(name: str, error: Exception, times: int):
    """A function of the system, or of tensorstore, fails `times` times where it concerns step 2."""
    module = tensorstore if name == "tensorstore" else os
    function = name if module is os else "open"
    real, left = getattr(module, function), [times]

    def act(first, *rest, **named):
        if left[0] and re.search("/2(?![0-9])", str(first)):
            left[0] -= 1
            if module is os:
                raise error
            failed = concurrent.futures.Future()
            failed.set_exception(error)
            return failed
        return real(first, *rest, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("trainlib.checkpoint.read.PAUSE", 0)
        patched.setattr(module, function, act)
        yield


REFUSALS = [
    ("open", OSError(errno.EIO, "Input/output error")),
    ("open", OSError(errno.EACCES, "Permission denied")),
    ("stat", OSError(errno.EIO, "Input/output error")),
    ("scandir", OSError(errno.ENFILE, "Too many open files in system")),
    ("tensorstore", ValueError("UNKNOWN: Error reading \"x\" [os_error_code='5'] [spec='{}']")),
    ("tensorstore", ValueError("RESOURCE_EXHAUSTED: Failed [a='b'] [os_error_code[1]='28']")),
]


@pytest.mark.parametrize(("name", "error"), REFUSALS)
def test_a_disk_that_refuses_is_asked_again_and_is_no_damage(copied, capsys, name, error):
    folder, states, like = copied
    with refusing(name, error, 1):
        found = resume(folder, like)
    assert found.step == 2
    assert equal(found.state, states[2])
    with refusing(name, error, 1000), pytest.raises(StorageError, match=r"no damage.*nothing was"):
        resume(folder, like)
    assert Checkpoints(folder).numbers() == [2, 1]
    assert capsys.readouterr().err == ""


def test_a_leaf_that_does_not_fit_is_no_damage(copied):
    folder, _, like = copied
    with refusing("tensorstore", MemoryError(), 1), pytest.raises(StorageError, match="not enough"):
        Checkpoints(folder).restore(2, like)


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(copied, monkeypatch):
    folder, _, like = copied
    monkeypatch.setattr("trainlib.checkpoint.read.PAUSE", 0)
    folder.chmod(0o755)
    (folder / "2" / "d").chmod(0)
    with as_nobody(folder), pytest.raises(StorageError, match=r"Reading .*/2 failed: Permission"):
        resume(folder, like)
    (folder / "2" / "d").chmod(0o755)
    folder.chmod(0)
    with as_nobody(folder), pytest.raises(StorageError, match=r"Reading .* failed: Permission"):
        resume(folder, like)
    folder.chmod(0o755)


def test_a_step_that_a_live_run_removes_is_said_to_be_removed(copied):
    folder, _, like = copied
    opened, real = Checkpoints(folder), reading.read

    def removed_meanwhile(path, wanted):
        os.replace(path, path.with_name("2.removing"))
        return real(path, wanted)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "read", removed_meanwhile)
        with pytest.raises(
            CheckpointError, match=r"removed while it was read.* now \[1\]"
        ) as caught:
            opened.restore(2, like)
    assert not isinstance(caught.value, DamagedStep)


def test_each_damaged_step_is_set_aside_under_a_name_of_its_own(copied, capsys):
    folder, _, _ = copied
    names = []
    for _ in range(3):
        names.append(saving.set_aside(folder / "2").name)
        (folder / "2").mkdir()
    assert names == ["2.damaged", "2.damaged-2", "2.damaged-3"]
    assert (folder / "2.damaged" / "manifest.json").is_file()


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


def test_an_array_larger_than_the_memory_ends_nothing(copied):
    """Asked for, tensorstore would end the process."""
    folder, _, _ = copied
    name, size = "params/norm.scale", 1 << 40
    base = {"driver": "file", "path": f"{folder / '2'}/"}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "metadata": {"shape": [size], "chunks": [1024], "dtype": "<f4"},
    }
    tensorstore.open(spec, create=True, delete_existing=True).result()
    wanted = {name: jax.ShapeDtypeStruct((size,), "float32")}
    _, troubles = reading.read(folder / "2", wanted)
    assert troubles[name].kind == reading.NO_MEMORY


def test_the_newest_whole_step_is_picked_and_a_damaged_one_named(copied, capsys):
    folder, _, _ = copied
    (folder / "9").mkdir()  # being written
    (folder / "2" / "manifest.json").write_text("{}")
    assert Checkpoints(folder).pick(None) == 1
    assert "Step 2 in" in capsys.readouterr().err
    (folder / "1" / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no whole step; steps there: none"):
        Checkpoints(folder).pick(None)


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
