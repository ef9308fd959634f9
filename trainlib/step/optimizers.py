"""Optimisers by name over flat weights `{"dotted.name": array}`: which weights learn, decay, and
how fast.

Every optimiser is the same chain: clip the global norm, add the L2 decay (sgd, rmsprop), the rule
itself, add the decoupled decay (adamw, adafactor), times the rate, times the multiplier of the
weight. A rule of optax (`trainlib.step.optax_rules`) brings its decay and the rate itself. Frozen
weights are outside the chain: they count in no norm and have no state. Patterns are regular
expressions searched in the dotted names; one that matches nothing is an error. The state is a
dictionary, stage name -> state.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainlib import extension, patterns
from trainlib.config import Options, complete, require
from trainlib.errors import ConfigError
from trainlib.keys import brief, key, many, number, pair, switch, whole
from trainlib.model.weights import Spec
from trainlib.step import optax_rules
from trainlib.step.slots import OPTAX_STAGE

NAMES = ("sgd", "rmsprop", "adamw", "adafactor")
Stage = tuple[str, optax.GradientTransformation]
_Flat = Any  # {name: array}; the type that optax gives trees is too wide to index
_PARAMETER_SCALE_MIN = 1e-3  # Adafactor's epsilon_2 (arXiv 1804.04235, section 8)


def defaults() -> Options:
    """Returns the options of an optimiser: key -> (default, meaning), with what each takes."""
    decay, off = number(0, below=1), number(above=0, also={0: "off"})
    multipliers = many(pair(patterns.pattern(), number(above=0)), most=patterns.MOST_LISTED)
    return {
        "name": key(
            "sgd",
            f"one of {', '.join(NAMES)}, an optimiser of optax by its name there, such as lion, or "
            "MODULE:NAME of a function like those of optax",
            extension.named(*dict.fromkeys((*NAMES, *optax_rules.names()))),
        ),
        "options": key(
            (),
            "rules of optax or of your own: list of NAME=VALUE for their parameters, such as "
            "b1=0.95,b2=0.98",
            optax_rules.options(),
        ),
        "clip_norm": key(
            0.0, "global norm that gradients are clipped to, before all else; 0: off", off
        ),
        "weight_decay": key(
            0.0,
            "sgd, rmsprop: L2 added to the gradient; adamw, adafactor: decoupled; optax: its own",
            number(0),
        ),
        "decay_pattern": key(
            r"(^|\.)kernel$", "regex of the weights that decay", patterns.pattern()
        ),
        "frozen": key(
            (), "list of regexes of weights that do not learn and get no state", patterns.patterns()
        ),
        "lr_multipliers": key(
            (), "list of (regex, factor): factor on the rate; several multiply", multipliers
        ),
        "momentum": key(0.9, "sgd, rmsprop: decay of the velocity; 0: none", decay),
        "nesterov": key(False, "sgd, rmsprop: Nesterov's form of momentum", switch()),
        "rms_decay": key(0.9, "rmsprop: decay of the mean square", decay),
        "rms_eps": key(1e-3, "rmsprop: added to the mean square, inside the root", number(above=0)),
        "b1": key(0.9, "adamw: decay of the mean gradient", decay),
        "b2": key(0.999, "adamw: decay of the mean square", decay),
        "eps": key(1e-8, "adamw: added to the root", number(above=0)),
        "factored_min_size": key(
            128, "adafactor: factor a weight if two dimensions are this large", whole(1)
        ),
        "factored_decay": key(
            0.8, "adafactor: mean-square decay is 1 - step^-factored_decay", number(above=0)
        ),
        "update_clip": key(1.0, "adafactor: largest RMS of one weight's update; 0: off", off),
        "parameter_scale": key(
            True, "adafactor: multiply by max(1e-3, RMS of the weight)", switch()
        ),
    }


def _nearest_weight(pattern: str, names: Sequence[str]) -> str:
    """The weight with the part of a name most like the pattern read as plain text."""
    text = re.sub(r"[\\^$()\[\]{}?*+|]", "", pattern)[:100]  # the comparison is quadratic
    parts: dict[str, str] = {}
    for name in names:
        words = name.split(".")
        spans = ((i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        for i, j in spans:
            parts.setdefault(".".join(words[i:j]), name)
    return parts[difflib.get_close_matches(text, parts, n=1, cutoff=0.0)[0]]


def matching(option: str, pattern: Any, names: Sequence[str], budget: list[int]) -> set[str]:
    """Returns the names in which the regular expression `pattern` is found.

    Args:
      option: the key to name in errors.
      pattern: a regular expression.
      names: to search.
      budget: see `trainlib.patterns.matching`.

    Raises:
      ConfigError: not a regular expression that is searched here, or nothing matches.
    """
    found = patterns.matching(option, pattern, names, budget)
    if not found:
        raise ConfigError(
            f"{option}: the pattern {brief(pattern)} matches none of the {len(names)} weights. The "
            f"nearest is '{_nearest_weight(pattern, names)}'. Patterns are regular expressions "
            "searched in the dotted names."
        )
    return found


def trained_names(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> set[str]:
    """Returns the names of the weights that learn: all but those that `frozen` matches."""
    frozen, budget = set[str](), [patterns.BUDGET]
    for pattern in complete("optimizer", defaults(), config)["frozen"]:
        frozen |= matching("optimizer.frozen", pattern, list(specs), budget)
    trained = set(specs) - frozen
    require(
        bool(trained),
        "optimizer.frozen",
        list(config.get("frozen", ())),
        "no weight is left to learn",
    )
    return trained


def _multipliers(options: dict[str, Any], specs: Mapping[str, Spec]) -> dict[str, float]:
    factors: dict[str, float] = {}
    budget = [patterns.BUDGET]
    for pattern, factor in options["lr_multipliers"]:
        for name in matching("optimizer.lr_multipliers", pattern, list(specs), budget):
            factors[name] = factors.get(name, 1.0) * factor
    return factors


def _scale_by_name(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def scale(updates: _Flat, _: _Flat) -> _Flat:
        return {n: u * factors[n] if n in factors else u for n, u in updates.items()}

    return optax.stateless(scale)


def _only(trained: set[str], inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on the trained weights only; the others get the update -0.0, which leaves every
    float as it is.
    """

    def pick(tree: _Flat) -> _Flat:
        return {name: value for name, value in tree.items() if name in trained}

    def init(params: _Flat) -> optax.OptState:
        return inner.init(pick(params))

    def update(
        updates: _Flat, state: optax.OptState, params: _Flat = None
    ) -> tuple[_Flat, optax.OptState]:
        if params is None:
            raise ValueError("An optimiser with frozen weights needs the parameters.")
        moved: _Flat
        moved, state = inner.update(pick(updates), state, pick(params))
        still = {n: jnp.full_like(p, -0.0) for n, p in params.items() if n not in trained}
        return moved | still, state

    return optax.GradientTransformation(init, update)


