"""Errors that people cause, as one clear paragraph each, and the exit codes that go with them.

A `UserError` carries everything a reader needs (what, where, allowed, nearest, what to do);
commands print it without a traceback unless `--debug` is given. So they do with a stop by a signal
and with a reader of their output that has gone (`launch.describe | head`), which end with 128 + the
signal, as the shell counts, and so does what the system refuses for reasons that lie outside
(a full disk, rights): 74. Everything else is a bug in this code and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import select
import signal
import stat
import sys
import textwrap
import traceback
import unicodedata
from collections.abc import Callable, Iterable

EXIT_OK = 0

# Of the system's errors, those that no program can help.
_REFUSALS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
    + (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE)
)


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


class InputError(ConfigError, ValueError):
    """An array of a shape or type that a layer, a model or a function does not take."""


class DataError(UserError):
    """Input data that is missing, unreadable or not what it should be."""

    exit_code = 65


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""

    exit_code = 66


class NumericAbort(UserError):
    """Numbers went bad: in training for too many steps in a row, or in an evaluation.

    Args:
      message: the paragraph.
      evidence: name and text of a file with what was found, which commands write.
    """

    exit_code = 70

    def __init__(self, message: str, evidence: tuple[str, str] | None = None):
        super().__init__(message)
        self.evidence = evidence


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
    it; blanks at an end; long names with one end) come out with their code points, as K\\xe4fer and
    Ka\\u0308fer. Blanks at the ends are written out as \\x20 wherever they are.
    """
    given = [list(names) for names in lists]
    alike: dict[str, set[str]] = {}
    for name in (name for names in given for name in names):
        alike.setdefault(_looks(name), set()).add(name)
    return [
        [_spelt(name) if len(alike[_looks(name)]) > 1 else _edged(name) for name in names]
        for names in given
    ]


def _looks(name: str) -> str:
    return shown(unicodedata.normalize("NFKC", name).strip())


def _spelt(name: str) -> str:
    return _edged(name, lambda text: "".join(map(_ascii, text)))


def _ascii(letter: str) -> str:
    return letter if letter.isascii() and letter.isprintable() else _code(letter)


def _edged(name: str, inner: Callable[[str], str] = shown) -> str:
    """A name with the blanks at its ends written out, which nobody would see."""
    left, right = len(name) - len(name.lstrip(" ")), len(name) - len(name.rstrip(" "))
    if left + right > 20:  # such a name is not printed whole either
        return inner(name)
    if not name.strip(" "):
        return _code(" ") * len(name)
    return _code(" ") * left + inner(name.strip(" ")) + _code(" ") * right


def nearest(word: str, options: Iterable[str]) -> str:
    """Returns `Did you mean 'x'? ` for the closest option, or "" when nothing is close."""
    # The comparison is quadratic, and no key or name is longer.
    asked, names = word[:100], list(options)
    close = difflib.get_close_matches(asked, names, n=1, cutoff=0.5)
    if not close:  # as in ADAMW, of which no letter is one of adamw
        small = {name.lower(): name for name in reversed(names)}
        close = [small[n] for n in difflib.get_close_matches(asked.lower(), small, 1, cutoff=0.5)]
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
    source = f" ({where})" if where else ""
    hint = nearest(str(value), options)
    return ConfigError(
        f"{what}={shown(repr(value))}{source} is not known. {hint}Allowed: {', '.join(options)}."
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
    """Runs a command; a `UserError` becomes one paragraph on standard error and its exit code, and
    so does what a disk refuses where nothing more is known of it; a stop by a signal is one line,
    and a reader of the output that has gone nothing at all.
    """
    try:
        code = _run(main, debug)
        sys.stdout.flush()  # what a buffer still holds may be what nobody reads
    except BrokenPipeError:
        if not output_closed():
            raise
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        what = _place(error)
        text = f"error: {what} cannot be used: {error.strerror}. Free space, mend it or its rights."
        _say([paragraph(text)], debug)
        code = StorageError.exit_code
    return code


def _place(error: OSError) -> str:
    """What the system refused to read or write."""
    if error.filename is not None:
        given = error.filename
        return shown(os.fsdecode(given) if isinstance(given, bytes) else given)
    return (
        "the place of standard output"
        if output_closed(full=True)
        else "a file, or the disk it lies on,"
    )


def _run(main: Callable[[], int | None], debug: bool) -> int:
    try:
        return main() or EXIT_OK
    except SystemExit as left:  # `--help`
        return left.code if isinstance(left.code, int) else EXIT_OK
    except Interrupted as stop:
        _say(["", str(stop)])
        return stop.exit_code
    except UserError as error:
        label = "" if isinstance(error, Preempted) else "error: "
        _say([paragraph(f"{label}{error}"), *map(plain, error.details.splitlines())], debug)
        return error.exit_code
    except (RuntimeError, AssertionError) as error:
        refused = _no_backend(error)
        if refused is None or debug:
            raise
        _say([paragraph(f"error: {refused}")])
        return refused.exit_code


def _no_backend(error: Exception) -> ConfigError | None:
    """What JAX says, or fails to say, about a JAX_PLATFORMS that this machine does not have."""
    asked, frames = os.environ.get("JAX_PLATFORMS"), traceback.extract_tb(error.__traceback__)
    if not asked or not frames or not frames[-1].filename.endswith("jax/_src/xla_bridge.py"):
        return None
    reason = shown(str(error), 400) or "there is no such device, or no plugin of JAX for it"
    return ConfigError(
        f"JAX cannot start on JAX_PLATFORMS={shown(asked)}: {reason}. Unset JAX_PLATFORMS to take "
        "what is there, or set JAX_PLATFORMS=cpu."
    )


def _say(lines: list[str], debug: bool = False) -> None:
    """Writes to standard error; where that cannot be written, the exit code has to say it."""
    trace = [*map(plain, traceback.format_exc().splitlines())] if debug else []
    with contextlib.suppress(OSError):
        print(*trace, *lines, sep="\n", file=sys.stderr, flush=True)


def open_streams() -> None:
    """Opens the standard streams that a command was started without (`>&-`), to nowhere.

    Otherwise printing is a fault, and the next file that is opened, a checkpoint perhaps, takes the
    number of standard error, so that what native code says is written into it. Letters that the
    encoding of standard output lacks are written as \\u202e.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A name that a terminal without UTF-8 cannot show must not stop what prints it.
        sys.stdout.reconfigure(errors="backslashreplace")


def output_closed(full: bool = False) -> bool:
    """Whether standard output or standard error cannot be written. What is written there from now
    on goes nowhere, and raises nothing.

    Args:
      full: whether the reason may be a disk, which is tried with an empty line, and not a reader
        that has gone.
    """
    found = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no real file, or closed
            number = stream.fileno()
            if _broken(number, full and stream is sys.stdout):
                found = True
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
    return found


def _broken(number: int, full: bool) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return True  # not POLLNVAL, which a Mac answers for every terminal
    if full and not stat.S_ISFIFO(os.fstat(number).st_mode) and not os.isatty(number):
        try:
            os.write(number, b"\n")
        except OSError:
            return True
    return False
