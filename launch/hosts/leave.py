"""Ends a process of a run of several so that no other is left waiting for it.

An error in one process ends all with its exit code; the loss of one without a word ends the others
with 76.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

from trainlib.errors import Interrupted, PeerLost, UserError, run_command

# How collectives and the coordination service say that the other side does not answer.
_BROKEN = r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]onnection (closed|reset|refused)"


def leave(error: BaseException, link: Any, args: argparse.Namespace) -> NoReturn:
    """Ends this process after an error, at once: leaving `jax.distributed` in order would wait for
    processes that wait for this one.
    """

    def again() -> NoReturn:
        raise error

    if isinstance(error, UserError | Interrupted):
        link.tell(str(error), error.exit_code)
        code = run_command(again, debug=args.debug)
    else:
        lost = re.search(_BROKEN, str(error)) is not None
        if lost:
            # Often the first sign that another process is gone. JAX or that process says so soon,
            # and this one then ends in `_leave_lost` or in `trainlib.run.peers`.
            time.sleep(args.heartbeat + 5)
        traceback.print_exception(error)
        code = PeerLost.exit_code if lost else 1
        link.tell(f"{type(error).__name__}: {str(error)[:300]}", code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_LOST = (
    b"error: This process was aborted; what stands above says why. With many hosts it is as a rule "
    b"the loss of another\nprocess: killed, its machine gone, or silent for too long. Rerun the "
    b"same command on all hosts to resume\nfrom the last checkpoint.\n"
)


def _leave_lost(_: int) -> None:
    os.write(2, _LOST)
    os._exit(PeerLost.exit_code)


_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(_leave_lost)  # must outlive the process


def exit_76_when_jax_aborts() -> None:
    """JAX answers the loss of a process by abort() in a thread of its own (exit -6), and offers no
    other way; a handler of Python's `signal` module would never run there.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(int(signal.SIGABRT), ctypes.cast(_handler, ctypes.c_void_p))
