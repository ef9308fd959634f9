"""The command that analyses the routers of a run: which tokens go to which experts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from moe import plan as plan_lib
from moe.analysis import findings, pictures, reading, record, report
from moe.analysis.record import Record, Recorder
from moe.analysis.similarity import similarity
from moe.data import check_vocabulary, make_vocabulary
from moe.models import architecture
from moe.models.architecture import Architecture
from moe.text.vocabulary import Vocabulary
from trainlib.config import read_json
from trainlib.errors import ConfigError, DataError, StorageError, shown
from trainlib.formats.load import load_weights
from trainlib.model.weights import Arrays
from trainlib.run.progress import Progress, summary
from trainlib.step import step
from trainlib.step.plan import Plan

RECORD, REPORT, DATA = "tokens.npz", "report.md", "report.json"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to analyse.

    Attributes:
      out: directory of the report; made when absent.
      input: JSONL file; None takes the split.
      split: "holdout" or "train".
      tokens: about how many to read; 0 is all.
      row: number of the row whose way through the experts is drawn.
    """

    out: Path
    input: Path | None = None
    split: str = "holdout"
    tokens: int = 100_000
    row: int = 0


def run(
    config: ConfigDict, workdir: Path, request: Request, at_step: int | None = None
) -> dict[str, Any]:
    """Reads text with the weights of a run, and writes what its routers did with each token:
    `report.md` with pictures beside it, `report.json`, and `tokens.npz` (`moe.analysis.record`).

    Returns:
      What `report.json` holds.

    Raises:
      ConfigError: a model without experts, or with one in each layer; nothing is held out; or
        `out` is no directory.
      DataError: no text, or a vocabulary that is not that of the run.
      CheckpointError: there is no checkpoint, or not that one.
      NumericAbort: router logits that are not finite.
      StorageError: the report cannot be written.
    """
    _check_experts(architecture(config.model, config.routing), workdir)
    _check_out(request.out)
    plan = plan_lib.make(config)
    vocabulary = make_vocabulary(config.data)
    _check_vocabulary(config, workdir, vocabulary, plan.model)
    source = (
        reading.of_split(plan, request.split)
        if request.input is None
        else reading.of_file(plan, request.input, vocabulary)
    )
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)
    for note in source.notes:
        print(note, flush=True)
    facts = {
        "run": config.name,
        "step": loaded.step,
        "text": source.title,
        "vocabulary": vocabulary.name,
    }
    found = trace(plan, loaded.weights, source, request.tokens, facts)
    alike = similarity(plan, loaded.weights)
    result = findings.find(found, vocabulary, alike)
    data = findings.as_data(result)
    if jax.process_index() == 0:
        _write(request, found, result, data, vocabulary)
    return data


def trace(
    plan: Plan[Architecture],
    weights: Arrays,
    source: reading.Reading,
    tokens: int,
    facts: dict[str, Any],
) -> Record:
    """One pass over a text.

    Args:
      plan: of the run.
      weights: of the model, with the state of its routers.
      source: what is read; each of its labels gives the same number of tokens, as far as it has
        them.
      tokens: of all labels, about; 0 is all.
      facts: for the record.
    """
    held = plan.abstract.split(weights)
    run_batch = step.compile_eval(record.make_trace(plan), plan)
    recorder = Recorder(plan.model)
    each = -(-tokens // len(source.labels))
    progress = Progress(tokens, enabled=jax.process_index() == 0 and tokens > 0, unit="token")
    for label in range(len(source.labels)):
        before = recorder.tokens
        with source.rows(label) as batches:
            for batch in batches:
                on_device = step.put_batch(batch, plan.batch_sharding)
                recorder.add(run_batch(*held, on_device), label)
                progress.update(min(recorder.tokens, tokens))
                if tokens and recorder.tokens - before >= each:
                    break
    progress.close()
    if not recorder.tokens:
        raise DataError("No row of the text could be read, so there is nothing to analyse.")
    return recorder.record(source.labels, facts)


def _check_experts(model: Architecture, workdir: Path) -> None:
    stacks = [stack for stack in model.stacks if model.stack_routing(stack) is not None]
    if not stacks:
        raise ConfigError(
            f"{shown(workdir)} holds a dense model (routing.num_experts=0): it has no router, and "
            "so nothing to analyse. Give the --workdir of a run with experts."
        )
    routings = [routing for s in stacks if (routing := model.stack_routing(s)) is not None]
    if all(routing.num_experts == 1 for routing in routings):
        raise ConfigError(
            f"{shown(workdir)} holds a model with one expert (routing.num_experts=1): every token "
            "goes to it, and there is nothing to analyse. Give the --workdir of a run with more."
        )


def _check_out(out: Path) -> None:
    there = next(place for place in (out, *out.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(
            f"--out={shown(out)} cannot be made: {shown(there)} is there, and is no directory. "
            "Give a directory, which may be new."
        )


def _check_vocabulary(
    config: ConfigDict, workdir: Path, vocabulary: Vocabulary, model: Architecture
) -> None:
    check_vocabulary(vocabulary, model.vocab_size)
    trained = read_json(workdir / "config.json")
    for key in ("vocabulary", "extra_ids"):
        now, then = config.data[key], trained.get(f"data.{key}", config.data[key])
        if now != then:
            raise DataError(
                f"{shown(workdir)} was trained with data.{key}={shown(repr(then))}, and "
                f"data.{key}={shown(repr(now))} gives every token another meaning. Leave "
                f"--config.data.{key} away."
            )


def _write(
    request: Request,
    found: Record,
    result: findings.Findings,
    data: dict[str, Any],
    vocabulary: Vocabulary,
) -> None:
    out = request.out
    try:
        os.makedirs(out, exist_ok=True)
        record.write(found, out / RECORD)
        drawn = pictures.draw(result, found, vocabulary, out, request.row)
        report.write(result, drawn, out / REPORT)
        report.write_data(data, out / DATA)
    except OSError as error:
        raise StorageError(
            f"The report cannot be written to {shown(out)}: {error.strerror or error}. What is "
            "there now is no whole report. Free space or give another --out; the same command "
            "writes it anew."
        ) from error
    rows = [("step", str(found.facts["step"])), *report.headline(result)]
    last = len(found.label) - 1
    if request.row > last:
        rows.append(
            ("row", f"there is no --row={request.row}: sentence.png shows the last, {last}")
        )
    rows.append(("report", shown(out / REPORT)))
    print(summary(f"{found.facts['run']}: routing of {found.facts['text']}", rows))
