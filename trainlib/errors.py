"""Errors that people cause, as one clear paragraph each, and the exit codes that go with them.

A `UserError` carries everything a reader needs (what, where, allowed, nearest, what to do);
commands print it without a traceback unless `--debug` is given. Everything else is a bug in this
code and keeps its traceback.
"""

from __future__ import annotations

import difflib
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
    return "".join(map(_printable, given))


def _printable(letter: str) -> str:
    if letter == " " or (letter.isprintable() and unicodedata.category(letter) != "Cf"):
        return letter
    code = ord(letter)
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
    )


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns `Did you mean 'x'? ` for the closest option, or "" when nothing is close."""
    # The comparison is quadratic, and no key or name is longer.
    close = difflib.get_close_matches(word[:100], list(options), n=1, cutoff=0.5)
    return f"Did you mean '{shown(close[0])}'? " if close else ""


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


def run_command(main: Callable[[], int | None], *, debug: bool = False) -> int:
    """Runs a command; a `UserError` becomes one paragraph on standard error and its exit code."""
    try:
        return main() or EXIT_OK
    except UserError as error:
        if debug:
            traceback.print_exc()
        label = "" if isinstance(error, Preempted) else "error: "
        words = label + " ".join(str(error).split())
        # Paths and flags stay whole, to be copied.
        text = textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False)
        print(text, *filter(None, [error.details]), sep="\n", file=sys.stderr)
        return error.exit_code
