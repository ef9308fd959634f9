"""Which question is decoded when, and to how many tokens its input is padded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe.decoding.waiting import Batching, Question, Waiting, in_order, padded_inputs
from moe.text.vocabulary import EOS
from trainlib.errors import ConfigError


def questions(*sizes):
    return [Question(np.full(size, 7, np.int32), number) for number, size in enumerate(sizes)]


def taken(waiting):
    return list(iter(waiting.take, None))


def test_lengths_halve():
    assert Batching().padded(512) == (64, 128, 256, 512)
    assert Batching().padded(160) == (32, 40, 80, 160)
    assert Batching(lengths=9).padded(100) == (32, 50, 100)
    assert Batching(lengths=1).padded(512) == (512,)
    assert Batching().padded(24) == (24,)
    with pytest.raises(ConfigError, match=r"batching\.lengths"):
        Batching(lengths=0)


@pytest.mark.parametrize("block", [0, 1, 4, 10, 100])
def test_every_question_is_taken_once_and_lengths_change_little(block):
    sizes = np.random.default_rng(block).integers(1, 100, 41)
    asked = questions(*sizes)
    found = taken(Waiting(asked, (32, 64, 100), block))
    assert sorted(place for place, _ in found) == list(range(41))
    assert all(question is asked[place] for place, question in found)
    if not block:
        assert [place for place, _ in found] == list(range(41))
        return
    # Sorted in blocks, each the other way round than the one before.
    for number, start in enumerate(range(0, 41, block)):
        got = [len(question.ids) for _, question in found[start : start + block]]
        assert got == sorted(got, reverse=bool(number % 2))


def test_no_more_is_read_than_is_needed():
    read = itertools.count()

    def source():
        for question in questions(*[5] * 100):
            next(read)
            yield question

    waiting = Waiting(source(), (16,), 8)
    assert waiting.few(10) == 10
    for _ in range(16):
        waiting.take()
    assert next(read) == 16
    assert waiting.few(3) == 3
    assert next(read) == 25


def test_few_questions_are_counted():
    assert Waiting(questions(3, 4), (16,), 8).few(10) == 2
    assert Waiting([], (16,), 8).few(10) == 0
    assert Waiting([], (16,), 8).take() is None


def test_a_length_is_used_when_enough_inputs_need_it():
    """With EOS three inputs of 10, two of 20 and one of 60 tokens."""
    asked = questions(9, 9, 9, 19, 19, 59)
    for worthwhile, lengths in {
        1: [16, 16, 16, 32, 32, 64],
        2: [16, 16, 16, 32, 32, 64],
        3: [16, 16, 16, 64, 64, 64],
        4: [32, 32, 32, 32, 32, 64],
        6: [64] * 6,
        99: [64] * 6,
    }.items():
        waiting = Waiting(asked, (16, 32, 64, 128), 6, worthwhile)
        waiting.few(6)
        assert [waiting.length(len(question.ids) + 1) for question in asked] == lengths
    # What does not fit is cut, and a length in use serves later blocks too.
    waiting = Waiting(questions(500, 9, 9), (16, 128), 1, 1)
    taken(waiting)
    assert (waiting.length(501), waiting.length(10)) == (128, 16)


def test_inputs_are_padded_and_cut():
    batch = padded_inputs([*questions(2, 9), None], 4)
    assert batch["encoder_inputs"].tolist() == [[7, 7, EOS, 0], [7, 7, 7, EOS], [0] * 4]
    assert batch["encoder_segments"].tolist() == [[1, 1, 1, 0], [1] * 4, [0] * 4]


def test_answers_come_back_in_order_as_soon_as_they_can():
    seen = []

    def groups():
        for group in ([(2, "c")], [], [(0, "a"), (1, "b")], [(4, "e")], [(3, "d")]):
            seen.append(group)
            yield group

    ordered = in_order(groups())
    assert [next(ordered) for _ in range(3)] == ["a", "b", "c"]
    assert len(seen) == 3
    assert list(ordered) == ["d", "e"]
