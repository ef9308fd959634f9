"""`launch.export` as a user types it: formats, parts, dtypes, memory, and the way back."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors import safe_open

from configs.common import load
from launch import cli, export, import_weights
from moe import interop
from moe.interop import parity, t5x_io
from tests.launch.commands import ROOT, TINY, command, environment
from tests.moe.interop import models
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import run_command
from trainlib.formats import safetensors as safetensors_io
from trainlib.formats import weight_source as weights
from trainlib.run.resume import checkpoint_meta
from trainlib.run.workdir import save_config
from trainlib.step.train_state import TrainState
from vitattn.interop import torchvision as vision


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name -> (workdir, its weights) of tiny runs of both families."""
    root = tmp_path_factory.mktemp("runs")
    made = {n: (root / n, models.workdir(models.config(n), root / n)) for n in ("t5", "st_moe")}
    overrides = cli.parse(cli.parser("test", ""), TINY[1:])[1]
    config = load.from_flags(TINY[0].removeprefix("--config="), overrides).config
    return made | {"vision": (root / "vision", averaged_run(config, root / "vision"))}


def averaged_run(config: ConfigDict, path) -> dict[str, np.ndarray]:
    """A run whose moving averages are not its weights; returns `raw/...` and `ema/...`."""
    abstract = vision.abstract(config)
    random = np.random.default_rng(0)

    def draw(specs):
        low = 0.1  # variances are positive
        return {n: random.uniform(low, 0.3, s.shape).astype(np.float32) for n, s in specs.items()}

    params, statistics = draw(abstract.params), draw(abstract.model_state)
    ema = draw({**abstract.params, **abstract.model_state})
    step = jax.numpy.int32(3)
    arrays = [jax.tree.map(jax.numpy.asarray, tree) for tree in (params, statistics, ema)]
    skipped = jax.numpy.zeros(2, jax.numpy.int32)
    state = TrainState(step, arrays[0], arrays[1], (), arrays[2], skipped)
    path.mkdir()
    checkpoints = checkpoint.Checkpoints(path / "checkpoints")
    checkpoints.save(3, state, checkpoint_meta(config, {}))
    checkpoints.close()
    save_config(config, path)
    raw = {f"raw/{n}": v for n, v in {**params, **statistics}.items()}
    return raw | {f"ema/{n}": v for n, v in ema.items()}


def exported(capsys, workdir, out, *flags):
    code = run_command(lambda: export.main([f"--workdir={workdir}", f"--out={out}", *flags]))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def imported(workdir) -> dict[str, np.ndarray]:
    """The weights that an import wrote."""
    config = load.of_workdir(workdir, {})
    family = {"moe": interop, "vitattn": vision}[config.family]
    source = weights.Saved(workdir, family.abstract(config))
    return dict(source.leaves())