def _factored_dims(shape: tuple[int, ...], min_size: int) -> tuple[int, int] | None:
    """The dimensions (second largest, largest) that optax factors over, or None. Ties fall as NumPy
    sorts them.
    """
    order = np.argsort(shape)
    if len(shape) < 2 or shape[order[-2]] < min_size:
        return None
    return int(order[-2]), int(order[-1])


def _block_transforms(
    options: dict[str, Any], specs: Mapping[str, Spec], stacked_axes: Sequence[str]
) -> list[Stage]:
    """Adafactor's update clip and parameter scale, by blocks: a stack of layers or experts is as
    many weights.
    """
    within = {
        name: tuple(d for d, axis in enumerate(spec.axes) if axis not in stacked_axes)
        for name, spec in specs.items()
    }

    def rms(name: str, x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(jnp.square(x), axis=within[name], keepdims=True))

    def clip(updates: _Flat, _: _Flat) -> _Flat:
        limit = options["update_clip"]
        return {n: u / jnp.maximum(1.0, rms(n, u) / limit) for n, u in updates.items()}

    def scale(updates: _Flat, params: _Flat) -> _Flat:
        return {
            n: u * jnp.maximum(rms(n, params[n]), _PARAMETER_SCALE_MIN) for n, u in updates.items()
        }

    stages: list[Stage] = []
    if options["update_clip"]:
        stages.append(("update_clip", optax.stateless(clip)))
    if options["parameter_scale"]:
        stages.append(("parameter_scale", optax.stateless(scale)))
    return stages


def _adafactor(
    options: dict[str, Any],
    specs: Mapping[str, Spec],
    stacked_axes: Sequence[str],
    decay: list[Stage],
    rate: Stage,
) -> list[Stage]:
    min_size = options["factored_min_size"]
    for name, spec in specs.items():
        dims = _factored_dims(spec.shape, min_size) or ()
        require(
            not any(spec.axes[d] in stacked_axes for d in dims),
            "optimizer.factored_min_size",
            min_size,
            f"weight '{name}' {spec.shape} would be factored over the stack "
            f"{tuple(spec.axes[d] for d in dims)}; choose one that only its own dimensions reach",
        )
    factored = optax.scale_by_factored_rms(
        decay_rate=options["factored_decay"], min_dim_size_to_factor=min_size
    )
    blocks = _block_transforms(options, specs, stacked_axes)
    return [("factored", factored), *blocks, *decay, rate]


