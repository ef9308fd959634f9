"""Class names through every command: a run of ten outputs on the folders ant, bee and cat."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from launch import evaluate, export, import_weights, predict, report, train
from trainlib.checkpoint import manifest
from trainlib.errors import run_command

COLOURS = {"ant": (220, 30, 30), "bee": (30, 220, 30), "cat": (30, 30, 220)}
SMALL = (
    *("--config=configs/resnet50.py:digits", "--config.model.depth=18", "--config.ema_decay=0"),
    *(
        "--config.model.blocks=1,1,1,1",
        "--config.model.width=0.125",
        "--config.model.num_classes=10",
    ),
    *("--config.data.workers=0", "--config.batch_size=24", "--config.data.holdout=0.4"),
    *("--config.schedule.warmup_steps=1", "--config.eval_every=12", "--config.checkpoint.every=6"),
    "--config.checkpoint.best=top1",
)


def folders(root, *classes, **renamed):
    """Class folders of eight noisy pictures of one colour each; `new=old` takes the colour of
    another class."""
    random = np.random.default_rng(0)
    for name, colour in {**{n: n for n in classes}, **renamed}.items():
        (root / name).mkdir(parents=True)
        for number in range(8):
            noise = random.integers(-25, 25, (8, 8, 3))
            pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(compiled_once, tmp_path_factory):
    """(workdir, folder) of a run that knows its classes."""
    root = tmp_path_factory.mktemp("named")
    source = folders(root / "data", *COLOURS)
    argv = [*SMALL, f"--config.data.source=folder:{source}", "--config.steps=24"]
    assert train.main([*argv, f"--workdir={root / 'run'}"]) == 0
    return root / "run", source


@pytest.fixture
def tell(capsys):
    def told(main, *argv):
        capsys.readouterr()
        code = run_command(lambda: main([str(word) for word in argv]))
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return told


def scored(tell, workdir, source, *more):
    flags = (f"--config.data.source=folder:{source}", "--config.data.eval_split=train")
    flags += ("--config.data.holdout=0", "--json", *more)
    code, out, error = tell(evaluate.main, f"--workdir={workdir}", *flags)
    return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, out + error


@pytest.mark.slow
def test_other_data_are_scored_by_name_from_a_run_and_its_export(trained, tell, tmp_path):
    workdir, source = trained
    bc, odd = folders(tmp_path / "BC", "bee", "cat"), folders(tmp_path / "odd", "bee", zebra="cat")
    abc = folders(tmp_path / "ABC", "bee", "cat", aardvark="ant")
    out = tmp_path / "export"
    code, _, error = tell(
        export.main, f"--workdir={workdir}", "--format=safetensors", f"--out={out}", "--step=best"
    )
    assert code == 0, error
    kept = (workdir / "class_names.txt").read_text()
    assert (out / "class_names.txt").read_text() == kept
    for place in (workdir, out):
        for data, count in ((source, 24), (bc, 16)):
            code, found, text = scored(tell, place, data)
            assert code == 0, text
            assert (found["top1"], found["examples"]) == (1.0, count)
        assert "by name, 2 of 3 classes" in text
        code, _, text = scored(tell, place, abc)
        assert code == 65
        for words in ("not trained on: aardvark.", "aardvark, bee, cat", "ant, bee, cat"):
            assert words in text
        assert scored(tell, place, odd)[0] == 65
        code, answer, error = tell(
            predict.main, f"--workdir={place}", "--json", bc / "bee" / "0.png"
        )
        assert code == 0, error
        assert json.loads(answer)["classes"][0]["name"] == "bee"
    code, _, text = scored(tell, out, bc, "--step=best")
    assert (code, "holds the weights of one step" in text) == (64, True)
    back = tmp_path / "back"
    code, _, error = tell(
        import_weights.main, "--format=safetensors", f"--path={out}", f"--out={back}"
    )
    assert code == 0, error
    assert (back / "class_names.txt").read_text() == kept


def test_predict_takes_the_file_that_training_wrote(trained, tell):
    workdir, source = trained
    names = workdir / "class_names.txt"
    assert names.read_text().split() == [*COLOURS, *["null"] * 7]
    image = source / "cat" / "1.png"
    code, out, error = tell(predict.main, f"--workdir={workdir}", f"--class_names={names}", image)
    assert code == 0, error
    assert out.splitlines()[2].endswith("%  cat")


@pytest.mark.parametrize("change", ["came", "went", "renamed"])
def test_a_run_does_not_go_on_with_other_classes(trained, tell, tmp_path, change):
    workdir, source = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    before = (copy / "class_names.txt").read_bytes()
    moved = tmp_path / "moved"
    (source / "ant").rename(moved)
    try:
        if change == "came":
            moved.rename(source / "ant")
            folders(source, aardvark="cat")
        elif change == "renamed":
            moved.rename(source / "zebra")
        argv = [*SMALL, f"--config.data.source=folder:{source}", "--config.steps=30"]
        code, _, error = tell(train.main, *argv, f"--workdir={copy}")
    finally:
        if change == "came":
            shutil.rmtree(source / "aardvark")
        else:
            (source / "zebra" if change == "renamed" else moved).rename(source / "ant")
    assert code == 64, error
    assert "ant, bee, cat" in error
    assert {"came": "New: aardvark", "went": "Gone: ant", "renamed": "New: zebra"}[change] in error
    assert (copy / "class_names.txt").read_bytes() == before


@pytest.mark.thorough
def test_a_head_of_other_classes_is_refused_and_the_advice_works(trained, tell, tmp_path):
    workdir, _ = trained
    data = folders(tmp_path / "data", "bee", "cat", zebra="ant")
    argv = [*SMALL, f"--config.data.source=folder:{data}", "--config.steps=1"]
    argv += [f"--config.init_from={workdir}", f"--workdir={tmp_path / 'run'}"]
    code, _, error = tell(train.main, *argv)
    assert code == 64
    assert "New: zebra. Gone: ant." in error
    advice = error[error.index("--config.init_new=") :].replace("'", "")
    code, out, error = tell(train.main, *argv, advice)
    assert code == 0, error
    assert "2: head." in out.split("new ")[1].splitlines()[0]
    assert (tmp_path / "run" / "class_names.txt").read_text().startswith("bee\ncat\nzebra\n")


@pytest.mark.thorough
def test_the_best_step_is_named_and_taken(trained, tell, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained[0], copy)
    steps = {int(path.name): path for path in (copy / "checkpoints").iterdir()}
    assert sorted(steps)[-3:] == [12, 18, 24]
    for number, top1 in ((12, 0.9), (24, 0.5)):  # as if the run had got worse
        entry = manifest.read(steps[number])
        entry.metrics["top1"], entry.metrics["loss"] = top1, 1 - top1 / 2
        manifest.write(steps[number], entry)
    assert "step 12, top1 0.9" in tell(report.main, f"--workdir={copy}")[1]
    facts = json.loads(tell(report.main, f"--workdir={copy}", "--json")[1])
    assert facts["best"] == {"step": 12, "metric": "top1", "value": 0.9}
    source = trained[1]
    for more, step in (((), 24), (("--step=best",), 12), (("--step=18",), 18)):
        code, found, text = scored(tell, copy, source, *more)
        assert (code, found.get("step")) == (0, step), text
    code, out, error = tell(
        predict.main, f"--workdir={copy}", "--step=best", source / "ant" / "0.png"
    )
    assert (code, "step 12" in out) == (0, True), error
    code, _, text = scored(tell, copy, source, "--step=best", "--config.checkpoint.best=top9")
    assert (code, "loss, top1, top5" in text) == (64, True)
    code, _, text = scored(tell, copy, source, "--step=best", "--config.checkpoint.best=")
    assert (code, "--config.checkpoint.best=top1" in text) == (64, True)
    code, _, text = scored(tell, copy, source, "--step=bset")
    assert (code, "neither the number of a step nor 'best'" in text) == (64, True)
    code, _, text = tell(
        export.main, f"--workdir={copy}", "--format=safetensors", f"--out={tmp_path / 'x'}",
        "--step=best", "--part=0/2",
    )
    assert (code, "needs --step=N" in text) == (64, True)


@pytest.mark.slow
def test_class_folders_of_any_name_are_trained_and_predicted(compiled_once, tell, tmp_path):
    names = ["new\nline", " blank ", '"q"', "null", os.fsdecode(b"caf\xe9"), "\x1b[31mred"]
    data = folders(tmp_path / "data", **dict.fromkeys(names, "ant"))
    argv = [*SMALL, f"--config.data.source=folder:{data}", "--config.steps=1"]
    code, _, error = tell(train.main, *argv, f"--workdir={tmp_path / 'run'}")
    assert code == 0, error
    image = data / names[4] / "0.png"
    own = f"--class_names={tmp_path / 'run' / 'class_names.txt'}"
    for more in ((), (own,), ("--json",)):
        code, out, error = tell(predict.main, f"--workdir={tmp_path / 'run'}", *more, image)
        assert code == 0, error
        out.encode()
        assert "\x1b" not in out
    assert scored(tell, tmp_path / "run", data)[0] == 0
