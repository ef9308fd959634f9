"""Where the routers of a model sent the tokens of a text, recorded compactly.

Letters: R rows (sequences), L length, P sparse blocks of a stack, E experts, K choices of a token.

One byte for each choice and layer, two for its gate: 100,000 tokens of a model with twelve sparse
layers and two choices are about 7 MB in memory, and less in the file (`write`, NumPy's .npz), which
`read` reads back.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.models.architecture import Architecture
from moe.models.output import router_outputs
from moe.models.transformer import Transformer
from trainlib.errors import DataError, NumericAbort, shown
from trainlib.files import write_atomically
from trainlib.formats.npz import read_arrays
from trainlib.model.weights import Arrays
from trainlib.step.plan import Plan
from trainlib.step.step import Batch
from trainlib.untrusted_files import parse_json, physical_memory

FORMAT = 1  # of the file; changes when an older reader would misread it
STACKS = {"encoder", "decoder"}
_ARRAYS = ("tokens", "segments", "targets", "expert", "gate", "placed", "entropy")


@dataclasses.dataclass(frozen=True)
class StackRecord:
    """What one stack read, and where its routers sent it.

    Attributes:
      tokens: int32 [R, L], what the stack reads at each place: of a decoder the token before.
      segments: int32 [R, L], the example of the row that a token belongs to; 0 is padding.
      targets: int32 [R, L], what a decoder has to predict there; of an encoder, its tokens.
      expert: [P, R, L, K] of the smallest unsigned type that holds E: the expert of each choice;
        E: it was not sent.
      gate: float16 [P, R, L, K], its weight; 0 where it was not sent or was dropped.
      placed: bool [P, R, L, K], whether it found a slot.
      entropy: float16 [P, R, L], of the router's probabilities, in nats.
      blocks: numbers of the P sparse blocks in the stack, from 0.
      experts: E.
      ordered: whether choice 0 is the first choice of its token; else choice k is expert k.
    """

    tokens: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    expert: np.ndarray
    gate: np.ndarray
    placed: np.ndarray
    entropy: np.ndarray
    blocks: tuple[int, ...]
    experts: int
    ordered: bool = True

    @property
    def real(self) -> np.ndarray:
        """bool [R, L], False at padding."""
        return self.segments > 0

    def first(self, layer: int) -> np.ndarray:
        """int64 [R, L]: the expert that a token wanted most in a layer (0 to P - 1), whether or not
        it found a slot there; E where there is none. Where experts choose, it is the one with the
        largest gate.
        """
        expert = self.expert[layer].astype(np.int64)
        if self.ordered:
            return expert[..., 0]
        best = np.argmax(self.gate[layer], axis=-1)
        taken = np.any(self.placed[layer], axis=-1)
        return np.where(taken, best, self.experts)


@dataclasses.dataclass(frozen=True)
class Record:
    """What the stacks of a model did with rows of text.

    Attributes:
      stacks: "encoder", "decoder" -> its record; one without experts has P = 0.
      label: int32 [R], which of `labels` a row belongs to.
      labels: names of languages or sources.
      facts: what was read: run, step, data, vocabulary.
    """

    stacks: Mapping[str, StackRecord]
    label: np.ndarray
    labels: tuple[str, ...]
    facts: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """Tokens of all stacks, without padding."""
        return sum(int(stack.real.sum()) for stack in self.stacks.values())


Traced = tuple[Batch, dict[str, dict[str, jax.Array]]]


def make_trace(plan: Plan[Architecture]) -> Callable[[Arrays, Arrays, Batch], Traced]:
    """The function of weights and a batch that `Recorder.add` takes the results of: a forward pass
    of evaluation, which gives the batch back (the whole of it, on every host) and, of each stack
    with experts, the arrays of a `StackRecord` and how many tokens had no finite logits.
    """

    def trace(params: Arrays, model_state: Arrays, batch: Batch) -> Traced:
        model = plan.abstract.bind(params, model_state)
        assert isinstance(model, Transformer)
        _, reports = model.hidden(batch, trace=True)
        found = {}
        for stack, router in router_outputs(reports).items():
            choices, routing = router.choices, plan.model.stack_routing(stack)
            assert choices is not None
            assert routing is not None
            small = routing.num_experts < 2**8
            found[stack] = {
                "expert": choices.expert.astype(jnp.uint8) if small else choices.expert,
                "gate": choices.gate.astype(jnp.float16),
                "placed": choices.placed,
                "entropy": choices.entropy.astype(jnp.float16),
                "nonfinite": router.metrics["nonfinite"][0],
            }
        return batch, found

    return trace


class Recorder:
    """Collects what `make_trace` gives, batch by batch.

    Args:
      model: whose routers they are.
    """

    def __init__(self, model: Architecture):
        self.model = model
        self.tokens = 0
        self._stacks: dict[str, list[dict[str, np.ndarray]]] = {}
        self._labels: list[np.ndarray] = []

    def add(self, traced: Traced, label: np.ndarray | int) -> None:
        """Adds a batch whose rows have a label (int [B], or one for all); rows of padding go.

        Raises:
          NumericAbort: router logits that are not finite.
        """
        batch, stacks = jax.device_get(traced)
        rows = (batch[f"{next(iter(self.model.stacks))}_segments"] > 0).any(axis=1)
        for stack in self.model.stacks:
            tokens, segments = batch[f"{stack}_inputs"], batch[f"{stack}_segments"]
            found = stacks.get(stack) or _nothing(segments.shape)
            self._check(stack, found.pop("nonfinite"))
            targets = batch["decoder_targets"] if stack == "decoder" else tokens
            arrays = {"tokens": tokens, "segments": segments, "targets": targets}
            kept = {name: value[rows] for name, value in arrays.items()}
            kept |= {name: value[:, rows] for name, value in found.items()}
            self._stacks.setdefault(stack, []).append(kept)
            self.tokens += int((segments > 0).sum())
        self._labels.append(np.broadcast_to(np.asarray(label, np.int32), rows.shape)[rows])

    def _check(self, stack: str, nonfinite: np.ndarray) -> None:
        if not nonfinite.any():
            return
        layer = int(np.flatnonzero(nonfinite)[0])
        block = self.model.sparse_blocks(stack)[layer]
        raise NumericAbort(
            f"The router of {stack}.{block} gives logits that are not finite for "
            f"{int(nonfinite[layer]):,} tokens of a batch, so these have no expert and there is "
            "nothing to analyse. Its weights are damaged, or too large for model.dtype: try an "
            "earlier --step, or --config.model.dtype=float32."
        )

    def record(self, labels: Sequence[str], facts: Mapping[str, Any]) -> Record:
        """All that was added; there is something."""
        stacks = {}
        for stack, parts in self._stacks.items():
            routing = self.model.stack_routing(stack)
            experts = routing.num_experts if routing is not None else 0
            axis: dict[str, int] = dict.fromkeys(("tokens", "segments", "targets"), 0)
            joined = {
                name: np.concatenate([part[name] for part in parts], axis=axis.get(name, 1))
                for name in parts[0]
            }
            joined["expert"] = joined["expert"].astype(np.min_scalar_type(experts))
            stacks[stack] = StackRecord(
                **joined,
                blocks=self.model.sparse_blocks(stack),
                experts=experts,
                ordered=routing is None or routing.router == "tokens_choose",
            )
        return Record(stacks, np.concatenate(self._labels), tuple(labels), dict(facts))


def _nothing(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Of a stack without experts, whose tokens belong to the text all the same."""
    choices = (0, *shape, 1)
    return {
        "expert": np.zeros(choices, np.uint8),
        "gate": np.zeros(choices, np.float16),
        "placed": np.zeros(choices, bool),
        "entropy": np.zeros((0, *shape), np.float16),
        "nonfinite": np.zeros(0),
    }