def _decays(
    options: dict[str, Any], specs: Mapping[str, Spec], learned: Mapping[str, Spec]
) -> dict[str, bool]:
    """Whether each weight that learns decays; the pattern is read only where there is decay."""
    decaying = set[str]()
    if options["weight_decay"]:
        pattern, budget = options["decay_pattern"], [patterns.BUDGET]
        decaying = matching("optimizer.decay_pattern", pattern, list(specs), budget)
    return {name: name in decaying for name in learned}


def _velocity(options: dict[str, Any]) -> list[Stage]:
    if not options["momentum"]:
        return []
    return [("momentum", optax.trace(options["momentum"], options["nesterov"]))]


def _sgd(
    options: dict[str, Any],
    specs: Mapping[str, Spec],
    stacked_axes: Sequence[str],
    decay: list[Stage],
    rate: Stage,
) -> list[Stage]:
    return [*decay, *_velocity(options), rate]


def _rmsprop(
    options: dict[str, Any],
    specs: Mapping[str, Spec],
    stacked_axes: Sequence[str],
    decay: list[Stage],
    rate: Stage,
) -> list[Stage]:
    square = optax.scale_by_rms(options["rms_decay"], options["rms_eps"], initial_scale=1.0)
    return [*decay, ("mean_square", square), rate, *_velocity(options)]


def _adamw(
    options: dict[str, Any],
    specs: Mapping[str, Spec],
    stacked_axes: Sequence[str],
    decay: list[Stage],
    rate: Stage,
) -> list[Stage]:
    adam = optax.scale_by_adam(options["b1"], options["b2"], options["eps"])
    return [("adam", adam), *decay, rate]


# Name -> (options, weights that learn, stacked axes, stage of the decay, stage of the rate) ->
# stages. Any other name is looked up in optax, and MODULE:NAME in a module of the user.
RULES: dict[str, Callable[..., list[Stage]]] = {
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adamw": _adamw,
    "adafactor": _adafactor,
}


def make_optimizer(
    config: Mapping[str, Any],
    schedule: optax.Schedule,
    specs: Mapping[str, Spec],
    stacked_axes: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Builds the optimiser from the section `optimizer` of a config.

    - sgd: v = momentum * v + g; w -= rate * v, or rate * (g + momentum * v) with Nesterov.
    - rmsprop: as TensorFlow's, which MnasNet used: mean square s starts at 1, eps is inside the
      root, and the rate is inside the velocity: v = momentum * v + rate * g / sqrt(s + eps); w -=
        v.
    - adamw: arXiv 1711.05101, decay times the rate.
    - adafactor: arXiv 1804.04235, factored, no momentum; decay times the rate.

    Args:
      config: mapping with the keys of `defaults()`; absent keys take their default.
      schedule: step -> rate.
      specs: name -> Spec of every weight; patterns are checked against it.
      stacked_axes: logical axes whose indices are weights of their own (layers of a scan, experts):
        Adafactor clips and scales each of them by its own RMS.

    Returns:
      A transformation whose `update(grads, state, params)` wants the parameters.

    Raises:
      ConfigError: an unknown name or key, a value that cannot work, or a pattern that matches no
        weight.
    """
    options = complete("optimizer", defaults(), config)
    trained = trained_names(config, specs)
    factors = _multipliers(options, specs)
    learned = {name: spec for name, spec in specs.items() if name in trained}

    stages: list[Stage] = []
    if options["clip_norm"]:
        stages.append(("clip", optax.clip_by_global_norm(options["clip_norm"])))
    rate = ("rate", optax.scale_by_learning_rate(schedule))
    decays = _decays(options, specs, learned)
    if options["name"] in RULES:
        require(
            not options["options"],
            "optimizer.options",
            options["options"],
            f"they are for rules of optax and of your own; {options['name']} has keys of its own",
        )
        decay = []
        if options["weight_decay"]:
            decay = [("decay", optax.add_decayed_weights(options["weight_decay"], decays))]
        stages += RULES[options["name"]](options, learned, stacked_axes, decay, rate)
    else:
        rule = optax_rules.make_rule(
            options["name"],
            options["options"],
            schedule,
            weight_decay=options["weight_decay"],
            decays=decays,
            shapes={n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in learned.items()},
        )
        stages.append((OPTAX_STAGE, rule))
    if factors:
        stages.append(("multiply", _scale_by_name(factors)))
    chain = optax.named_chain(*stages)
    return chain if trained == set(specs) else _only(trained, chain)
