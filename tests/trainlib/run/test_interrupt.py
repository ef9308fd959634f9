"""Requests to stop: the first one asks, the second leaves."""

import os
import signal
import subprocess
import sys

from trainlib.run.interrupt import StopRequest


def test_the_first_signal_asks_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from trainlib.run.interrupt import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 75
    assert "SIGTERM again" in done.stderr


def test_a_signal_before_the_first_step_leaves_with_75():
    code = (
        "import os, signal, time\n"
        "from trainlib.run.interrupt import StopRequest, leave_until_saving\n"
        "leave_until_saving()\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stop.requested\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 75
    assert "SIGTERM: leaving" in done.stderr
