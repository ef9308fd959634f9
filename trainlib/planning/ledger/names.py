"""What a person calls an operation: its layer, source line and phase; from names and frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainlib.planning.hlo.frames import Frame

UNNAMED = "(unnamed)"

# What JAX adds to the stack of names.
_WRAPPER = re.compile(
    r"^(?:jvp|transpose|vmap|pmap|jit|pjit|xmap|remat|checkpoint|custom_[a-z_]+)\((.*)\)$"
)
_JIT = re.compile(r"^(?:jit|pjit|pmap)\(.*\)$")
_ADDED = {
    *("while", "body", "cond", "closed_call", "core_call", "call", "checkpoint", "remat", "remat2"),
    *("rematted_computation", "shard_map", "scan", "pjit", "jit", "custom_jvp_call", "vmap", "jvp"),
    *("custom_vjp_call", "custom_vjp_call_jaxpr", "custom_jvp_call_jaxpr", "xla_call", "transpose"),
    *("named", "cond_body", "body_fun", "cond_fun", "custom_lin", "linear_call", "run_state", ""),
}
_BRANCH = re.compile(r"^branch_\d+_fun$")
_METHOD = re.compile(r"(?:^|\.)([A-Z]\w*)\.\w+(?:\.<locals>.*)?$")
_ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("site-packages/", "dist-packages/")
# Files of this package that only carry calls on: an operation is of what they call, or of who
# called them.
_PLUMBING = re.compile(
    r"(?<!/tests)/(?:trainlib/(?:step/|sharding/|planning/|model/weights\.py|errors\.py)"
    r"|launch/(?:planning/|compile\.py|cli\.py))|^<frozen runpy>"
)


def _components(text: str) -> list[str]:
    """Parts of a name stack between slashes outside brackets."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "/" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def scopes(op: str) -> list[str]:
    """The named scopes of `jit(step)/transpose(jvp(stage1))/conv1/dot_general`: stage1, conv1."""
    *outer, _ = _components(op)
    found: list[str] = []
    for part in outer:
        if _JIT.match(part):
            continue
        inner = part
        while match := _WRAPPER.match(inner):
            inner = "" if _JIT.match(inner) else match[1]
        here = [name for name in inner.split("/") if not _is_added(name)]
        # What is computed again says twice where it stands: both times from the outermost scope.
        if inner != part and found and here[:1] == found[:1]:
            found = []
        found += here
    return found


def _is_added(name: str) -> bool:
    """Whether JAX wrote a component, not the user."""
    return name in _ADDED or "->" in name or "<locals>" in name or bool(_BRANCH.match(name))


def classes(frames: Sequence[Frame]) -> list[str]:
    """The classes whose methods called each other, from the outermost: ResNet, Bottleneck, Conv.

    One that comes again, as a model whose stack of blocks calls it back, goes on where it was.
    """
    found: list[str] = []
    for frame in reversed(frames):
        match = _METHOD.search(frame.function)
        if not match or _packaged(frame.file):
            continue
        if match[1] in found:
            del found[found.index(match[1]) :]
        found.append(match[1])
    return found


def layer(op: str, frames: Sequence[Frame]) -> str:
    """Named scopes; the classes that called each other where there are none; or ""."""
    return "/".join(scopes(op) or classes(frames))


_ARGUMENT = re.compile(r"\['([\w.]+)'\]$")


def layer_of_argument(op: str) -> str:
    """The layer that a weight is of, `state.params['conv1.0.kernel']`; "" for what is none."""
    match = _ARGUMENT.search(op)
    return "/".join(match[1].split(".")[:-1]) if match else ""


def phase(op: str) -> str:
    """Which part of a training step: "recomputed", "backward", "forward", or "" for the rest."""
    if "rematted_computation" in op:
        return "recomputed"
    return "backward" if "transpose(" in op else "forward" if "jvp(" in op else ""


def _packaged(file: str) -> bool:
    return any(mark in file for mark in _PACKAGES)


def shortened(file: str) -> str:
    """A path as a person would say it: within its package, the project or the working directory."""
    for mark in _PACKAGES:
        if mark in file:
            return file.rpartition(mark)[2]
    for root in (_ROOT, Path.cwd()):
        if Path(file).is_relative_to(root):
            return str(Path(file).relative_to(root))
    return file


def source(frames: Sequence[Frame]) -> str:
    """`file:line` of the innermost call in code of the user or of the project.

    Libraries and what merely carries calls on are passed over, but for where there is nothing else.
    """
    if not frames:
        return ""
    own = [f for f in frames if not _packaged(f.file)]
    told = [f for f in own if not _PLUMBING.search(f.file)]
    # An optimiser's update is called by plumbing alone: its own line says more.
    chosen = told[0] if told and told[0].function != "<module>" else frames[0]
    return f"{shortened(chosen.file)}:{chosen.line}"