def write(record: Record, path: Path) -> None:
    """Writes a record as .npz: `STACK/NAME` of each array of a `StackRecord`, with the choices that
    found a slot as packed bits; `label`; and `about`, JSON with everything else.
    """
    arrays: dict[str, np.ndarray] = {"label": record.label}
    about: dict[str, Any] = {"format": FORMAT, "labels": record.labels, "facts": record.facts}
    about["stacks"] = {}
    for name, stack in record.stacks.items():
        for field in _ARRAYS:
            arrays[f"{name}/{field}"] = getattr(stack, field)
        arrays[f"{name}/placed"] = np.packbits(stack.placed)
        about["stacks"][name] = {
            "blocks": stack.blocks,
            "experts": stack.experts,
            "ordered": stack.ordered,
        }
    arrays["about"] = np.asarray(json.dumps(about))
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomically(path, packed.getvalue())


def read(path: Path) -> Record:
    """Reads what `write` wrote, of anybody: nothing in it is believed, and no array is unpacked
    before its size is known to fit this machine.

    Raises:
      DataError: it is no such file, a damaged one, or one too large for this machine.
    """
    try:
        arrays = read_arrays(path, physical_memory() // 2)
        about = parse_json(str(arrays.pop("about")).encode(), "its `about`", error=DataError)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}")
        label, labels = arrays["label"], tuple(map(str, about["labels"]))
        _check("label", label, np.integer, (len(label),), len(labels))
        if not about["stacks"].keys() <= STACKS:
            raise ValueError(f"stacks {', '.join(map(str, about['stacks']))}")
        stacks = {
            name: _stack(name, facts, arrays, len(label)) for name, facts in about["stacks"].items()
        }
        return Record(stacks, label, labels, dict(about["facts"]))
    except (DataError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{shown(path)} is no record of routing that can be read "
            f"({shown(str(error), 160)}). Write it again with the analyse command."
        ) from None


