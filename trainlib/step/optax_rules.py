"""Optimisers of optax by their names there, and of users by MODULE:NAME, built from
`optimizer.options`.

Nothing is written down about any of them: what may be set and of which type follows from the
signature, and whether a rule works with gradients alone is tried on shapes when it is built.
"""

from __future__ import annotations

import ast
import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from trainlib import extension
from trainlib.errors import ConfigError, nearest
from trainlib.keys import Kind, Text, Unfit, brief, fit, like, many, number

# Set by other keys, which mean the same for every rule.
_ELSEWHERE = {
    "learning_rate": "the section `schedule` sets it",
    "weight_decay": "optimizer.weight_decay sets it",
    "mask": "optimizer.decay_pattern sets it",
    "weight_decay_mask": "optimizer.decay_pattern sets it",
}


def _takes_schedule(rule: Any) -> bool:
    """Whether it is a function with a parameter `learning_rate` that may be a schedule."""
    if not callable(rule) or isinstance(rule, type):
        return False
    try:
        parameter = inspect.signature(rule).parameters.get("learning_rate")
    except (TypeError, ValueError):
        return False
    return parameter is not None and any(
        typing.get_origin(kind) is Callable for kind in typing.get_args(parameter.annotation)
    )


@functools.cache
def names() -> tuple[str, ...]:
    """The optimisers of the installed optax: what takes a schedule as its `learning_rate`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some attributes only say that they are to go
        public = [name for name in dir(optax) if not name.startswith(("_", "scale_by"))]
        return tuple(name for name in public if _takes_schedule(getattr(optax, name, None)))


def rule_of(name: str) -> Callable[..., optax.GradientTransformation]:
    """The function that builds a rule: one of optax, or MODULE:NAME of one's own.

    Raises:
      ConfigError: there is no such function, or it has no parameter `learning_rate`.
    """
    if not extension.is_reference(name):
        return getattr(optax, name)
    rule: Any = extension.load(name, "optimizer.name")
    try:
        fits = "learning_rate" in inspect.signature(rule).parameters
    except (TypeError, ValueError):
        fits = False
    if not fits:
        what = "a function with a parameter learning_rate that returns an optax transformation"
        raise extension.misfit(name, "optimizer.name", rule, what)
    return rule


def _full(name: str) -> str:
    return name if extension.is_reference(name) else f"optax.{name}"


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier() or not value.strip():
        raise Unfit("it is not NAME=VALUE")
    return name.strip(), value.strip()


def _accepts(text: str) -> None:
    _option(text)


def options() -> Kind:
    """The kind of the key `optimizer.options`."""
    return many(Text(3, 200, "NAME=VALUE", _accepts))


def _value(key: str, default: Any, text: str) -> Any:
    """The value of an option, of the type of its default (any value of Python's where that is
    None).
    """
    if isinstance(default, bool | int | float):
        kind = number() if type(default) is int else like(default)  # a default of 0 is any number
        return fit(key, text, kind, words=True)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _arguments(name: str, given: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of the rule `name` that "NAME=VALUE" texts mean.

    Raises:
      ConfigError: an option that the rule has not, that another key sets, that is given twice, or
        of the wrong type.
    """
    parameters = inspect.signature(rule_of(name)).parameters
    free = [parameter for parameter in parameters if parameter not in _ELSEWHERE]
    decays = _decays(name)
    if "weight_decay" in parameters and not decays:
        free.append("weight_decay")
    arguments: dict[str, Any] = {}
    for option, text in map(_option, given):
        key = f"optimizer.options: {option}"
        if option in _ELSEWHERE and option not in free:
            raise ConfigError(f"{key} is not set here: {_ELSEWHERE[option]}.")
        if option not in free:
            raise ConfigError(
                f"{key} is not known: {_full(name)} has no such parameter. {nearest(option, free)}"
                f"It takes: {', '.join(free)}."
            )
        if option in arguments:
            raise ConfigError(f"{key} is given twice.")
        arguments[option] = _value(key, parameters[option].default, text)
    return arguments


def _decays(name: str) -> str | None:
    """The parameter of the mask of the weight decay, where the rule has decay and mask."""
    parameters = inspect.signature(rule_of(name)).parameters
    masks = [mask for mask in ("mask", "weight_decay_mask") if mask in parameters]
    return masks[0] if masks and "weight_decay" in parameters else None


def make_rule(
    name: str,
    given: Sequence[str],
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    decays: Mapping[str, bool],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> optax.GradientTransformation:
    """Builds `optax.NAME(learning_rate=schedule, **options)`, or the same with a user's function.

    Args:
      name: one of `names()`, or MODULE:NAME.
      given: its options, "NAME=VALUE" each.
      schedule: step -> rate.
      weight_decay: as the rule means it, in weights that `decays`; 0 is none, whatever optax takes
        where nothing is said.
      decays: name of a weight -> whether it decays.
      shapes: of the weights that learn, to try the rule on.

    Raises:
      ConfigError: an option that the rule does not take, a weight decay that it does not have, or a
        rule that needs more than gradients and weights.
    """
    arguments, mask = _arguments(name, given), _decays(name)
    if mask:
        arguments |= {"weight_decay": weight_decay, mask: dict(decays)}
    elif weight_decay:
        raise ConfigError(
            f"optimizer.weight_decay={weight_decay} cannot work: {_full(name)} has no weight decay "
            "that can be kept from some of the weights. Use 0, or another rule."
        )
    try:
        rule = rule_of(name)(learning_rate=schedule, **arguments)
        state = jax.eval_shape(rule.init, dict(shapes))
        jax.eval_shape(rule.update, dict(shapes), state, dict(shapes))
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f"optimizer.name='{name}' cannot work: {_full(name)} with the options "
            f"{brief(list(given))} makes no step from gradients and weights alone: {brief(error)}."
        ) from error
    return rule
