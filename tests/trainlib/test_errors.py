"""How errors of users are printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainlib.errors import CheckpointError, run_command


def test_details_stand_below_the_paragraph_as_they_are(capsys):
    def main():
        raise CheckpointError("One   long\nparagraph.", "  a table\n    of lines")

    assert run_command(main) == 66
    assert capsys.readouterr().err == "error: One long paragraph.\n  a table\n    of lines\n"


def _run(words: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """A command that does what the words say, in a shell that redirects its streams."""
    code = (
        "import sys; from launch import cli; from trainlib.errors import DataError\n"
        f"def main(argv):\n    {words}\ncli.leave_tpus_alone = lambda: None\ncli.run(main)"
    )
    line = f'"$0" -c "$1" {redirected}'
    return subprocess.run(
        ["sh", "-c", line, sys.executable, code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("words", "redirected", "exit_code", "said"),
    [
        ("print('x')", ">&-", 0, ""),
        ("raise DataError('bad')", ">&- 2>&-", 65, ""),
        ("raise DataError('bad')", "2>/dev/full", 65, ""),
        ("print('x')", ">/dev/full", 74, "standard output"),
        ("print('x' * 99999)", ">/dev/full", 74, "standard output"),
        ("open('/proc/none', 'w')", "", 1, "Traceback"),
        ("raise OSError(30, 'Read-only file system', 'a\\x1b[31m')", "", 74, "a\\x1b[31m"),
    ],
)
def test_streams_that_are_closed_or_full_leave_the_exit_code(words, redirected, exit_code, said):
    done = _run(words, redirected)
    assert done.returncode == exit_code, done.stderr
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (said == "Traceback")
    assert "\x1b" not in done.stderr


def test_no_file_takes_the_number_of_a_stream_that_is_closed():
    words = "import os; file = open('/dev/null'); print(file.fileno() > 2, flush=True)"
    assert _run(words, "2>&- <&-").stdout == "True\n"


def test_a_signal_during_the_collection_of_garbage_is_not_lost():
    words = (
        "import gc, os, signal, time; gc.callbacks.append(lambda *_: ("
        "gc.callbacks.clear(), os.kill(os.getpid(), signal.SIGINT), sum(range(9)))); "
        "gc.collect(); time.sleep(99)"
    )
    done = _run(words, "")
    assert (done.returncode, done.stderr.split()) == (130, ["SIGINT:", "stopped."])


def test_a_terminal_without_utf_8_shows_names_by_their_codes():
    code = "from trainlib.errors import open_streams\nopen_streams()\nprint('K\u00e4fer \u732b')\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONIOENCODING": "latin-1:strict",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        },
        capture_output=True,
        timeout=120,
    )
    assert done.stdout.decode("latin-1") == "K\u00e4fer \\u732b\n", done.stderr
