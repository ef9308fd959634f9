"""All experiments, one for each table and figure of the papers."""

from __future__ import annotations

from launch.papers.exhibits import exhibits
from launch.reproduce import augmented, language, standalone
from launch.reproduce.experiment import Experiment
from trainlib.errors import ConfigError, nearest, one_of


def experiments() -> list[Experiment]:
    """An experiment for each exhibit, in that order."""
    known = {
        (paper, name): more
        for paper, found in (
            ("aa", augmented.experiments()),
            ("sasa", standalone.experiments()),
            ("st_moe", language.experiments()),
        )
        for name, more in found
    }
    made = []
    for exhibit in exhibits():
        more = known.pop((exhibit.paper.name, exhibit.name), None)
        made.append(Experiment(exhibit, **(more or {"note": exhibit.absent})))
    assert not known, f"experiments of exhibits that there are not: {set(known)}"
    return made


def find(paper: str, kind: str, number: str) -> Experiment:
    """The experiment of a table or figure.

    Raises:
      ConfigError: there is no such paper, or it has no such table or figure.
    """
    found = of_paper(paper)
    named = {e.exhibit.name: e for e in found}
    name = f"{kind} {number}"
    if name not in named:
        of_kind = [e.exhibit for e in found if e.exhibit.kind == kind]
        arxiv = found[0].exhibit.paper.arxiv
        raise ConfigError(
            f"--{kind}={number}: arXiv {arxiv} has no {name} here. {nearest(name, named)}Its "
            f"{kind}s: {'; '.join(f'{e.number} {e.title}' for e in of_kind)}."
        )
    return named[name]


def of_paper(paper: str | None) -> list[Experiment]:
    """The experiments of a paper, by its name or its arXiv id; of all for None.

    Raises:
      ConfigError: there is no such paper.
    """
    every = experiments()
    if paper is None:
        return every
    papers = {e.exhibit.paper.name: e.exhibit.paper for e in every}
    name = {p.arxiv: p.name for p in papers.values()}.get(paper, paper)
    if name not in papers:
        raise one_of("--paper", paper, papers)
    return [e for e in every if e.exhibit.paper.name == name]
