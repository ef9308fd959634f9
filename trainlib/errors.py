"""Errors that people cause, as one clear paragraph each, and the exit codes that go with them.

A `UserError` carries everything a reader needs (what, where, allowed, nearest, what to do);
commands print it without a traceback unless `--debug` is given. So they do with a stop by a signal
and with a reader of their output that has gone (`launch.describe | head`), which end with 128 + the
signal, as the shell counts. Everything else is a bug in this code and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import select
import signal
import sys
import textwrap
import traceback
import unicodedata
from collections.abc import Callable, Iterable

EXIT_OK = 0


class UserError(Exception):
    """Base of the errors that are printed as a paragraph; `exit_code` is the process's.

    Args:
      message: the paragraph.
      details: lines that are printed below it as they are, such as a table.
    """

    exit_code = 1

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


class ConfigError(UserError):
    """A configuration value or key, or a command line, that cannot work."""

    exit_code = 64


class DataError(UserError):
    """Input data that is missing, unreadable or not what it should be."""

    exit_code = 65


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""

    exit_code = 66


class NumericAbort(UserError):
    """Training stopped because numbers went bad for too many steps in a row."""

    exit_code = 70


class StorageError(UserError):
    """A disk that is full, read-only or failing."""

    exit_code = 74


class Preempted(UserError):
    """The run was asked to stop, has saved its state and can be started again."""

    exit_code = 75


class PeerLost(UserError):
    """Another process of the same run was lost, or this one is stuck."""

    exit_code = 76


class Interrupted(BaseException):
    """SIGINT or SIGTERM came where nothing has to be saved; raised in the main thread, so that
    what is under way cleans up, and not caught by `except Exception`.

    Args:
      number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}: stopped.")
        self.exit_code = 128 + number


def shown(text: object, most: int = 200) -> str:
    """Text of others (names of files, classes, metrics and keys, words of a message) as it may be
    printed: one line, nothing that steers a terminal, no half characters, at most `most` characters
    before the odd ones are written out.

    Control characters, the marks that turn the direction of writing, and bytes that are no UTF-8
    come out as \\x1b, \\u202e or \\udcff. The middle of what is too long is left out, with its
    length.
    """
    given = str(text)
    if len(given) > most:
        half = max(most // 2 - 16, 8)
        given = f"{given[:half]} ... ({len(given):,} characters) ... {given[-half:]}"
    return plain(given)


def plain(text: object) -> str:
    """The same for text that has a length of its own, such as a row of a table: nothing is cut."""
    return "".join(map(_printable, str(text)))


def _printable(letter: str) -> str:
    if letter == " " or (letter.isprintable() and unicodedata.category(letter) != "Cf"):
        return letter
    return _code(letter)


def _code(letter: str) -> str:
    code = ord(letter)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
    )


def told_apart(*lists: Iterable[str]) -> list[list[str]]:
    """Lists of names as `shown` prints them, for messages that compare them: names that differ and
    would look alike (one letter as one code point or as letter and accent, as disks of macOS write
    it; long names with one end) come out with their code points, as K\\xe4fer and Ka\\u0308fer.
    """
    given = [list(names) for names in lists]
    alike: dict[str, set[str]] = {}
    for name in (name for names in given for name in names):
        alike.setdefault(_looks(name), set()).add(name)
    return [
        [_spelt(name) if len(alike[_looks(name)]) > 1 else shown(name) for name in names]
        for names in given
    ]


def _looks(name: str) -> str:
    return shown(unicodedata.normalize("NFKC", name))


def _spelt(name: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else _code(c) for c in name)


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns `Did you mean 'x'? ` for the closest option, or "" when nothing is close."""
    # The comparison is quadratic, and no key or name is longer.
    close = difflib.get_close_matches(word[:100], list(options), n=1, cutoff=0.5)
    if not close:
        return ""
    (given,), (found,) = told_apart([word], [close[0]])
    hint = "" if given == shown(word) else f" (which looks like '{given}')"
    return f"Did you mean '{found}'{hint}? "


def one_of(what: str, value: object, options: Iterable[str], where: str = "") -> ConfigError:
    """Builds the error for a value outside a fixed list: what it is, what is allowed, the nearest
    one.

    Args:
      what: the configuration key, for example `optimizer.name`.
      value: the value that was given.
      options: the allowed values.
      where: the file or flag it came from, when known.
    """
    options = sorted(options)
    place = f" ({where})" if where else ""
    hint = nearest(str(value), options)
    return ConfigError(
        f"{what}={shown(repr(value))}{place} is not known. {hint}Allowed: {', '.join(options)}."
    )


_LONGEST_WORD, _LONGEST = 5_000, 20_000  # characters; a path has at most 4,096


def paragraph(text: str) -> str:
    """Words filled into lines of 100 characters that no terminal is steered by, whatever a message
    holds; paths and flags stay whole, to be copied.
    """
    words = " ".join(shown(word, _LONGEST_WORD) for word in text.split())
    return textwrap.fill(
        shown(words, _LONGEST), 100, break_long_words=False, break_on_hyphens=False
    )


def run_command(main: Callable[[], int | None], *, debug: bool = False) -> int:
    """Runs a command; a `UserError` becomes one paragraph on standard error and its exit code, a
    stop by a signal one line, and a reader of the output that has gone nothing at all.
    """
    try:
        code = _run(main, debug)
        sys.stdout.flush()  # what a buffer still holds may be what nobody reads
    except BrokenPipeError:
        if not output_closed():
            raise
        code = 128 + signal.SIGPIPE
    return code


def _run(main: Callable[[], int | None], debug: bool) -> int:
    try:
        return main() or EXIT_OK
    except SystemExit as left:  # `--help`
        return left.code if isinstance(left.code, int) else EXIT_OK
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return stop.exit_code
    except UserError as error:
        if debug:
            print(*map(plain, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        label = "" if isinstance(error, Preempted) else "error: "
        lines = [paragraph(f"{label}{error}"), *map(plain, error.details.splitlines())]
        print(*lines, sep="\n", file=sys.stderr)
        return error.exit_code


def output_closed() -> bool:
    """Whether the reader of standard output or standard error has gone; what is written there from
    now on goes nowhere, and raises nothing.
    """
    found = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no real file, or closed
            number = stream.fileno()
            poll = select.poll()
            poll.register(number, 0)
            if poll.poll(0):
                found = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
    return found
