"""The cases and their files: a JSON object a line, 20 lines a file (docs/router_conformance.md)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.conformance.reference import GRADIENTS, Answer, Choices, cotangent
from moe.conformance.settings import Settings
from trainlib.errors import ConfigError, DataError, nearest, shown
from trainlib.untrusted_files import parse_json, read_small

FOLDER = Path(__file__).parent / "files"
FORMAT = 1
_NAME = re.compile(r"[\w.-]{1,60}/[\w.-]{1,60}")
# Significant digits of results, of which float32 has seven, and digits after the point.
_DIGITS, _DECIMALS = 6, 6


@dataclasses.dataclass(frozen=True)
class Case:
    """One question to a router, and the answer of the reference.

    Attributes:
      name: THEME/NUMBER.
      settings: what is asked for.
      logits: float32 [B, L, E]; of several layers [N, B, L, E].
      mask: bool [B, L], False for padding.
      draws: float32 [B, L, K - 1], uniform in [0, 1), for the policy "random".
      bias: float32 [E], for `balance_bias`; zeros where there is none.
      choices: what becomes of each choice; None of several layers.
      expected: the answer; of several layers the losses alone.
    """

    name: str
    settings: Settings
    logits: np.ndarray
    mask: np.ndarray
    draws: np.ndarray
    bias: np.ndarray
    choices: Choices | None
    expected: Answer

    @property
    def layers(self) -> int:
        """N."""
        return len(self.logits) if self.logits.ndim == 4 else 1

    @property
    def group_size(self) -> int:
        """S."""
        return self.settings.group_sequences * self.mask.shape[1]

    @property
    def capacity(self) -> int:
        """C of a group; S where there is none."""
        return self.settings.capacity(self.group_size)

    @property
    def cotangent(self) -> np.ndarray:
        """[B, L, E]: the weights of `combine` in the gradient "combine"."""
        return cotangent(self.logits.shape[-3:])


def themes(folder: Path = FOLDER) -> list[str]:
    """Names of the files, without their ending."""
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def load(only: Sequence[str] = (), folder: Path = FOLDER) -> list[Case]:
    """The cases of these themes, or of all.

    Raises:
      DataError: there is no such theme, or a file that is not as it should be.
    """
    known = themes(folder)
    if not known:
        raise DataError(
            f"There are no cases in {shown(folder)}. A file of cases is THEME.jsonl, a case a line."
        )
    for theme in only:
        if theme not in known:
            raise DataError(
                f"There are no cases '{shown(theme)}' in {shown(folder)}. "
                f"{nearest(theme, known)}Themes: {', '.join(known)}."
            )
    return [case for theme in (only or known) for case in _read(folder / f"{theme}.jsonl")]


def _read(path: Path) -> list[Case]:
    cases = []
    content = read_small(path, follow=True, error=DataError)
    for number, line in enumerate(content.splitlines(), 1):
        case = parse_json(line, f"{shown(path)}, line {number}", error=DataError)
        try:
            cases.append(decode(case))
        except (ConfigError, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
            # A key that is missing says its name and nothing else.
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{shown(path)}, line {number} is no case of format {FORMAT}: {shown(what, 300)}"
            ) from error
    if not cases:
        raise DataError(f"{shown(path)} is empty: a file of cases has a case a line.")
    return cases


def decode(data: Mapping[str, Any]) -> Case:
    """A case of what JSON holds.

    Raises:
      ConfigError: its settings are not those of `Settings`.
      ValueError, KeyError, TypeError, IndexError, OverflowError: it holds something else.
    """
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']}")
    name, settings = data["name"], Settings.of(data["settings"])
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the name is {name!r}, and not THEME/NUMBER")
    logits = np.array(_numbers(data["logits"]), np.float32)
    if logits.ndim not in (3, 4) or not logits.size or logits.shape[-1] != settings.num_experts:
        raise ValueError(f"logits of shape {logits.shape}, of {settings.num_experts} experts")
    shape = logits.shape[-3:-1]
    if shape[0] % settings.group_sequences:
        raise ValueError(f"{shape[0]} sequences in groups of {settings.group_sequences}")
    mask, draws = np.ones(shape), np.zeros((*shape, settings.top_k - 1))
    if "mask" in data:
        mask = _array(data["mask"], "mask", mask.shape)
        _within("mask", mask, (mask == 0) | (mask == 1))
    if "draws" in data:
        draws = _array(data["draws"], "draws", draws.shape)
        _within("draws", draws, (draws >= 0) & (draws < 1))
    bias = np.zeros(settings.num_experts)
    if settings.balance_bias:
        bias = _array(data["bias"], "bias", bias.shape)
    draws, bias = (array.astype(np.float32) for array in (draws, bias))
    case = Case(name, settings, logits, mask.astype(bool), draws, bias, None, Answer())
    expected = data["expected"]
    z = float(_array(expected["z"], "z", ()))
    balance = None
    if not settings.experts_choose:
        balance = float(_array(expected["balance"], "balance", ()))
    if case.layers > 1:
        return dataclasses.replace(case, expected=Answer(balance=balance, z=z))
    choices = _choices(case, expected)
    answer = Answer(np.zeros(logits.shape), np.full(logits.shape, -1), balance, z)
    assert answer.combine is not None
    assert answer.position is not None
    for b, l, k in np.argwhere(choices.position >= 0):
        at = b, l, choices.expert[b, l, k]
        answer.combine[at], answer.position[at] = choices.gate[b, l, k], choices.position[b, l, k]
    answer.gradients = {
        n: _array(expected["gradients"][n], f"gradients.{n}", logits.shape)
        for n in GRADIENTS
        if balance is not None or n != "balance"
    }
    return dataclasses.replace(case, choices=choices, expected=answer)


def _choices(case: Case, expected: Mapping[str, Any]) -> Choices:
    """[B, L, K] of [expert, slot, gate]; K is E where experts choose."""
    settings, capacity = case.settings, case.capacity
    if expected["capacity"] != capacity:
        raise ValueError(f"capacity {expected['capacity']}, and the settings give {capacity}")
    shape = (*case.mask.shape, settings.width, 3)
    expert, position, gate = np.moveaxis(_array(expected["choices"], "choices", shape), -1, 0)
    for what, values, size in (
        ("an expert of choices", expert, settings.num_experts),
        ("a slot of choices", position, capacity),
    ):
        _within(what, values, (values == np.round(values)) & (values >= -1) & (values < size))
    _within("a slot without an expert", position, (expert >= 0) | (position < 0))
    return Choices(expert.astype(int), position.astype(int), gate)


def _array(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 of this shape.

    Raises:
      ValueError: it holds others than finite numbers, or is of another shape.
    """
    array = np.array(value)
    if array.dtype.kind not in "biuf" and array.size:
        raise ValueError(f"{name} holds what is no number")
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape}, and not {shape}")
    array = array.astype(float)
    _within(name, array, np.isfinite(array))
    return array


