"""The lines of a file with their answers, which end in another order than lines are written in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moe.decoding.answer import Answer, Answerer, Scored
from moe.decoding.waiting import Found, Question
from moe.prediction.lines import INPUTS, Line, fields_of, read_lines
from trainlib.model.weights import Arrays


class Answered:
    """Iterates over groups of lines that are ready to be written, in the order of the file.

    A group comes whenever answers have ended; it is empty where a line before them has not. Lines
    that wait are few: those that are sorted together, and those that end while one is decoded.

    Args:
      answerer: answers the texts.
      weights: of the model.
      path: the file.
      start: number of the first line.
      known: lines that are answered, by their numbers.
      several: all answers of a line are written, not the first alone.

    Attributes:
      early: by their numbers, lines that are answered and cannot be written yet.
    """

    def __init__(
        self,
        answerer: Answerer,
        weights: Arrays,
        path: Path,
        start: int,
        known: Mapping[int, Line],
        several: bool,
    ):
        self._answerer, self._weights, self._several = answerer, weights, several
        self._path, self._start = path, start
        self.early: dict[int, Line] = dict(known)
        self._known = frozenset(known)
        self._read: dict[int, Line] = {}  # by number: lines that are not answered
        self._numbers: dict[int, tuple[int, Question]] = {}  # by the place of the question

    def __iter__(self) -> Iterator[list[Line]]:
        following = self._start
        for group in self._answerer.results(self._weights, self._questions()):
            for place, found in group:
                number, question = self._numbers.pop(place)
                line = self._read.pop(number)
                assert line is not None
                self.early[number] = line | fields_of(question, self._answers(found))
            following += len(lines := list(self._written(following)))
            yield lines
        if lines := list(self._written(following)):
            yield lines

    def _questions(self) -> Iterator[Question]:
        """Those of the lines, as they are read; blank lines are ready as they are."""
        places = itertools.count()
        for number, line in enumerate(read_lines(self._path, self._start), self._start):
            if line is None:
                self.early[number] = None
            elif number not in self._known:
                question = self._answerer.question(line[INPUTS], number)
                self._read[number], self._numbers[next(places)] = line, (number, question)
                yield question

    def _answers(self, found: Found) -> Sequence[Answer | Scored]:
        return self._answerer.every(found) if self._several else [self._answerer.first(found)]

    def _written(self, number: int) -> Iterator[Line]:
        """Takes the lines that are ready, from `number` on."""
        while number in self.early:
            yield self.early.pop(number)
            number += 1
