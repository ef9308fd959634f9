"""Findings of the doctor's checks: what one says, how a check is run, and how all are printed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable

from trainlib import commands
from trainlib.errors import ConfigError, PeerLost, StorageError, UserError

OK, NOTE, FAILED = "ok", "note", "FAILED"
MACHINE = StorageError.exit_code  # exit code of a disk, memory or device that fails
PATIENCE = 180.0  # seconds for one check; a TPU slice may take a minute to start
_CHECK = "check"  # name of the threads that checks run in


@dataclasses.dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
      name: of the check.
      state: OK, NOTE (works, but look at it) or FAILED.
      text: one line with figures.
      code: exit code that a failure means.
      broken: whether the check itself failed or did not end, and what builds on it is left out.
    """

    name: str
    state: str
    text: str
    code: int = ConfigError.exit_code
    broken: bool = False


class Report:
    """Prints findings as they come, or all at the end as JSON."""

    def __init__(self, as_json: bool):
        self._json = as_json
        self._findings: list[Finding] = []

    def add(self, findings: Iterable[Finding]) -> bool:
        """Takes the findings of a check; returns whether it could be carried out."""
        new = list(findings)
        self._findings += new
        for finding in () if self._json else new:
            print(f"{finding.state:<7} {finding.name:<16} {finding.text}", flush=True)
        return not any(finding.broken for finding in new)

    def close(self) -> int:
        """Prints what is left and returns the exit code; ends the process itself where a check
        still hangs, for nothing would end that one.
        """
        failed = [finding for finding in self._findings if finding.state == FAILED]
        if self._json:
            print(json.dumps([dataclasses.asdict(finding) for finding in self._findings]))
        else:
            names = ", ".join(dict.fromkeys(finding.name for finding in failed))
            print(f"\n{f'To repair: {names}.' if failed else 'Ready.'}")
        code = failed[0].code if failed else 0
        if any(thread.name == _CHECK for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(code)
        return code


def guarded(
    name: str, check: Callable[[], Finding | Iterable[Finding]], patience: float = PATIENCE
) -> list[Finding]:
    """Runs a check and returns its findings.

    A check that raises, or that does not end within `patience` seconds, is a finding as well.
    """
    findings: list[Finding] = []

    def failed(text: str, code: int) -> None:
        findings.append(Finding(name, FAILED, " ".join(text.split())[:1000], code, broken=True))

    def work() -> None:
        try:
            result = check()
            for finding in [result] if isinstance(result, Finding) else result:
                findings.append(finding)
        except PeerLost as error:
            failed(str(error), MACHINE)
        except UserError as error:
            failed(str(error), error.exit_code)
        except ImportError as error:
            failed(f"{error}; install again: {commands.install()}", ConfigError.exit_code)
        except Exception as error:  # above all what JAX raises when a device does not work
            lines = str(error).splitlines() or ["no reason given"]
            failed(f"{type(error).__name__}: {lines[0][:300]}", MACHINE)

    thread = threading.Thread(target=work, name=_CHECK, daemon=True)
    thread.start()
    thread.join(patience)
    if thread.is_alive():
        text = f"no answer within {patience:.0f} s"
        return [*findings, Finding(name, FAILED, text, MACHINE, broken=True)]
    return findings
