"""Searches ask few questions and answer what trying everything would."""

from __future__ import annotations

import pytest

from trainlib.chips import target
from trainlib.errors import ConfigError, StorageError
from trainlib.planning.search import REMAT_ORDER, Cache, Question, Search, first_that, largest_that


@pytest.mark.parametrize("count", [0, 1, 2, 7, 12])
def test_first_that_is_found_with_few_questions(count):
    for edge in range(count + 1):
        asked = []

        def holds(option, edge=edge, asked=asked):
            asked.append(option)
            return option >= edge

        found = first_that(range(count), holds)
        assert found == (edge if edge < count else None)
        assert len(asked) == len(set(asked)) <= count.bit_length()


@pytest.mark.parametrize("start", [1, 8, 100, 4096])
@pytest.mark.parametrize("most", [0, 7, 8, 9, 100, 777, 5000])
def test_largest_that_is_within_an_eighth(start, most):
    asked = []

    def fits(size):
        assert size % 8 == 0
        asked.append(size)
        return size <= most

    found = largest_that(start, 8, fits)
    exact = most // 8 * 8
    assert found <= exact <= max(found + 8, found * 9 // 8)
    assert len(asked) == len(set(asked)) < 20


def test_largest_that_stops_at_the_limit():
    assert largest_that(8, 8, lambda size: True, limit=100) == 64


def fake(fits, possible=lambda question: True):
    """A search over made-up verdicts, and the list of what it compiled."""
    compiled = []

    def compile_(question):
        compiled.append(str(question))
        return {"fits": fits(question), "asked": str(question)}

    def check(question):
        if not possible(question):
            raise ConfigError(f"{question} cannot work")

    return Search(compile_, check, lambda question, report: None), compiled


def test_smallest_slice_is_the_first_that_fits_and_can_work():
    def chips(question):
        return target(question.target).chips

    search, compiled = fake(
        fits=lambda question: chips(question) >= 40, possible=lambda q: chips(q) >= 16
    )
    answer = search.smallest_slice(target("v5e-256"))
    assert answer.question == Question("v5e-64", {"mesh.data": -1})
    assert answer.report == {"fits": True, "asked": str(answer.question)}
    assert not any("v5e-4," in question or "v5e-8," in question for question in compiled)


def test_smallest_of_several_slices_keeps_their_number():
    search, _ = fake(fits=lambda question: target(question.target).chips >= 60)
    answer = search.smallest_slice(target("2xv6e-256"))
    assert answer.question.target == "2xv6e:4x8"


def test_largest_batch_and_cheapest_remat():
    search, _ = fake(fits=lambda question: question.overrides["batch_size"] <= 900)
    answer = search.largest_batch(target("v5e-16"), 64, 16)
    assert 800 <= answer.question.overrides["batch_size"] <= 900
    for fitting in range(len(REMAT_ORDER) + 1):
        allowed = REMAT_ORDER[fitting:]
        search, _ = fake(fits=lambda q, ok=allowed: q.overrides["model.remat"] in ok)
        found = search.cheapest_remat(target("v5e-16")).question
        assert (found.overrides["model.remat"] if found else None) == next(iter(allowed), None)


def test_nothing_that_can_work_is_the_reason_why():
    search, compiled = fake(fits=lambda q: True, possible=lambda q: False)
    with pytest.raises(ConfigError, match="cannot work"):
        search.smallest_slice(target("v5e-16"))
    assert not compiled


def test_reports_are_kept_by_what_was_asked(tmp_path):
    cache, computed = Cache(tmp_path / "plans"), []

    def compute(value):
        computed.append(value)
        return {"fits": True, "value": value}

    for value in (1, 2, 1, 2):
        key = [{"batch_size": value}, "v5e-4"]
        assert cache.get(key, lambda value=value: compute(value))["value"] == value
    assert (computed, cache.hits) == ([1, 2], 2)
    # A file cut short, as by a full disk, is computed again.
    for path in (tmp_path / "plans").iterdir():
        path.write_text(path.read_text()[:5])
    assert cache.get([{"batch_size": 1}, "v5e-4"], lambda: compute(3))["value"] == 3


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be kept"):
        Cache(tmp_path / "file" / "plans").get(["a"], dict)
