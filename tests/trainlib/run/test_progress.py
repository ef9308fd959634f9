"""Rates, waiting and lines with a clock that the test moves."""

import io
import itertools
import sys
import threading
import time
from types import ModuleType

import pytest

from trainlib.run.progress import Progress, duration, number, summary


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """Whatever the tests are run in."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(stream=None, **kwargs):
    clock = Clock()
    stream = stream if stream is not None else io.StringIO()
    return Progress(100, examples_per_step=32, stream=stream, clock=clock, **kwargs), clock, stream


def run(progress, clock, steps, seconds=1.0, wait=0.0, start=0, **values):
    for step in range(start + 1, start + steps + 1):
        with progress.waiting():
            clock.now += wait
        clock.now += seconds - wait
        progress.update(step, **values)


def test_compilation_in_the_first_step_is_in_no_rate():
    progress, clock, _ = make()
    clock.now += 60
    progress.update(1)
    assert progress.rates().eta is None
    run(progress, clock, 10, seconds=0.5, start=1)
    speed = progress.rates()
    assert speed.examples_per_second == pytest.approx(64)
    assert speed.eta == pytest.approx(89 * 0.5)
    assert speed.wait == 0


def test_waiting_is_a_share_of_the_window():
    progress, clock, _ = make()
    run(progress, clock, 21, seconds=2.0, wait=0.5)
    assert progress.rates().wait == pytest.approx(0.25)


class Devices:
    """Steps that end when the test says so, and are known to have ended when `end` returns."""

    def __init__(self, progress):
        self.progress, self.steps, self.seen = progress, [], 0

    def start(self):
        ended = threading.Event()
        self.steps.append(ended)
        self.progress.dispatched(lambda: ended.wait(1200))

    def end(self):
        self.steps[self.seen].set()
        self.seen += 1
        deadline = time.monotonic() + 1200
        while self.progress._devices._ended[0] < self.seen:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_waiting_behind_a_step_that_is_under_way_costs_nothing():
    """Steps of 1 s are handed over; the next batch comes after 0.6 s, then after 1.5 s."""
    progress, clock, _ = make()
    devices = Devices(progress)
    progress.update(0)
    for batch, lost in ((0.6, 0.0), (1.5, 0.5)):
        before = progress.spent()["waiting for data"]
        devices.start()
        with progress.waiting():
            clock.now += min(batch, 1.0)
            if batch > 1:
                devices.end()
                clock.now += batch - 1
        assert progress.spent()["waiting for data"] - before == pytest.approx(lost)
        if batch < 1:
            clock.now += 1 - batch
            devices.end()
    with progress.waiting():  # nothing is under way
        clock.now += 2
    assert progress.spent()["waiting for data"] == pytest.approx(2.5)


def test_a_pause_starts_when_the_last_step_has_ended():
    progress, clock, _ = make()
    devices = Devices(progress)
    progress.update(0)
    devices.start()
    with progress.pause("saving"):
        clock.now += 3  # of the step
        devices.end()
        clock.now += 4
    progress.update(1)
    assert progress.spent()["saving"] == pytest.approx(4)
    assert progress.average().examples_per_second == pytest.approx(32 / 3)
    progress.close()
    progress._devices._thread.join(1200)
    assert not progress._devices._thread.is_alive()


def test_a_step_that_failed_has_ended():
    progress, clock, _ = make()

    def broken():
        raise RuntimeError("device lost")

    progress.dispatched(broken)
    devices = Devices(progress)
    devices.steps.append(threading.Event())
    devices.end()
    with progress.waiting():
        clock.now += 1
    assert progress._waited == pytest.approx(1)


def test_rates_forget_what_is_older_than_the_window():
    progress, clock, _ = make(interval=0.0, window=10.0)
    run(progress, clock, 30, seconds=1.0, wait=1.0)
    run(progress, clock, 30, seconds=0.5, start=30)
    speed = progress.rates()
    assert speed.examples_per_second == pytest.approx(64)
    assert speed.wait == 0
    assert speed.eta == pytest.approx(40 * 0.5)
    whole = progress.average()
    assert whole.examples_per_second == pytest.approx(59 * 32 / (29 * 1.0 + 30 * 0.5))


def test_steps_longer_than_the_window_still_have_a_rate():
    progress, clock, _ = make(interval=0.0, window=10.0)
    run(progress, clock, 5, seconds=60.0)
    assert progress.rates().eta == pytest.approx(95 * 60)


def test_pauses_are_in_no_rate():
    progress, clock, _ = make()
    run(progress, clock, 10)
    with progress.pause("evaluating"):
        clock.now += 500
    run(progress, clock, 10, start=10)
    assert progress.rates().examples_per_second == pytest.approx(32)
    assert progress.average().examples_per_second == pytest.approx(32)


def test_a_resumed_run_counts_its_own_steps_only():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, 50, 32, stream=stream, clock=clock)
    run(progress, clock, 11, seconds=1.0, start=50)
    assert progress.rates().examples_per_second == pytest.approx(32)
    assert progress.rates().eta == pytest.approx(39)


def test_without_a_terminal_lines_are_plain_few_and_include_the_last():
    progress, clock, stream = make()
    run(progress, clock, 100, seconds=0.5, loss=2.0)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert [line.split()[1] for line in lines] == [
        "1/100",
        "21/100",
        "41/100",
        "61/100",
        "81/100",
        "100/100",
    ]
    assert lines[1] == "step 21/100  21%  ETA 40s  loss 2  64 ex/s  wait 0%"
    assert "ETA" not in lines[-1]


def test_a_terminal_gets_one_live_line_within_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    progress, clock, stream = make(Terminal())
    run(
        progress, clock, 3, loss=1.23456789, accuracy=0.5, gradient_norm=123456.0, learning_rate=0.1
    )
    written = stream.getvalue()
    assert "\n" not in written
    frames = written.split("\r\x1b[K")[1:]
    assert len(frames) == 3
    assert all(len(frame) < 60 for frame in frames)
    assert frames[-1].startswith("step 3/100  3%  ETA 1m37s  loss 1.235  accuracy 0.5")
    with progress.pause("saving"):
        pass
    progress.close()
    progress.close()
    last = stream.getvalue().removeprefix(written).split("\r\x1b[K")[-1]
    assert last == f"{frames[-1]}\n"  # and not "saving ..."


def test_a_terminal_is_not_written_to_more_often_than_the_interval():
    progress, clock, stream = make(Terminal())
    run(progress, clock, 99, seconds=0.01)
    assert stream.getvalue().count("\r") == 5  # 0.99 s at 0.2 s, and the first


def test_messages_stand_above_the_live_line():
    progress, clock, stream = make(Terminal())
    run(progress, clock, 1)
    progress.message("saved step 1")
    assert stream.getvalue().endswith("\r\x1b[Ksaved step 1\nstep 1/100  1%")


def test_other_hosts_write_nothing_but_know_their_rates():
    progress, clock, stream = make(enabled=False)
    run(progress, clock, 11)
    progress.message("hello")
    assert stream.getvalue() == ""
    assert progress.rates().examples_per_second == pytest.approx(32)


def test_a_log_of_a_long_run_stays_short():
    """A day of steps of one second: few lines, each with an ETA, and never long without one."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress(86_400, stream=stream, clock=clock)
    run(progress, clock, 86_400)
    progress.close()
    lines = stream.getvalue().splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert len(lines) < 600
    assert gaps[0] == 10
    assert max(gaps) <= 300
    assert all("ETA" in line for line in lines[1:-1])