def _stack(
    name: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], rows: int
) -> StackRecord:
    """The record of a stack that read so many rows.

    Raises:
      ValueError, KeyError, TypeError: something in it is not as `StackRecord` says.
    """
    own = {field: arrays[f"{name}/{field}"] for field in _ARRAYS}
    blocks, experts, ordered = tuple(facts["blocks"]), facts["experts"], facts["ordered"]
    for number in (*blocks, experts):
        if type(number) is not int or not 0 <= number < 2**31:
            raise ValueError(f"{name} has {number!r} for a number")
    if own["expert"].ndim != 4 or len(own["expert"]) != len(blocks):
        raise ValueError(f"{name}/expert has the shape {own['expert'].shape}")
    _, _, length, choices = own["expert"].shape
    tokens, of_choices = (rows, length), (len(blocks), rows, length, choices)
    for field in ("tokens", "segments", "targets"):
        _check(f"{name}/{field}", own[field], np.integer, tokens, 2**31)
    _check(f"{name}/expert", own["expert"], np.unsignedinteger, of_choices, experts + 1)
    _check(f"{name}/gate", own["gate"], np.floating, of_choices)
    _check(f"{name}/entropy", own["entropy"], np.floating, of_choices[:3])
    count = own["expert"].size
    _check(f"{name}/placed", own["placed"], np.uint8, (-(-count // 8),))
    own["placed"] = np.unpackbits(own["placed"], count=count).astype(bool).reshape(of_choices)
    return StackRecord(**own, blocks=blocks, experts=experts, ordered=bool(ordered))


def _check(
    name: str, array: np.ndarray, kind: Any, shape: tuple[int, ...], end: int | None = None
) -> None:
    """Refuses an array of another type or shape, or with values outside of 0 to `end`."""
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, and not {shape}")
    if end is not None and array.size and not (array.min() >= 0 and array.max() < end):
        raise ValueError(f"{name} has values outside of 0 to {end - 1}")
