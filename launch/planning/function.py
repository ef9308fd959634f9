"""`launch.compile --function=MODULE:NAME --shapes=...`: a function of one's own, on a TPU."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from launch.planning import plans
from launch.planning.profile import check_page, show

TARGET = "v5e-1"


def profile_function(args: Any) -> int:
    """Compiles a function for one device of a target and shows its profile.

    Raises:
      ConfigError: no such module or name, shapes that cannot be read, a function that cannot be
        traced with them or that the compiler refuses, a target without a prediction.
    """
    from trainlib import chips, extension
    from trainlib.errors import ConfigError
    from trainlib.planning import shapes
    from trainlib.planning.profile.figures import Profile, Subject
    from trainlib.planning.step_time import is_predicted

    target = chips.target(args.target or TARGET)
    if not is_predicted(target):
        raise ConfigError(
            f"--function: the compiler for {target.name} says of no operation what it takes. Give "
            f"a TPU target; without --target it is {TARGET}."
        )
    positional, named = shapes.read(args.shapes or "")
    with contextlib.redirect_stdout(_Aside()):
        function = extension.load_from_flag(args.function, "--function")
    if args.out:
        check_page(args.out)
    plans.progress(f"compiling {args.function} for {target.name} ...")
    called, given = shapes.bound(function, positional, named)
    try:
        _check_traced(args, called, given)
        ledger = _ledger(args.function, called, given, target.name)
    finally:
        plans.progress("")
    if ledger is None:
        return plans.EXIT_DOES_NOT_FIT
    where = target.name if target.devices == 1 else f"one device of {target.name}"
    show(args, Profile(ledger, Subject(args.function, where)), {"function": args.function})
    return 0


def _check_traced(args: Any, called: Callable[..., Any], given: Sequence[Any]) -> None:
    """Traces a function before anything is compiled, for an error in words.

    Raises:
      ConfigError: whatever the function raises, an exit as well: no exit code but our own may
        stand for an answer.
    """
    import jax

    from trainlib.errors import ConfigError, shown

    try:
        with contextlib.redirect_stdout(_Aside()):
            jax.eval_shape(lambda *arrays: called(*arrays), *given)  # NumPy's as well
    except (Exception, SystemExit) as error:
        text = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"--function={args.function} cannot be traced with --shapes={shown(args.shapes or '')}:"
            f" {type(error).__name__}: {shown(text[0])} --debug prints the traceback."
        ) from error


def _ledger(name: str, called: Callable[..., Any], given: Sequence[Any], target: str) -> Any:
    """The ledger of a function; None where it does not fit, which is printed.

    Raises:
      ConfigError: the compiler refuses it.
    """
    from trainlib.errors import ConfigError, shown
    from trainlib.planning.compile import read_shortfall
    from trainlib.planning.ledger import ledger_of
    from trainlib.planning.report import amount

    try:
        # Traced a second time, for the target's devices: what it prints was said already.
        with contextlib.redirect_stdout(io.StringIO()):
            return ledger_of(called, *given, target=target)
    except RuntimeError as error:  # XLA raises it bare for sizes past 64 bits
        if shortfall := read_shortfall(str(error)):
            required, available = amount(shortfall.required), amount(shortfall.available)
            print(f"{name} on {target}: DOES NOT FIT, {required} of {available}")
            return None
        raise ConfigError(
            f"--function={name}: the compiler for {target} refuses it: "
            f"{shown(str(error).splitlines()[0], 400)}"
        ) from error


class _Aside(io.TextIOBase):
    """What a function prints: beside the report, which may be JSON, and without what steers a
    terminal.
    """

    def write(self, text: str) -> int:
        from trainlib.errors import plain

        sys.stderr.write("\n".join(plain(line.expandtabs()) for line in text.split("\n")))
        return len(text)
