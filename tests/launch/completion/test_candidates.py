"""How a line that is being typed may go on, and what bash makes of it."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.common import load
from launch.completion import candidates, scripts

ROOT = Path(__file__).resolve().parents[3]


def after(line):
    return candidates.complete(f"vitattn-moe {line}")


def program(folder: Path) -> None:
    """The program as the wheel installs it."""
    path = folder / "vitattn-moe"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from vitattn_moe import main\nmain()\n"
    )
    path.chmod(0o755)


def test_commands_and_their_flags():
    assert after("pre") == ["predict", "prepare"]
    assert {"train", "import", "--help", "--version"} <= set(after(""))
    assert after("train --conf") == ["--config.", "--config="]
    assert after("export --form") == ["--format="]
    assert after("evaluate --js") == ["--json"]  # takes no value
    assert after("completion z") == ["zsh"]
    assert after("reproduce --paper=s") == ["--paper=sasa", "--paper=st_moe"]
    assert after("reproduce --scale ") == ["full", "tiny"]
    assert after("train --compile_cache=o") == ["--compile_cache=off"]
    assert after("nothing --a") == after("report --nothing=") == []


@pytest.mark.parametrize("path", load.shipped(), ids=lambda path: path.stem)
def test_every_shipped_configuration_and_variant(path):
    """Variants are read without running the file, which has to give the same."""
    listed = after(f"train --config={path.stem}:")
    module = importlib.import_module(f"configs.{path.stem}")
    assert listed == sorted(f"--config={path.stem}:{name}" for name in module.VARIANTS)
    assert f"--config={path.stem}" in after("train --config=")


def test_a_configuration_after_a_blank_and_as_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("VARIANTS = {'small': {}}")
    (tmp_path / "configs" / "notes.txt").touch()
    assert after("train --config st_moe_ti") == [
        "st_moe_tiny",
        "st_moe_tiny:deepseek",
        "st_moe_tiny:dense",
        "st_moe_tiny:lm_adapt",
        "st_moe_tiny:ul2",
    ]
    assert after("train --config st_moe_t") == ["st_moe_tasks", "st_moe_tiny"]
    assert after("train --config=con") == ["--config=configs/"]
    assert after("train --config=configs/") == ["--config=configs/mine.py"]
    assert after("train --config=configs/mine.py:") == ["--config=configs/mine.py:small"]


def test_keys_of_the_configuration_and_their_values():
    assert after("train --config=aa_resnet50:digits --config.schedule.warmup_ste") == [
        "--config.schedule.warmup_steps="
    ]
    assert "--config.routing.top_k=" in after("describe --config=st_moe_tiny --config.routing.t")
    assert after("train --config=st_moe_tiny --config.model.stem") == []
    assert after("train --config=aa_resnet50 --config.optimizer.nesterov=") == [
        "--config.optimizer.nesterov=false",
        "--config.optimizer.nesterov=true",
    ]
    assert after("train --config=aa_resnet50 --config.data.augment=sh") == [
        "--config.data.augment=shift"
    ]
    assert {"--config.steps=", "--config.model.d_ff="} <= set(after("train --config."))


def test_keys_to_compare_and_what_a_profile_is_of():
    line = "compile --config=aa_resnet50 --compare=model.att"
    assert "--compare=model.attention.kind" in after(line)
    assert after("compile --by=s") == ["--by=source"]


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "run.txt").touch()
    (tmp_path / ".hidden").touch()
    assert after("evaluate --workdir=ru") == ["--workdir=runs/"]
    assert after("evaluate --workdir runs/") == ["runs/mine/"]
    assert after("report --compare=ru") == ["--compare=run.txt", "--compare=runs/"]
    assert after("predict --class_names=ru") == ["--class_names=run.txt", "--class_names=runs/"]
    assert after("predict ru") == ["run.txt", "runs/"]
    assert after("predict ") == ["run.txt", "runs/"]
    assert after("predict .h") == [".hidden"]
    assert after("train ru") == []  # takes no arguments but flags
    assert after("predict nowhere/") == []


@pytest.mark.parametrize(
    ("line", "point", "found"),
    [
        ("vitattn-moe eval", None, ["evaluate"]),
        ("vitattn-moe train --config=aa_resnet50:dig", None, ["digits"]),
        ("vitattn-moe train --workdir=r", None, ["runs/"]),
        ("vitattn-moe predict my", None, ["my\\ cat.png"]),
        ("vitattn-moe repo --json", 16, ["report"]),
    ],
)
def test_bash(line, point, found, tmp_path):
    """Readline replaces what follows the last = or :, and words with blanks are quoted."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    (tmp_path / "runs").mkdir()
    (tmp_path / "my cat.png").touch()
    script = f"{scripts.BASH}\nCOMP_LINE=$1 COMP_POINT=$2\n_vitattn_moe ./vitattn-moe\n"
    script += "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    program(tmp_path)
    done = subprocess.run(
        [bash, "-c", script, "bash", line, str(len(line) if point is None else point)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == found, done.stderr


@pytest.mark.parametrize("shell", scripts.SCRIPTS)
def test_a_shell_reads_its_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    path = tmp_path / "script"
    path.write_text(scripts.SCRIPTS[shell])
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish(tmp_path):
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("no fish")
    program(tmp_path)
    line = "vitattn-moe train --config=aa_resnet50:dig"
    script = f"set PATH {tmp_path} $PATH\n{scripts.FISH}\ncomplete -C '{line}'\n"
    done = subprocess.run([fish, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "--config=aa_resnet50:digits\n", done.stderr
