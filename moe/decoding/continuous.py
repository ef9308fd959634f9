"""Decoding that does not wait for the longest answer: a row whose answer has ended takes the next
question.

Letters: R rows, G inputs that are encoded at once, M answers that begin at once, P parts of the
rows, K tokens of an input, N answers of a question, L most tokens of an answer.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

from moe.decoding.rows import Programs, Rows
from moe.decoding.waiting import Found, Question, Waiting, padded_inputs
from trainlib.model.weights import Arrays

Put = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]


@dataclasses.dataclass
class _Asked:
    """A question of which answers are decoded or will be."""

    place: int
    question: Question
    answers: dict[int, Found]  # by the number of the draw


class Continuous:
    """What is in which row.

    Args:
      programs: what runs on the devices.
      put: batches of all devices from those of this process.
      copies: N.
      check: is called with scores, and raises where they are NaN.

    Attributes:
      steps: that were decoded so far.
    """

    def __init__(
        self, programs: Programs, put: Put, copies: int, check: Callable[[np.ndarray], object]
    ):
        self._programs, self._put, self._copies, self._check = programs, put, copies, check
        self.steps = 0

    def answers(self, weights: Arrays, waiting: Waiting) -> Iterator[list[tuple[int, Found]]]:
        """Pairs (place, {"words" int32 [N, L], "score" float32 [N]}) as they are found; now and
        then there are none.
        """
        programs = self._programs
        held: list[tuple[_Asked, int] | None] = [None] * programs.rows
        queue: deque[tuple[_Asked, int]] = deque()
        rows, size = None, 0
        while True:
            while len(queue) < programs.starts and (taken := waiting.take()):
                asked = _Asked(*taken, {})
                queue += [(asked, draw) for draw in range(self._copies)]
            need = min(len(queue), programs.starts)
            free = held.count(None)
            if need and free >= need:
                rows, size = self._resized(rows, size, waiting, [*held, *list(queue)[:need]])
                rows = programs.begin(weights, rows, self._put(self._begun(held, queue, size)))
            elif free < programs.rows:
                assert rows is not None
                rows, size = self._resized(rows, size, waiting, held)
                rows, state = programs.proceed(weights, rows, need or programs.rows)
                yield self._ended(held, jax.device_get(state))
            else:
                return

    def _resized(
        self, rows: Rows | None, size: int, waiting: Waiting, held: list
    ) -> tuple[Rows, int]:
        """The rows with a K that is enough for some questions, and K."""
        longest = max(len(pair[0].question.ids) for pair in held if pair)
        needed = waiting.length(longest + 1)
        if rows is None:
            return self._programs.empty(needed), needed
        return (rows if needed == size else self._programs.pad(rows, needed)), needed

    def _begun(self, held: list, queue: deque, size: int) -> dict[str, np.ndarray]:
        """What `begin` is given; the questions go from the queue to rows that are free."""
        programs = self._programs
        here, starts, inputs = (
            count // programs.parts for count in (programs.rows, programs.starts, programs.inputs)
        )
        row = np.full((programs.parts, starts), here, np.int32)
        which = np.zeros_like(row)
        number = np.zeros((*row.shape, 2), np.int32)
        encoded: list[Question | None] = []
        for part in range(programs.parts):
            free = [n for n in range(here) if held[part * here + n] is None]
            questions: list[Question] = []
            for start, n in enumerate(free[:starts]):
                if not queue:
                    break
                asked, draw = held[part * here + n] = queue.popleft()
                if not questions or questions[-1] is not asked.question:
                    questions.append(asked.question)
                row[part, start], which[part, start] = n, len(questions) - 1
                number[part, start] = asked.question.number, draw
            encoded += [*questions, *[None] * (inputs - len(questions))]
        return {
            **padded_inputs(encoded, size),
            "row": row.ravel(),
            "input": which.ravel(),
            "number": number.reshape(-1, 2),
        }

    def _ended(self, held: list, state: dict[str, np.ndarray]) -> list[tuple[int, Found]]:
        """The questions whose answers are complete now; rows that have ended are free."""
        full = [n for n, pair in enumerate(held) if pair]
        self._check(state["score"][full])
        self.steps += int(state["steps"])
        found = []
        for n in full:
            if not state["ended"][n]:
                continue
            asked, draw = held[n]
            held[n] = None
            asked.answers[draw] = {name: state[name][n] for name in ("words", "score")}
            if len(asked.answers) == self._copies:
                ordered = [asked.answers[draw] for draw in range(self._copies)]
                joined = {name: np.stack([one[name] for one in ordered]) for name in ordered[0]}
                found.append((asked.place, joined))
        return found