WAYS = {
    "hf": ("t5", ["--format=safetensors", "--shard_size=50KB"], "hf"),
    "own names": ("st_moe", ["--format=safetensors"], "safetensors"),
    "own names of a T5": ("t5", ["--format=safetensors", "--names=own"], "safetensors"),
    "t5x": ("t5", ["--format=t5x"], "t5x"),
    "t5x scalable": ("t5", ["--format=t5x", "--names=scalable"], "t5x"),
    "t5x flaxformer": ("st_moe", ["--format=t5x"], "t5x"),
    "t5x flaxformer scanned": ("st_moe", ["--format=t5x", "--names=flaxformer_scan"], "t5x"),
    "stablehlo": ("st_moe", ["--format=stablehlo", "--platforms=cpu"], "safetensors"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("way", WAYS)
def test_what_goes_out_comes_back_bit_for_bit(runs, tmp_path, capsys, way):
    name, flags, form = WAYS[way]
    workdir, values = runs[name]
    code, text = exported(capsys, workdir, tmp_path / "out", *flags)
    assert code == 0, text
    assert "Exported step 0" in text
    code = run_command(
        lambda: import_weights.main(
            [f"--format={form}", f"--path={tmp_path / 'out'}", f"--out={tmp_path / 'back'}"]
        )
    )
    text = capsys.readouterr().out
    assert code == 0, text
    assert "missing     0" in text
    back = imported(tmp_path / "back")
    assert set(back) == set(values)
    for leaf, value in values.items():
        np.testing.assert_array_equal(back[leaf], value, strict=True)


@pytest.mark.parametrize("which", ["auto", "ema", "raw"])
def test_averaged_and_raw_weights(runs, tmp_path, capsys, which):
    workdir, values = runs["vision"]
    flags = ["--format=safetensors", f"--weights={which}"]
    code, text = exported(capsys, workdir, tmp_path / "out", *flags)
    assert code == 0, text
    kind = "raw/" if which == "raw" else "ema/"
    expected = {n.removeprefix(kind): v for n, v in values.items() if n.startswith(kind)}
    found = {}
    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            found[name] = file.get_tensor(name)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["step"] == 3
    assert about["moving_averages"] == (which != "raw")


def test_bfloat16_keeps_statistics(runs, tmp_path, capsys):
    workdir, values = runs["vision"]
    flags = ["--format=safetensors", "--dtype=bf16"]
    assert exported(capsys, workdir, tmp_path / "out", *flags)[0] == 0
    reader = safetensors_io.Reader(tmp_path / "out")
    kinds = {n: t.dtype.name for n, t in reader.tensors.items()}
    assert kinds["head.kernel"] == "bfloat16"
    assert kinds["stem.norm.mean"] == kinds["stem.norm.var"] == "float32"
    expected = values["ema/head.kernel"].astype(jax.numpy.bfloat16)
    np.testing.assert_array_equal(reader.read("head.kernel"), expected)
    again = exported(capsys, workdir, tmp_path / "out", "--format=safetensors")
    assert again[0] == 0
    assert re.search(r"replaced +step 3 of \S+ as safetensors", again[1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", pytest.param("t5x", marks=pytest.mark.slow)])
def test_two_processes_write_what_one_writes(runs, tmp_path, form):
    """Each writes files of its own, at the same time; none is written twice."""
    workdir, _ = runs["st_moe"]
    flags = [f"--workdir={workdir}", f"--format={form}", "--shard_size=50KB", "--step=0"]
    env = environment(tmp_path / "cache")

    def start(out, *more):
        return subprocess.Popen(
            command("export", *flags, f"--out={tmp_path / out}", *more),
            **{"cwd": ROOT, "env": env, "text": True},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    processes = [start("two", f"--part={n}/2") for n in (0, 1)] + [start("one")]
    texts = [p.communicate(timeout=1200)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], texts
    one, two = (
        {
            p.relative_to(tmp_path / d): p.read_bytes()
            for p in (tmp_path / d).rglob("*")
            if p.is_file()
        }
        for d in ("one", "two")
    )
    assert one == two
    (first, second), whole = (
        [int(n) for t in some for n in re.findall(r"with (\d+) tensors", t)]
        for some in (texts[:2], texts[2:])
    )
    assert [first + second] == whole
    assert min(first, second) > 0


@pytest.fixture(scope="module")
def two_steps(runs, tmp_path_factory):
    """A workdir with the weights of two seeds as steps 0 and 1."""
    path = tmp_path_factory.mktemp("two") / "run"
    config = models.config("t5")
    models.workdir(config, path)
    values = models.structs(models.arrays(config, seed=2))
    skipped = jax.numpy.zeros(2, jax.numpy.int32)
    state = TrainState(jax.numpy.int32(1), values, {}, (), {}, skipped)
    checkpoints = checkpoint.Checkpoints(path / "checkpoints")
    checkpoints.save(1, state, checkpoint_meta(config, {}))
    checkpoints.close()
    return path


COMMANDS = {"safetensors": ("hf", ["--shard_size=50KB"]), "t5x": ("t5x", [])}


def refused_import(capsys, form, path, out):
    flags = [f"--format={COMMANDS[form][0]}", f"--path={path}", f"--out={out}"]
    code = run_command(lambda: import_weights.main(flags))
    assert code == 66
    assert not out.exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("form", COMMANDS)
def test_parts_that_stop_are_completed_or_refused(two_steps, tmp_path, capsys, form):
    flags = [f"--format={form}", *COMMANDS[form][1]]

    def part(number, step):
        more = [f"--part={number}/2", f"--step={step}"]
        return exported(capsys, two_steps, tmp_path / "out", *flags, *more)

    code, text = part(1, 1)
    assert (code, "still to come" in text) == (0, True), text
    refused_import(capsys, form, tmp_path / "out", tmp_path / "back")
    code, text = part(0, 0)  # of another step: the same names and shapes
    if form == "safetensors":
        assert (code, "still to come" in text) == (0, True), text
        refused_import(capsys, form, tmp_path / "out", tmp_path / "back")
        names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
        places = {n: f for f in names for n in safetensors_io.read_header(tmp_path / "out" / f)[0]}
        index = tmp_path / "out" / safetensors_io.INDEX
        index.write_text(json.dumps({"weight_map": places}))  # as if somebody joined them by hand
        assert "step 0" in refused_import(capsys, form, tmp_path / "out", tmp_path / "back")
    else:
        assert code == 64
        assert "checkpoint_1" in text
    code, text = part(0, 1)
    assert (code, "all are there" in text) == (0, True), text
    expected = weights.Saved(two_steps, interop.abstract(models.config("t5")), 1).leaves()
    flags = [f"--format={COMMANDS[form][0]}", f"--path={tmp_path / 'out'}"]
    import_weights.main([*flags, f"--out={tmp_path / 'back'}"])
    back = imported(tmp_path / "back")
    for name, value in expected:
        np.testing.assert_array_equal(back[name], value, strict=True)


def test_parts_need_a_step(two_steps, tmp_path, capsys):
    flags = ["--format=safetensors", "--part=0/2"]
    code, text = exported(capsys, two_steps, tmp_path / "out", *flags)
    assert (code, "--step" in text) == (64, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", COMMANDS)
def test_an_export_that_fails_half_way_is_none(two_steps, tmp_path, capsys, monkeypatch, form):
    """Over an older one, on a disk that becomes full: new files do not pass for the old ones."""
    out, flags = tmp_path / "out", [f"--format={form}", *COMMANDS[form][1]]
    assert exported(capsys, two_steps, out, *flags, "--step=1")[0] == 0
    full, calls = OSError(errno.ENOSPC, "No space left on device"), iter(range(100))
    owner = safetensors_io.Writer if form == "safetensors" else t5x_io
    name = "write" if form == "safetensors" else "write_array"
    real = getattr(owner, name)

    def write(*arguments):
        if next(calls) > 20:
            raise full
        return real(*arguments)

    monkeypatch.setattr(owner, name, write)
    code, text = exported(capsys, two_steps, out, *flags, "--step=1")
    assert code == 74
    assert "disk is full" in text
    assert "--out" in text
    refused_import(capsys, form, out, tmp_path / "back")
    monkeypatch.undo()
    assert exported(capsys, two_steps, out, *flags, "--step=1")[0] == 0
    assert not list(out.glob("**/.*.partial"))


@pytest.mark.slow
def test_a_program_runs_without_this_package(runs, tmp_path, capsys):
    workdir, values = runs["st_moe"]
    out = tmp_path / "out"
    flags = ["--format=stablehlo", "--platforms=cpu,tpu,cuda"]
    code, text = exported(capsys, workdir, out, *flags)
    assert code == 0, text
    config = models.config("st_moe")
    batch = parity.tokens(config.model.vocab_size)
    batch = {n: np.pad(x, ((0, 1), (0, models.LENGTH - x.shape[1]))) for n, x in batch.items()}
    expected = parity.our_logits(config, models.structs(values), batch)
    np.savez(tmp_path / "batch.npz", expected=expected, **batch)
    code = (
        "import sys, numpy as np\n"
        "import importlib.util as u\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('moe', 'vitattn', 'trainlib', 'launch', 'flax'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.path.insert(0, {str(out)!r})\n"
        "from load import load\n"
        f"forward, signature = load({str(out)!r})\n"
        f"given = dict(np.load({str(tmp_path / 'batch.npz')!r}))\n"
        "expected = given.pop('expected')\n"
        "assert sorted(given) == sorted(signature['inputs'])\n"
        "found = np.asarray(forward(given))\n"
        "print(float(np.abs(found - expected)[given['decoder_segments'] > 0].max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": tmp_path, "env": environment(tmp_path / "cache"), "text": True},
        capture_output=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5
    signature = json.loads((out / "signature.json").read_text())
    assert signature["platforms"] == ["cpu", "tpu", "cuda"]
    assert signature["output"]["shape"][0] == "batch"


@pytest.mark.thorough
def test_a_program_of_a_vision_model(runs, tmp_path, capsys):
    workdir, _ = runs["vision"]
    flags = ["--format=stablehlo", "--platforms=cpu", "--dtype=bf16"]
    code, text = exported(capsys, workdir, tmp_path / "out", *flags)
    assert code == 0, text
    done = subprocess.run(
        [sys.executable, "load.py", "3"],
        **{"cwd": tmp_path / "out", "env": environment(tmp_path / "cache"), "text": True},
        capture_output=True,
        timeout=1200,
    )
    assert done.stdout == "output (3, 10) float32 on cpu\n", done.stderr
    facts = json.loads((tmp_path / "out" / "signature.json").read_text())["facts"]
    assert len(facts["mean"]) == len(facts["std"]) == 3


MEASURE = """
import sys
sys.path.insert(0, {root!r})
from launch import export
from tests.fuzz.hostile import memory
first, then, out = sys.argv[1:]
flags = ["--format=safetensors", "--shard_size=10MB"]
export.main([*flags, f"--workdir={{first}}", f"--out={{out}}/first_out"])
before = memory()
export.main([*flags, f"--workdir={{then}}", f"--out={{out}}/then_out"])
print("GREW", memory() - before)
"""


@pytest.mark.slow
def test_a_model_larger_than_the_memory_it_takes(tmp_path):
    """638 MB in leaves of at most 64 MB: beyond the libraries, which the export of a model of a
    quarter of the width has loaded before, it takes two leaves and the crumbs of malloc.
    """
    config = models.config("t5")
    config.model.update({"encoder_blocks": 4, "decoder_blocks": 4, "vocab_size": 4096})
    for name, width in (("first", 512), ("then", 1024)):
        config.model.update({"d_model": width, "d_ff": 4 * width, "num_heads": 16, "head_dim": 64})
        sizes = [v.nbytes / 2**20 for v in models.workdir(config, tmp_path / name).values()]
    leaf, total = max(sizes), sum(sizes)
    assert total > 9 * leaf
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(root=str(ROOT))]
        + [str(p) for p in (tmp_path / "first", tmp_path / "then", tmp_path)],
        **{"cwd": ROOT, "env": environment(tmp_path / "cache"), "text": True},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grew = float(done.stdout.rpartition("GREW")[2])
    assert grew < 3 * leaf, f"{grew:.0f} MB for leaves of {leaf:.0f} MB, {total:.0f} MB in all"


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--format=pickle"], 64, "safetensors"),
        (["--format=safetensor"], 64, "Did you mean 'safetensors'"),
        ([], 64, "--format is missing"),
        (["--format=safetensors", "--dtype=int8"], 64, "bf16"),
        (["--format=safetensors", "--shard_size=big"], 64, "500MB"),
        (["--format=safetensors", "--part=2/2"], 64, "0/4"),
        (["--format=safetensors", "--names=hf"], 64, "extra_ffn"),
        (["--format=safetensors", "--names=hug"], 64, "own"),
        (["--format=safetensors", "--step=9"], 66, "steps there"),
        (["--format=safetensors", "--weights=ema"], 66, "--weights=raw"),
        (["--format=safetensors", "--weights=best"], 64, "ema"),
        (["--format=t5x", "--names=scalable"], 64, "num_experts"),
        (["--format=stablehlo", "--platforms=cpu,npu"], 64, "tpu"),
    ],
)
def test_mistakes_are_explained(runs, tmp_path, capsys, flags, code, named):
    workdir, _ = runs["st_moe"]
    found, text = exported(capsys, workdir, tmp_path / "out", *flags)
    assert found == code, text
    assert named in " ".join(text.split())
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_directory_with_other_files_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    workdir, _ = runs["t5"]
    code, text = exported(capsys, workdir, tmp_path, "--format=safetensors")
    assert code == 64
    assert "notes.txt" in text
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_vision_family_has_no_t5x(runs, tmp_path, capsys):
    code, text = exported(capsys, runs["vision"][0], tmp_path / "out", "--format=t5x")
    assert code == 64
    assert "stablehlo" in text
