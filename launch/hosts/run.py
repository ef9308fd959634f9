"""One program on many hosts: `run_on_all_hosts(args, config, train)` is all that a command needs.

In a run of one process it calls `train`. Otherwise it finds the other processes (`hosts.find`),
meets them (`hosts.rendezvous`), starts JAX on all and compares code, versions, configuration and
devices (`hosts.start`), and sees to it that none is left waiting for one that is gone
(`hosts.leave`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launch.hosts import find, leave, start
from trainlib.errors import Preempted

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_START = "the start of the run"


def run_on_all_hosts(args: argparse.Namespace, config: ConfigDict, train: Callable[[], int]) -> int:
    """Calls `train` on all processes of the run; does not return where one of several failed.

    Args:
      args: parsed flags of `add_flags` and of `cli.parser`.
      config: the resolved configuration, which all processes must share.
      train: trains and returns the exit code.
    """
    from trainlib.run import peers, watchdog

    # The meeting keeps its own time, and names who is missing; the rest is the watchdog's.
    meeting = args.start_timeout + watchdog.LIMITS["connecting"]
    least: Any = config.get("stuck_after", 0.0)  # `launch.doctor` may have no configuration
    with watchdog.watching(least, peers.tell, watchdog.LIMITS | {"connecting": meeting}):
        watchdog.enter("connecting", "the meeting of the hosts")
        process = find.find(args, os.environ)
        if process is not None:
            return _run_together(process, args, config, train)
        watchdog.enter("starting", _START)
        return train()


def _run_together(
    process: find.Process, args: argparse.Namespace, config: ConfigDict, train: Callable[[], int]
) -> int:
    from trainlib.run import peers, watchdog

    start.start(process, args.start_timeout, args.heartbeat)
    watchdog.enter("connecting", "the comparison of the hosts and their devices")
    with peers.linked() as link:
        assert link is not None
        try:
            start.compare(config)
            watchdog.enter("starting", _START)
            return train()
        except Preempted:  # on all processes at the same step
            raise
        except BaseException as error:
            leave.leave(error, link, args)
