"""The command that answers a file of texts: one JSON object a line in, the same with an answer out.

Each line gets `prediction`, `truncated` (whether the input lost its end) and `unfinished` (whether
the answer did); blank lines stay blank. With decoding.num_return_sequences above 1 it gets
`predictions` too, a list of `text`, `score` (log-probability), `unfinished` and, of beams,
`rank_score`, whose first is `prediction`. A JSON array of objects and gzip files are read as well.

Lines are answered by their lengths (`moe.decoding.waiting`) and written in their order. Finished
lines lie in OUTPUT.partial, and the same command resumes from them after a stop, however hard.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from moe import plan as plan_lib
from moe.data import check_vocabulary, make_vocabulary
from moe.decoding.answer import Answerer
from moe.prediction.answered import Answered
from moe.prediction.lines import SEVERAL, Counts, added_fields, check_input, unknown
from moe.prediction.partial_output import PartialOutput
from trainlib.config import to_json
from trainlib.errors import ConfigError, Preempted, shown
from trainlib.formats.load import load_weights
from trainlib.run.interrupt import StopRequest
from trainlib.run.progress import Progress, summary


@dataclasses.dataclass(frozen=True)
class Request:
    """What to answer.

    Attributes:
      input: JSONL file; every line has the field `inputs`.
      output: JSONL file to be made.
    """

    input: Path
    output: Path


def run(config: ConfigDict, workdir: Path, request: Request, at_step: int | None = None) -> int:
    """Answers every line of a file with the weights of a run; returns the exit code.

    Raises:
      ConfigError: the output is there already.
      DataError: the input is absent or has lines without text; names them.
      CheckpointError: there is no checkpoint, or not that one.
      StorageError: the output cannot be written.
      Preempted: stopped on request; the same command goes on.
    """
    if os.path.lexists(request.output):
        raise ConfigError(
            f"--output={shown(request.output)} is there already. Remove it, or name another file."
        )
    several = config.decoding.num_return_sequences
    added = added_fields(several)
    total = check_input(request.input, added)
    plan = plan_lib.make(config)
    vocabulary = make_vocabulary(config.data)
    check_vocabulary(vocabulary, plan.model.vocab_size)
    answerer = Answerer(plan, vocabulary)
    loaded = load_weights(workdir, at_step, plan.abstract, plan.shardings)

    main_host = jax.process_index() == 0
    made_by = f"{to_json(config)} {loaded.identity}"
    partial = PartialOutput(request.input, request.output, made_by, added, several)
    done, early, counts, lost = partial.resume()
    answered = done + len(early)
    if answered and main_host:
        print(f"going on after {answered:,} of {total:,} lines", flush=True)
    if lost and main_host:
        print(
            f"{shown(partial.path)} held answers to another input, or by other weights or settings "
            f"({lost:,} lines): they are replaced",
            flush=True,
        )
    if main_host and (note := unknown(request.input, vocabulary)):
        print(note, flush=True)
    progress = Progress(total, answered, enabled=main_host, unit="line")
    stream = Answered(answerer, loaded.weights, request.input, done, early, SEVERAL in added)
    with StopRequest() as stop:
        for lines in stream:
            if main_host:
                partial.write(lines, stream.early)
            done += len(lines)
            counts.add(lines, several)
            answered = done + len(stream.early)
            progress.update(answered)
            if stop.requested and done < total:
                progress.close()
                raise Preempted(
                    f"Stopped on request after {answered:,} of {total:,} lines, which are in "
                    f"{shown(partial.path)}; the same command goes on from there."
                )
    progress.close()
    if main_host:
        partial.finish()
        rows = [
            ("step", str(loaded.step)),
            ("lines", f"{total:,}"),
            answerer.truncation(counts.truncated, counts.answers),
            answerer.unfinished(counts.unfinished, counts.answers),
            *_fewer(counts, several),
            ("output", shown(request.output)),
        ]
        print(summary(f"{config.name}: answers", rows))
    return 0


def _fewer(counts: Counts, several: int) -> list[tuple[str, str]]:
    """A row of the table that says how many lines lack answers; none where none does."""
    if not counts.short:
        return []
    asked = f"{several} answers: no more ended within the limit"
    return [("fewer", f"{counts.short:,} of {counts.answers:,} lines have fewer than {asked}")]
