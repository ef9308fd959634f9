"""Learning-rate schedules by name, all in steps, each with a linear warm-up.

A schedule maps the number of updates already made (0 at the first) to the rate of the next one.
`warmup_steps` rise linearly from `warmup_start` and are counted as the papers' code counts them:
boundaries and exponential decay run from step 0, warm-up included; the cosine runs from the end of
the warm-up to the last step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from trainlib.config import Options, complete, mark_together, require, set_together
from trainlib.keys import choice, key, many, number, switch, whole

NAMES = ("constant", "step", "cosine", "exponential", "inverse_sqrt")


def defaults() -> Options:
    """Returns the options of a schedule: key -> (default, meaning), with what each takes."""
    return {
        "name": key("cosine", f"one of {', '.join(NAMES)}", choice(*NAMES)),
        "learning_rate": key(
            0.1, "rate after the warm-up; for inverse_sqrt the factor of 1/sqrt(step)", number(0)
        ),
        "warmup_steps": key(0, "steps of linear warm-up; 0: none", whole(0)),
        "warmup_start": key(0.0, "rate at step 0 of the warm-up", number(0)),
        "boundaries": key(
            (), "step: the steps at which the rate is multiplied, rising", many(whole(1))
        ),
        "factors": key(
            (0.1,), "step: multiplier at each boundary, or one for all", many(number(above=0))
        ),
        "final_learning_rate": key(0.0, "cosine: rate after the last step", number(0)),
        "decay_rate": key(
            0.97, "exponential: multiplier each decay_steps", number(above=0, high=1)
        ),
        "decay_steps": key(1, "exponential: steps from one multiplication to the next", whole(1)),
        "staircase": key(
            True, "exponential: multiply at whole decay_steps only, not in between", switch()
        ),
        "plateau_steps": key(
            10_000, "inverse_sqrt: the rate is constant up to this step", whole(1)
        ),
    }


def _check(options: dict[str, Any], total_steps: int) -> None:
    def need(name: str, fits: bool, rule: str) -> None:
        require(fits, f"schedule.{name}", options[name], rule)

    warmup, boundaries, factors = (
        options[name] for name in ("warmup_steps", "boundaries", "factors")
    )
    need(
        "warmup_steps",
        warmup <= total_steps,
        f"the warm-up lies between 0 and the {total_steps} steps of the run; "
        "shorten it or train for more steps",
    )
    if options["name"] != "step":
        return
    rising = all(a < b for a, b in itertools.pairwise(boundaries))
    need("boundaries", bool(boundaries) and rising, "it is a list of rising positive step numbers")
    need("boundaries", boundaries[0] >= warmup, f"the first lies inside the warm-up of {warmup}")
    need(
        "factors",
        len(factors) in (1, len(boundaries)),
        f"it holds one positive number, or one for each of the {len(boundaries)} boundaries",
    )


def _body(options: dict[str, Any], total_steps: int) -> optax.Schedule:
    """The schedule without its warm-up, as a function of the step from the start of the run."""
    rate, warmup = options["learning_rate"], options["warmup_steps"]
    if options["name"] == "constant":
        return optax.constant_schedule(rate)
    if options["name"] == "step":
        boundaries, factors = options["boundaries"], options["factors"]
        factors = factors * len(boundaries) if len(factors) == 1 else factors
        return optax.piecewise_constant_schedule(rate, dict(zip(boundaries, factors, strict=True)))
    if options["name"] == "cosine":
        final, length = options["final_learning_rate"], max(1, total_steps - warmup)

        def cosine(step: jax.typing.ArrayLike) -> jax.Array:
            progress = jnp.clip((jnp.asarray(step) - warmup) / length, 0, 1)
            return final + (rate - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

        return cosine
    if options["name"] == "exponential":
        decay, every = options["decay_rate"], options["decay_steps"]

        def exponential(step: jax.typing.ArrayLike) -> jax.Array:
            # Whole-number division: a quotient in f32 could fall on the wrong side of a stair.
            times = (
                jnp.asarray(step) // every if options["staircase"] else jnp.asarray(step) / every
            )
            return rate * decay**times

        return exponential
    plateau = options["plateau_steps"]
    return lambda step: rate * jax.lax.rsqrt(jnp.maximum(step, plateau).astype(jnp.float32))


# Keys whose values count steps, which `settle_epochs` scales.
_COUNTED = ("schedule.warmup_steps", "schedule.boundaries", "schedule.decay_steps")


def settle_epochs(config: ConfigDict, examples: int) -> bool:
    """Sets `steps` of a configuration whose `epochs` is set, in place. What its schedule counts in
    steps keeps its share of the run, but for keys that were set together with `epochs`. Settling
    twice changes nothing.

    Args:
      config: of a run.
      examples: in the training split.

    Returns:
      Whether a plan that was made before has another schedule.
    """
    if not config.epochs:
        return False
    provisional = _provisional(config)
    before, steps = config.steps, max(1, math.ceil(config.epochs * examples / config.batch_size))
    config.steps, options = steps, config.schedule
    together = set_together(config)
    mark_together(config, {*together, "steps"})

    def share(count: int, least: int) -> int:
        return max(least, round(count * steps / before))

    if "schedule.warmup_steps" not in together:
        options.warmup_steps = share(options.warmup_steps, 0)
    if options.name == "step" and "schedule.boundaries" not in together:
        options.boundaries = tuple(share(step, 1) for step in options.boundaries)
    if options.name == "exponential" and "schedule.decay_steps" not in together:
        options.decay_steps = share(options.decay_steps, 1)
    return provisional or steps != before


def _provisional(config: ConfigDict) -> bool:
    """Whether the schedule is meant for steps that only `settle_epochs` will know."""
    together = set_together(config)
    return bool(config.epochs) and "steps" not in together and not together.isdisjoint(_COUNTED)


def of_run(config: ConfigDict) -> optax.Schedule:
    """The schedule of a run, by `make_schedule`. Before `settle_epochs`, steps of a warm-up that
    was set together with `epochs` have no run to fit into: the rate is constant until then.

    Raises:
      ConfigError: names the key and what it has to be.
    """
    if _provisional(config):
        return optax.constant_schedule(config.schedule.learning_rate)
    return make_schedule(config.schedule, config.steps)


def make_schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """Builds a schedule from the section `schedule` of a config.

    - constant: learning_rate.
    - step: times `factors[i]` from step `boundaries[i]` on.
    - cosine: half a cosine from learning_rate at the end of the warm-up to final_learning_rate at
      `total_steps`.
    - exponential: learning_rate * decay_rate^(step / decay_steps), the exponent rounded down with
      `staircase`.
    - inverse_sqrt: learning_rate / sqrt(max(step, plateau_steps)), as in T5 and ST-MoE
      (learning_rate 1, plateau 10,000).

    Args:
      config: mapping with the keys of `defaults()`; absent keys take their default.
      total_steps: length of the run.

    Returns:
      step (int scalar, traced or not) -> rate (f32 scalar).

    Raises:
      ConfigError: an unknown name or key, a wrong type, or a value that cannot work.
    """
    options = complete("schedule", defaults(), config)
    _check(options, total_steps)
    body, warmup, start = (
        _body(options, total_steps),
        options["warmup_steps"],
        options["warmup_start"],
    )
    # The exponential may have decayed before the warm-up ends; the ramp aims at the undecayed rate,
    # as MnasNet's code does.
    peak = options["learning_rate"]
    if options["name"] == "inverse_sqrt":
        peak /= math.sqrt(max(warmup, options["plateau_steps"]))

    # Jitted for the host, which asks for the rate of each step to log it: 0.015 ms, not 0.5 to 6.
    @jax.jit
    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        rate = jnp.asarray(body(step), jnp.float32)
        if warmup == 0:
            return rate
        ramp = start + (peak - start) * (jnp.asarray(step) / warmup)
        return jnp.where(jnp.asarray(step) < warmup, ramp, rate).astype(jnp.float32)

    return schedule