def _within(name: str, values: np.ndarray, fits: np.ndarray) -> None:
    if not np.all(fits):
        raise ValueError(f"{name} is {np.asarray(values)[~fits].flat[0]:g}")


def encode(case: Case) -> str:
    """The line of a file."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "name": case.name,
        "settings": case.settings.values(),
        "logits": _plain(case.logits),
    }
    if not case.mask.all():
        data["mask"] = case.mask.astype(int).tolist()
    if case.settings.second_policy == "random":
        data["draws"] = _plain(case.draws)
    if case.settings.balance_bias:
        data["bias"] = _plain(case.bias)
    expected: dict[str, Any] = {}
    if case.choices is not None:
        places = (case.choices.expert, case.choices.position, case.choices.gate)
        expected["capacity"] = case.capacity
        expected["choices"] = [
            [
                [[int(e), int(p), _rounded(g)] for e, p, g in zip(*token, strict=True)]
                for token in row
            ]
            for row in _tokens(places)
        ]
    if case.expected.balance is not None:
        expected["balance"] = _rounded(case.expected.balance)
    expected["z"] = _rounded(case.expected.z)
    if case.expected.gradients:
        expected["gradients"] = {
            n: _plain(np.round(g, 5)) for n, g in case.expected.gradients.items()
        }
    return json.dumps(data | {"expected": expected}, separators=(",", ":"))


def _tokens(arrays: Sequence[np.ndarray]) -> Iterable[Iterable[tuple[np.ndarray, ...]]]:
    """Of arrays [B, L, ..], what each has of each token."""
    return (zip(*rows, strict=True) for rows in zip(*arrays, strict=True))


def write(cases: Iterable[Case], folder: Path) -> None:
    """Writes the files of cases."""
    lines: dict[str, list[str]] = {}
    for case in cases:
        lines.setdefault(case.name.split("/")[0], []).append(encode(case))
    folder.mkdir(parents=True, exist_ok=True)
    for theme, text in lines.items():
        (folder / f"{theme}.jsonl").write_text("\n".join(text) + "\n")


_NAMES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}  # JSON has no such numbers


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return _NAMES[value] if isinstance(value, str) else value


def _plain(array: np.ndarray) -> Any:
    if array.ndim:
        return [_plain(entry) for entry in array]
    return _rounded(array) if np.isfinite(array) else str(float(array))


def _rounded(value: Any) -> int | float:
    short = round(float(f"{float(value):.{_DIGITS}g}"), _DECIMALS)
    return int(short) if short == int(short) and abs(short) < 1e6 else short
