"""`launch.compile --function=MODULE:NAME --shapes=...`: a function of one's own, on a TPU."""

from __future__ import annotations

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
    import jax

    from trainlib import chips, extension
    from trainlib.errors import ConfigError, shown
    from trainlib.planning import shapes
    from trainlib.planning.compile import read_shortfall
    from trainlib.planning.ledger import ledger_of
    from trainlib.planning.profile.figures import Profile, Subject
    from trainlib.planning.report import amount
    from trainlib.planning.step_time import is_predicted

    target = chips.target(args.target or TARGET)
    if not is_predicted(target):
        raise ConfigError(
            f"--function: the compiler for {target.name} says of no operation what it takes. Give "
            f"a TPU target; without --target it is {TARGET}."
        )
    positional, named = shapes.read(args.shapes or "")
    function = extension.load_from_flag(args.function, "--function")
    if args.out:
        check_page(args.out)
    plans.progress(f"compiling {args.function} for {target.name} ...")
    called, given = shapes.bound(function, positional, named)
    try:
        jax.eval_shape(called, *given)
    except Exception as error:  # whatever the function raises
        text = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"--function={args.function} cannot be traced with --shapes={shown(args.shapes or '')}:"
            f" {type(error).__name__}: {shown(text[0])} --debug prints the traceback."
        ) from error
    try:
        ledger = ledger_of(called, *given, target=target.name)
    except jax.errors.JaxRuntimeError as error:
        if shortfall := read_shortfall(str(error)):
            required, available = amount(shortfall.required), amount(shortfall.available)
            print(f"{args.function} on {target.name}: DOES NOT FIT, {required} of {available}")
            return plans.EXIT_DOES_NOT_FIT
        raise ConfigError(
            f"--function={args.function}: the compiler for {target.name} refuses it: "
            f"{shown(str(error).splitlines()[0], 400)}"
        ) from error
    finally:
        plans.progress("")
    where = target.name if target.devices == 1 else f"one device of {target.name}"
    show(args, Profile(ledger, Subject(args.function, where)), {"function": args.function})
    return 0
