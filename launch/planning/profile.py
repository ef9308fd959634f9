"""`launch.compile --profile` and `--function`: where the time and the bytes go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.planning import plans

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from trainlib.planning.profile.figures import Profile


def profile_plan(args: Any, config: ConfigDict) -> int:
    """Compiles the train step of a configuration and shows its profile.

    Raises:
      ConfigError: a target without a prediction, or `--out` cannot take the page.
    """
    from trainlib.errors import ConfigError
    from trainlib.planning.profile.figures import Profile, Subject
    from trainlib.planning.report import make_report, to_text, verdict
    from trainlib.planning.step_time import is_predicted

    plan, target = plans.planned(config, args.target)
    if not is_predicted(target):
        raise ConfigError(
            f"--profile: the compiler for {target.name} says of no operation what it takes. "
            "Profiles are for TPU targets, such as --target=v5e-1."
        )
    plans.check_mfu(args.mfu, target)
    if args.out:
        check_page(args.out)
    facts, result = plans.compiled(plan, target)
    report = make_report(plan, target, facts, result)
    if result.ledger is None:
        print(json.dumps(report) if args.json else to_text(report))
        return plans.EXIT_DOES_NOT_FIT
    subject = Subject(
        name=config.name,
        target=target.name,
        flops=report["flops"]["model_per_step"] / target.devices,
        examples=config.batch_size,
        tokens=round(config.batch_size * facts.get("tokens_per_example", 0)),
    )
    profile = Profile(result.ledger, subject)
    show(args, profile, report, verdict(report))
    return 0


def show(args: Any, profile: Profile, report: dict[str, Any], verdict: str = "") -> None:
    """Prints a profile as `--json` or text, and writes its page where `--out` asks for one."""
    from trainlib.planning.profile.text import to_text

    page = _write(args.out, profile) if args.out else None
    by = args.by or ("layer" if profile.is_named else "op")
    if args.json:
        rows = profile.to_dict(by)
        print(json.dumps(report | {"profile": rows | ({"page": str(page)} if page else {})}))
        return
    print("\n\n".join(part for part in (verdict, to_text(profile, by, args.top)) if part))
    if page:
        print(f"\nThe page: {page}")


def check_page(out: Path) -> Path:
    """The file that the page becomes.

    Raises:
      ConfigError: something else lies there, or `--out` is no directory.
    """
    from trainlib.errors import ConfigError
    from trainlib.pages.document import check_page as check
    from trainlib.planning.profile.page import FILE, MARK

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={out} is a file. Give a directory, new or old.")
    check(out / FILE, MARK, "--out")
    return out / FILE


def _write(out: Path, profile: Profile) -> Path:
    from trainlib.pages.document import write_page
    from trainlib.planning.profile.page import to_html

    path = check_page(out)
    write_page(path, to_html(profile))
    return path