@pytest.mark.parametrize("variable", ["TERM", "JPY_PARENT_PID"])
def test_a_terminal_that_keeps_every_frame_gets_plain_lines(monkeypatch, variable):
    """Emacs's shell, and what a cell of a notebook runs: `!vitattn-moe train`."""
    monkeypatch.setenv(variable, {"TERM": "dumb"}.get(variable, "12"))
    progress, clock, stream = make(Terminal())
    run(progress, clock, 30, seconds=0.5)
    with progress.pause("saving"):
        progress.message("saved")
    progress.close()
    assert not set(stream.getvalue()) & {"\x1b", "\r"}
    words = [line.split()[:2] for line in stream.getvalue().splitlines()]
    assert words == [["step", "1/100"], ["step", "21/100"], ["saved"]]


class Kernel:
    """IPython in the kernel of a notebook: notes what is displayed and replaced."""

    def __init__(self):
        self.outputs = []
        self.kernel = self

    def display(self, content, *, raw, display_id):
        assert raw
        assert display_id
        self.outputs.append(content["text/plain"])
        return self

    def update(self, content, *, raw):
        assert raw
        self.outputs[-1] = content["text/plain"]


def test_a_notebook_keeps_one_line_that_is_replaced(monkeypatch, capsys):
    kernel = Kernel()
    module, inner = ModuleType("IPython"), ModuleType("IPython.display")
    vars(module).update(get_ipython=lambda: kernel, display=inner)
    vars(inner).update(display=kernel.display)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    clock = Clock()
    progress = Progress(100, examples_per_step=32, clock=clock)
    run(progress, clock, 50, loss=2.0)
    progress.message("step 50: top-1 90 %")
    with progress.pause("evaluating"):
        assert kernel.outputs == ["step 50/100  evaluating ..."]
    run(progress, clock, 50, start=50, loss=1.0)
    progress.close()
    assert len(kernel.outputs) == 1
    assert kernel.outputs[0].startswith("step 100/100  100%  loss 1")
    assert capsys.readouterr().out == "step 50: top-1 90 %\n"


@pytest.mark.parametrize("columns", ["1", "2", "11", "40"])
def test_a_narrow_terminal_is_never_wrapped(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    progress, clock, stream = make(Terminal())
    run(progress, clock, 3, loss=1.23456789)
    with progress.pause("evaluating"):
        pass
    frames = stream.getvalue().split("\r\x1b[K")[1:]
    assert all(len(frame) < int(columns) for frame in frames)
    assert int(columns) < 40 or "step 3/100  3%  ETA 1m37s  loss 1.235" in frames  # nothing is cut


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3599.7, "1h00m"), (7620, "2h07m")]
    + [(86400 * 3 + 3600 * 4, "3d04h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.23456, "1.235"), (2345.6, "2,346"), (1e-7, "1e-07"), (1e12, "1e+12")]
    + [(float("nan"), "nan")],
)
def test_number(value, text):
    assert number(value) == text


def test_summary_fits_80_columns_and_keeps_paths_whole():
    path = "/a/very/long/path" * 6
    text = summary("Done", [("top-1", 0.98765), ("time", "4m02s"), ("checkpoints", path)])
    lines = text.splitlines()
    assert lines[1:3] == ["Done", "----"]
    assert lines[3] == "  top-1        0.9877"
    assert lines[4] == "  time         4m02s"
    assert lines[5:] == ["  checkpoints", f"    {path}"]
