"""Ctrl-C, SIGTERM and a closed pipe end every command alike; real signals to real processes."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.launch.commands import ROOT, command, environment
from trainlib import errors

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def started(code: str, **more) -> subprocess.Popen:
    """A process of this code, when it has printed that it waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


COMMAND = """
    import sys, time
    from launch import cli
    def main(argv):
        try:
            print("waiting", flush=True)
            {wait}
        finally:
            print("cleaned up", flush=True)
    cli.run(main{more})
"""


@SIGNALS
def test_a_signal_is_one_line_and_128_more_than_its_number_after_cleaning_up(number):
    with started(COMMAND.format(wait="time.sleep(600)", more="")) as process:
        process.send_signal(number)
        out, error = process.communicate(timeout=1200)
    assert process.returncode == 128 + number
    assert out == "cleaned up\n"
    assert error.strip() == f"{number.name}: stopped."


@SIGNALS
def test_a_command_whose_work_is_saved_ends_with_75(number):
    with started(COMMAND.format(wait="time.sleep(600)", more=", saves=True")) as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=1200)
    assert process.returncode == 75
    assert error.strip() == f"{number.name}: leaving; no step is under way."


@SIGNALS
def test_native_code_that_never_comes_back_is_left(number):
    """Python runs no handler while it is there, as in a compilation of minutes."""
    code = """
        import dis, hashlib, sys, threading
        from launch import cli
        def native():
            return hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour
        call = [i.offset for i in dis.get_instructions(native) if i.opname.startswith("CALL")][-1]
        def say(main):
            while True:  # until the main thread is in the call, with no instruction to come
                frame = sys._current_frames()[main]
                if frame.f_code is native.__code__ and frame.f_lasti >= call:
                    return print("waiting", flush=True)
        def main(argv):
            main = threading.main_thread().ident
            threading.Thread(target=say, args=(main,), daemon=True).start()
            native()
        cli.run(main)
    """
    with started(code) as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=1200)
    assert (process.returncode, error.strip()) == (128 + number, f"{number.name}: stopped.")


def test_workers_end_with_their_command_and_do_not_end_it():
    """A forked worker that is ended says nothing to the pipe of its parent."""
    code = """
        import os, signal, sys, time
        from launch import cli
        def main(argv):
            child = os.fork()
            if not child:
                time.sleep(600)
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            print("waiting", flush=True)
            sys.stdin.readline()
            return os.waitstatus_to_exitcode(status) == -signal.SIGTERM and 7
        cli.run(main)
    """
    with started(code, stdin=subprocess.PIPE) as process:
        process.communicate("go on\n", timeout=1200)
    assert process.returncode == 7


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments", [("describe", "--config=configs/resnet50.py"), ("train", "--help")]
)
def test_a_reader_that_goes_away_ends_a_command_without_a_word(arguments, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=1200,
    )
    os.close(writing)
    # argparse itself passes over a help that nobody reads.
    assert done.returncode in ((0, 141) if "--help" in arguments else (141,))
    assert done.stderr == ""


def test_a_broken_pipe_of_something_else_is_a_bug_and_keeps_its_traceback():
    def main():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        errors.run_command(main)


def test_a_training_whose_reader_goes_away_is_asked_to_save_and_stop():
    code = """
        import sys
        from trainlib.run.interrupt import StopRequest
        from trainlib.run.progress import Progress
        progress = Progress(10, interval=0)
        print("waiting", flush=True)
        sys.stdin.readline()
        with StopRequest() as stop:
            progress.update(1, loss=1.0)
            progress.update(2, loss=1.0)
        print("goes nowhere", flush=True)
        sys.exit(7 if stop.requested else 8)
    """
    with started(code, stdin=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.wait(1200) == 7
        assert process.stderr.read() == ""


HOSTILE = "a\x1b[31mred\x07 \u202egnp.exe \x9b2J"


def test_no_error_message_steers_a_terminal(capsys):
    def main():
        raise errors.DataError(f"file {HOSTILE} " + "x" * 100_000, details=f"row {HOSTILE}")

    assert errors.run_command(main) == 65
    said = capsys.readouterr().err
    assert not set("\x1b\x07\u202e\x9b") & set(said)
    assert r"a\x1b[31mred\x07" in said
    assert len(said) < 10_000
