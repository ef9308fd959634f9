"""Experts on a few tokens, as decoding has them: weights are read of those that a token chose.

Letters: D model width, F hidden width of an expert, P periods, E experts, K choices, G groups, S
tokens of a group, T tokens, N choices (T * K), R rows of a product.

Choices lie sorted by expert, and a loop goes from one expert that has some to the next. It takes
R of its rows at a time from the stacks of all periods and experts, in which one dynamic slice names
both: nothing of them is moved but the matrices of that expert, once for R choices of it. So the
cost of a step is that of the experts that were chosen, whatever E is; with so many choices that
all are, products of all experts at once take less (`pays`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from moe.kernels.batched import Weights, hidden
from moe.kernels.chosen import fits, in_turn
from moe.kernels.int8 import in_type
from moe.routing.route import Routing
from moe.routing.slots import sort_by_expert
from trainlib.sharding.constrain import platform
from trainlib.sharding.kernels import kernel_mode

# Choices for each expert. With 2, six experts of seven have some, and the loop costs an accelerator
# what it saves; products of all experts on all tokens cost a CPU their arithmetic.
_MOST, _MOST_ON_CPU = 2, 8
_TILE = 8  # rows that lie in one tile of an accelerator: fewer take as long


def pays(choices: int, experts: int) -> bool:
    """Whether `chosen` takes less time than all experts on all tokens, on this platform.

    Args:
      choices: N.
      experts: E.
    """
    return choices <= experts * (_MOST_ON_CPU if platform() == "cpu" else _MOST)


def _rows(tokens: int, choices: int, experts: int) -> int:
    """R. A CPU computes four rows in the time in which it reads the weights of one."""
    if platform() != "cpu":
        return _TILE
    return min(tokens, 4 if choices <= 2 * experts else _TILE)


def chosen(
    x: jax.Array, routed: Routing, weights: Weights, period: jax.Array | int, bias_form: str
) -> jax.Array:
    """Every choice that is sent is computed; forward only.

    Args:
      x: [G, S, D].
      routed: of these tokens; no expert had to drop one.
      weights: of all experts of all periods, [P, E, ..], see `moe.kernels.int8.in_type`.
      period: whose experts these are, int32 scalar.
      bias_form: see `moe.kernels.batched`.

    Returns:
      [G, S, D] in the type of x, that of `moe.exchange.dropless` within rounding.
    """
    tokens = x.reshape(-1, x.shape[-1])  # [T, D]
    gates, expert = (v.reshape(len(tokens), -1) for v in (routed.gates, routed.expert))  # [T, K]
    if (mode := kernel_mode()) and fits(tokens, weights):
        with jax.named_scope("products"):
            of = _in_turn(gates, expert, routed.num_experts)
            y = in_turn(tokens, *of, weights, period, bias_form, interpret=mode == "interpret")
        return y.reshape(x.shape)
    experts, each, flat = routed.num_experts, expert.shape[1], expert.reshape(-1)  # [N]
    with jax.named_scope("dispatch"):
        order, position, bounds = sort_by_expert(flat, experts)
        several = _rows(len(tokens), len(flat), experts)  # R
        sorted_rows = jnp.pad(tokens[order // each], ((0, several - 1), (0, 0)))  # [N + R - 1, D]
    names = [name for name in ("gate", "up") if name in weights]

    def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        first, out = state
        which = flat[order[first]]
        own = {
            name: lax.dynamic_slice(
                stack, (period, which, *(0,) * (stack.ndim - 2)), (1, 1, *stack.shape[2:])
            )[0, 0]
            for name, stack in weights.items()
        }
        own = in_type(own, x.dtype)
        rows = lax.dynamic_slice_in_dim(sorted_rows, first, several)  # [R, D]
        h = hidden({name: rows @ own[name] for name in names}, own.get("bias"), bias_form)
        # Rows of the next expert among them are wrong, and overwritten when it has its turn.
        out = lax.dynamic_update_slice_in_dim(out, h @ own["down"], first, 0)
        return jnp.minimum(first + several, bounds[which + 1]), out

    with jax.named_scope("products"):
        start = jnp.int32(0), jnp.zeros_like(sorted_rows)
        _, out = lax.while_loop(lambda state: state[0] < bounds[-1], turn, start)
    with jax.named_scope("combine"):
        place = (bounds[flat] + position).reshape(expert.shape)  # [T, K]
        y = jnp.zeros((), jnp.float32)
        for k in range(each):
            sent = (expert[:, k] < experts)[:, None]
            y = y + gates[:, k, None] * jnp.where(sent, out[place[:, k]], 0).astype(jnp.float32)
        return y.astype(x.dtype).reshape(x.shape)


def _in_turn(
    gates: jax.Array, expert: jax.Array, experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `in_turn` takes of gates and experts [T, K]: gates [M, T], experts [M], their number."""
    every = jnp.arange(experts, dtype=jnp.int32)
    hit = jnp.any(expert[..., None] == every, axis=(0, 1))  # [E]
    place, last = jnp.cumsum(hit, dtype=jnp.int32) - 1, jnp.max(jnp.where(hit, every, 0))
    turn = jnp.arange(min(expert.size, experts), dtype=jnp.int32)[:, None]  # [M, 1]
    which = jnp.sum(jnp.where(hit & (place == turn), every, 0), axis=1, dtype=jnp.int32)
    count = jnp.sum(hit, dtype=jnp.int32)
    which = jnp.where(turn[:, 0] < count, which, last)
    mine = (expert == which[:, None, None]) & (turn < count)[..., None]  # [M, T, K]
    return jnp.sum(jnp.where(mine, gates, 0.0), axis=-1), which, count
