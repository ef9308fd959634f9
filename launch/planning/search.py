"""`launch.compile --search`: settings that fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from configs.common import load
from launch.planning import plans

if TYPE_CHECKING:
    from trainlib.chips import Target
    from trainlib.planning.search import Question
    from trainlib.step.plan import Plan

SEARCHES = ("slice", "batch", "remat")
TITLES = {
    "slice": "smallest slice",
    "batch": "largest batch",
    "remat": "cheapest way to recompute",
}


def search(args: Any, overrides: dict[str, str]) -> int:
    """Runs the searches and prints every question, every answer and the report of the last one.

    Raises:
      ConfigError: there is no such search, or no variation of the configuration can work.
    """
    from trainlib import chips
    from trainlib.errors import ConfigError, one_of
    from trainlib.planning.report import to_text, verdict
    from trainlib.planning.search import Search

    if args.search not in (*SEARCHES, "all"):
        raise one_of("--search", args.search, (*SEARCHES, "all"))
    config = load.from_flags(args.config, overrides).config
    possible = [name for name in SEARCHES if name != "remat" or "remat" in config.model]
    if args.search not in (*possible, "all"):
        raise ConfigError(
            f"--search=remat: {config.name} keeps everything for its backward pass, there is no "
            f"policy to choose. Search for: {', '.join(possible)}."
        )
    report_of = plans.cached_reports(args)

    def plan_of(question: Question) -> tuple[Plan[Any], Target]:
        changed = {key: str(value) for key, value in question.overrides.items()}
        changed_config = load.from_flags(args.config, overrides | changed).config
        return plans.planned(changed_config, question.target)

    def compiled(question: Question) -> dict[str, Any]:
        return report_of(*plan_of(question))

    def say(question: Question, report: dict[str, Any]) -> None:
        if not args.json:
            print(f"  {question}: {verdict(report).partition(': ')[2]}", flush=True)

    target = chips.target(args.target or config.target or "none")
    asked = Search(compiled, plan_of, say)
    parts = config.microbatches * target.devices
    searches = {
        "slice": lambda: asked.smallest_slice(target),
        "batch": lambda: asked.largest_batch(target, config.batch_size, parts),
        "remat": lambda: asked.cheapest_remat(target),
    }
    reports: dict[str, dict[str, Any] | None] = {}
    for name in possible if args.search == "all" else (args.search,):
        if not args.json:
            print(f"search for the {TITLES[name]}")
        answer = searches[name]()
        reports[name] = answer.report
        if not args.json:
            print(f"  -> {answer.question or 'nothing fits'}\n")
    if args.json:
        print(json.dumps(reports))
    elif len(reports) == 1 and answer.report:
        print(to_text(answer.report))
    return 0 if all(reports.values()) else plans.EXIT_DOES_NOT_FIT
