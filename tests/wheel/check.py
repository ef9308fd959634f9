"""The wheel, installed by every Python that it claims and used from an empty folder: `make
wheel-check`.

Each Python that this machine has (python3.11 and so on, or one of pyenv) gets a virtual environment
of its own, with the versions of constraints.txt. One line a command; the exit code is 0 when
everything passed, whatever Pythons are missing, which are listed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("3.11", "3.12", "3.13")
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1200  # seconds for one command; an installation downloads half a gigabyte

# The published network at a width and depth that compile in seconds.
TINY = (
    "--config=aa_resnet50:digits",
    "--config.model.blocks=1,1,1,1",
    "--config.model.width=0.25",
    "--config.model.attention.num_heads=2",
    "--config.model.attention.min_key_depth=4",
    "--config.batch_size=32",
    "--config.steps=3",
    "--config.schedule.warmup_steps=1",
)
PICTURE = """
from PIL import Image
Image.new("RGB", (32, 32), (200, 30, 30)).save("picture.png")
"""
LIBRARY = """
import jax.numpy as jnp, vitattn
from flax import nnx
model = vitattn.create_model("aa_resnet50", num_classes=10, image_size=32, rngs=nnx.Rngs(0))
logits = nnx.jit(lambda m, images: m(images, train=False))(model, jnp.zeros((1, 32, 32, 3)))
assert logits.shape == (1, 10), logits.shape
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """What is typed in the empty folder, its exit code, and words that it prints."""

    words: tuple[str, ...]
    code: int = 0
    prints: str = ""


def commands(folder: Path) -> Iterator[Command]:
    """What someone does with a new installation, in order."""
    yield Command(("vitattn-moe", "--help"), prints="usage: vitattn-moe")
    yield Command(("vitattn-moe", "--version"), prints="vitattn-moe ")
    yield Command(("vitattn-moe", "completion", "bash"), prints="complete -F")
    yield Command(
        ("vitattn-moe", "describe", "--config=configs/aa_resnet50.py"), prints="25,809,392"
    )
    yield Command(("vitattn-moe", "train", *TINY, "--workdir=run"), prints="top-1")
    yield Command(("vitattn-moe", "report", "--workdir=run"), prints="complete")
    yield Command(("vitattn-moe", "evaluate", "--workdir=run"), prints="top-1")
    yield Command(("python", "-c", PICTURE))
    yield Command(("vitattn-moe", "predict", "--workdir=run", "picture.png"), prints="picture.png")
    yield Command(("python", "-m", "launch.describe", "--config=st_moe_tiny"), prints="2,494,720")
    yield Command(("python", "-c", LIBRARY))
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.py").write_text("from configs.st_moe_tiny import get_config\n")
    mine = "--config=configs/mine.py"
    yield Command(("python", "-m", "launch.describe", mine), prints="2,494,720")
    (folder / "configs" / "__init__.py").touch()
    yield Command(("vitattn-moe", "describe", mine), prints="2,494,720")
    yield Command(("python", "-m", "launch.describe", mine), 64, "another 'configs'")


def interpreter(version: str) -> Path | None:
    """A Python of this version that starts, of the path or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    places = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for place in filter(None, places):
        done = subprocess.run([place, "-c", "import venv"], capture_output=True, timeout=60)
        if done.returncode == 0:
            return Path(place)
    return None


def build(out: Path) -> Path:
    """The wheel of this checkout."""
    words = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), ".")
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, timeout=LIMIT)
    return next(out.glob("*.whl"))


def run(words: tuple[str, ...], folder: Path, environment: Path) -> subprocess.CompletedProcess:
    """Runs a command of a virtual environment in a folder."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"JAX_PLATFORMS": "cpu", "VITATTN_MOE_COMPILE_CACHE": str(folder.parent / "compiled")}
    return subprocess.run(
        [environment / "bin" / words[0], *words[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def check(python: Path, wheel: Path, folder: Path) -> int:
    """Installs and uses the wheel; prints a line a command and returns how many failed."""
    environment, empty = folder / "environment", folder / "empty"
    empty.mkdir(parents=True)
    subprocess.run([python, "-m", "venv", environment], check=True, timeout=LIMIT)
    install = ("pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}[plots]")
    failed = 0
    for command in itertools.chain([Command(install)], commands(empty)):
        start = time.monotonic()
        done = run(command.words, empty, environment)
        text = done.stdout + done.stderr
        right = done.returncode == command.code and command.prints in " ".join(text.split())
        shown = re.sub(r"\s+", " ", " ".join(command.words))[:90]
        print(f"{'ok' if right else 'FAILED':<7} {time.monotonic() - start:5.0f} s  {shown}")
        if not right:
            failed += 1
            print(f"exit code {done.returncode}, expected {command.code}\n{text[-3000:]}")
    return failed


def main() -> int:
    """Tries every Python that is here; returns 1 when anything failed or none was found."""
    found = {version: interpreter(version) for version in VERSIONS}
    failed = {}
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "wheel")
        for version, python in found.items():
            if python is not None:
                print(f"\nPython {version}: {python}", flush=True)
                failed[version] = check(python, wheel, Path(scratch) / version)
    missing = [version for version, python in found.items() if python is None]
    passed = [version for version, count in failed.items() if not count]
    print(f"\nThe wheel passed with Python {', '.join(passed) or 'none'}.")
    if missing:
        print(f"Not tried, because this machine does not have it: Python {', '.join(missing)}.")
    return int(not failed or any(failed.values()))


if __name__ == "__main__":
    sys.exit(main())
