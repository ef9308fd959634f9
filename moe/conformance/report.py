"""Verdicts as text and as data."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

from moe.conformance.readings import BUG, CONVENTION, UNEXPLAINED, Reading
from moe.conformance.reference import PARTS
from moe.conformance.verdict import JUDGED, OUTCOMES, RIGHT, UNEXPRESSED, UNTOLD, Finding
from trainlib.errors import plain


def counts(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """Part -> outcome -> number of cases."""
    number = collections.Counter((f.part, f.outcome) for f in findings)
    return {part: {outcome: number[part, outcome] for outcome in OUTCOMES} for part in PARTS}


def used(findings: Sequence[Finding]) -> list[tuple[Reading, str, list[Finding]]]:
    """(reading, part, findings that it is needed for), those with most findings first."""
    found: dict[tuple[Reading, str], list[Finding]] = {}
    for finding in findings:
        for reading in finding.readings:
            found.setdefault((reading, finding.part), []).append(finding)
    order = sorted(found.items(), key=lambda item: -len(item[1]))
    return [(reading, part, where) for (reading, part), where in order]


def summary(findings: Sequence[Finding]) -> str:
    """One line: what the router is."""
    names = [r.name for r, _, _ in used(findings) if r.kind == BUG]
    if names:
        return f"bugs: {'; '.join(dict.fromkeys(names))}"
    names = [r.name for r, _, _ in used(findings)]
    if names:
        return f"right, by other conventions: {'; '.join(dict.fromkeys(names))}"
    told = any(f.outcome in JUDGED for f in findings)
    return "right" if told else "nothing was judged"


def nothing(name: str, findings: Sequence[Finding]) -> str:
    """What to say where no case was judged."""
    cases = _cases(len({f.case for f in findings}))
    why = collections.Counter(f.detail for f in findings if f.outcome == UNEXPRESSED)
    said = "; ".join(f"{plain(one)}: {_cases(n // len(PARTS))}" for one, n in why.most_common(5))
    return (
        f"Nothing was judged: {plain(name)} answers none of the {cases}"
        f"{f' ({said})' if said else ''}. Ask for others, --only=THEME,..., or let the adapter "
        "answer with what it can tell: combine, balance or z."
    )


def as_data(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "adapter": name,
        "verdict": summary(findings),
        "counts": counts(findings),
        "readings": [
            {
                "name": reading.name,
                "kind": reading.kind,
                "part": part,
                "where": reading.where,
                "cases": [f.case for f in found],
            }
            for reading, part, found in used(findings)
        ],
        "findings": [
            {
                "case": f.case,
                "part": f.part,
                "outcome": f.outcome,
                "readings": [reading.name for reading in f.readings],
                "detail": f.detail,
            }
            for f in findings
        ],
    }


def text(name: str, findings: Sequence[Finding]) -> str:
    """What the command prints."""
    return "\n".join(_lines(name, findings))


def _lines(name: str, findings: Sequence[Finding]) -> Iterator[str]:
    cases = len({f.case for f in findings})
    yield f"Router conformance of {plain(name)}, {cases} cases"
    yield ""
    yield "  ".join(("part   ", *(f"{outcome:>13}" for outcome in OUTCOMES)))
    for part, number in counts(findings).items():
        cells = (f"{number[outcome] or '-':>13}" for outcome in OUTCOMES)
        yield "  ".join((f"{part:<7}", *cells))
    for kind, title in ((CONVENTION, "conventions"), (BUG, "bugs")):
        several = [entry for entry in used(findings) if entry[0].kind == kind]
        if several:
            yield from ("", title)
        for reading, part, found in several:
            first = found[0]
            yield f"  {reading.name} ({part}, {_cases(len(found))})"
            if reading is UNEXPLAINED or reading.kind == BUG:
                yield f"    first in {first.case}: {first.detail}"
            if reading.where:
                yield f"    {'found in' if kind == BUG else 'so do'}: {reading.where}"
    missing = collections.Counter(f.detail for f in findings if f.outcome == UNEXPRESSED)
    if missing:
        yield from ("", "not expressed by this router")
        yield from (
            f"  {plain(why)}: {_cases(n // len(PARTS))}" for why, n in missing.most_common()
        )
    silent = [part for part, n in counts(findings).items() if n[UNTOLD] and not n[RIGHT]]
    if silent:
        yield from ("", f"The adapter tells nothing about: {', '.join(silent)}.")
    yield from ("", f"Verdict: {summary(findings)}.")


def _cases(number: int) -> str:
    return f"{number} case{'' if number == 1 else 's'}"
