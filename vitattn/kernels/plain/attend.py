"""Attention with a separable bias, the one primitive under every attention layer of this package.

Dimension letters: Q queries, KH KW rows and columns of keys, d query/key width, e value width.

    logit[i, (y, x)] = q[i] . k[y, x] + bias_row[i, y] + bias_col[i, x]
    out[i]           = sum over (y, x) of softmax(logit[i])[y, x] * v[y, x]

Keys whose values are 0 may be left out; `beside[i]`, the logarithm of what they add up to in the
softmax of query i, then stands for all of them.

Two-dimensional relative logits (arXiv 1904.09925) and the k x k window of local attention
(arXiv 1906.05909) are both a row term plus a column term, so no [Q, KH*KW] bias or mask is ever
made by the caller. The backward pass rebuilds the probabilities from the logsumexp (the
recomputation of FlashAttention, arXiv 2205.14135); with all keys of a query in one tile no online
softmax is needed. The residuals are the inputs, the output and one number a query.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from trainlib.errors import ConfigError
from trainlib.model.inputs import check_array

Array = jax.Array
Bias = jax.Array | None

# A mask that is added to logits: two of them are a number that float32 and bfloat16 still hold.
MASK_BIAS = -1e30

_OUTPUT, _LOGSUMEXP = "attend_output", "attend_logsumexp"

# Wraps the body of a loop around `attend`: only outputs and logsumexps outlive an iteration, and
# the forward pass of `attend` is not run again in the backward pass, as a plain checkpoint would
# do. The loop itself keeps XLA from merging the two passes, hence prevent_cse=False.
keep_outputs = functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.save_only_these_names(_OUTPUT, _LOGSUMEXP),
)


def scaled(q: Array, scale: float | None) -> Array:
    """Queries [.., d] times `scale`, which is d**-0.5 where it is None, in their own type."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return q if scale == 1 else q * jnp.asarray(scale, q.dtype)


def check_heads(what: str, q: Array, k: Array | None, v: Array) -> None:
    """Raises InputError where queries [B, H, W, N, d], keys of the same shape (None without any)
    and values [B, H, W, N, e] of floats do not go together; `what` is the function that takes them.
    """
    check_array(f"q of {what}", q, "B H W N d", "float")
    sizes = dict(zip("BHWN", q.shape[:4], strict=True))
    if k is not None:
        check_array(f"k of {what}", k, "B H W N d", "float", **sizes, d=q.shape[4])
    check_array(f"v of {what}", v, "B H W N e", "float", **sizes)


def checked_tables(
    row: Bias, col: Bias, offsets: tuple[int, int], depths: tuple[int, int]
) -> tuple[Array, ...]:
    """The tables of relative positions of rows and columns, or none of them.

    Args:
      row: [offsets[0], depths[0]].
      col: [offsets[1], depths[1]].
      offsets: positions of a key relative to a query, of rows and of columns.
      depths: channels of a query that rows and columns contribute to.

    Raises:
      ConfigError: one table without the other, or of another shape.
    """
    if row is None and col is None:
        return ()
    if row is None or col is None:
        raise ConfigError(
            "Relative positions need a table of rows and one of columns, and one is None."
        )
    for what, table, *shape in zip(("rows", "columns"), (row, col), offsets, depths, strict=True):
        if table.shape != tuple(shape):
            raise ConfigError(
                f"The table of relative positions of {what} has the shape {table.shape}. These "
                f"queries need {tuple(shape)}, an entry for each offset of a key from a query."
            )
    return row, col


def _logits(q: Array, k: Array, bias_row: Bias, bias_col: Bias) -> Array:
    """[.., KH*KW, Q] in float32: keys before queries, so that the innermost loop of every sum over
    keys, rows or columns runs along queries, which a CPU can vectorise."""
    content = jnp.einsum("...kd,...qd->...kq", k, q, preferred_element_type=jnp.float32)
    if bias_row is None or bias_col is None:
        return content
    grid = content.reshape(*_grid(content, bias_row, bias_col))
    grid = grid + bias_row[..., :, None, :].astype(jnp.float32)
    grid = grid + bias_col[..., None, :, :].astype(jnp.float32)
    return grid.reshape(content.shape)


def _grid(x: Array, bias_row: Array, bias_col: Array) -> tuple[int, ...]:
    """Shape [.., KH, KW, Q] of x [.., KH*KW, Q]."""
    return (*x.shape[:-2], bias_row.shape[-2], bias_col.shape[-2], x.shape[-1])


def _times_keys(x: Array, p: Array) -> Array:
    """x [.., KH*KW, c], p [.., KH*KW, Q] -> [.., Q, c], their product over keys, in float32."""
    product = jnp.einsum("...kc,...kq->...cq", x, p, preferred_element_type=jnp.float32)
    # The barrier keeps the compiler from merging the transposition into the product: it would read
    # the large p against its order, which takes twice as long on a CPU.
    return jax.lax.optimization_barrier(product).swapaxes(-1, -2)


@jax.custom_vjp
def attend(
    q: Array,
    k: Array,
    v: Array,
    bias_row: Bias = None,
    bias_col: Bias = None,
    beside: Bias = None,
) -> Array:
    """Softmax attention whose logits are q.k + bias_row + bias_col.

    Args:
      q: [.., Q, d], already scaled (`scaled`).
      k: [.., KH*KW, d], keys flattened row by row (the column runs fast).
      v: [.., KH*KW, e]; e may differ from d.
      bias_row: [.., KH, Q] or None. Masks are entries of `MASK_BIAS`; every query needs one valid
        key.
      bias_col: [.., KW, Q]; None exactly when bias_row is.
      beside: f32 [.., 1, Q] or None, the logsumexp of the logits of further keys, with values of 0.

    Returns:
      [.., Q, e] in the type of v. Softmax statistics are float32 whatever the inputs are.
    """
    return _forward(q, k, v, bias_row, bias_col, beside)[0]


def _forward(q: Array, k: Array, v: Array, bias_row: Bias, bias_col: Bias, beside: Bias):
    logits = _logits(q, k, bias_row, bias_col)
    top = jnp.max(logits, axis=-2, keepdims=True)
    if beside is not None:
        top = jnp.maximum(top, beside)
    p = jnp.exp(logits - top)
    total = jnp.sum(p, axis=-2, keepdims=True)
    if beside is not None:
        total = total + jnp.exp(beside - top)
    out = _times_keys(v, p.astype(v.dtype)) / total.swapaxes(-1, -2)
    out = checkpoint_name(out.astype(v.dtype), _OUTPUT)
    logsumexp = checkpoint_name(top + jnp.log(total), _LOGSUMEXP)
    return out, (q, k, v, bias_row, bias_col, beside, out, logsumexp)


def _backward(residuals, g: Array):
    q, k, v, bias_row, bias_col, beside, out, logsumexp = residuals
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    p = jnp.exp(_logits(q, k, bias_row, bias_col) - logsumexp)
    # Sum over keys of p * dp, without the keys (FlashAttention's D): one number a query.
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)[..., None, :]
    ds = p * (einsum("...ke,...qe->...kq", v, g) - delta)
    d_row = d_col = None
    d_beside = None if beside is None else -jnp.exp(beside - logsumexp) * delta
    if bias_row is not None and bias_col is not None:
        grid = ds.reshape(*_grid(ds, bias_row, bias_col))
        d_row = jnp.sum(grid, axis=-2).astype(bias_row.dtype)
        d_col = jnp.sum(grid, axis=-3).astype(bias_col.dtype)
    ds, p = ds.astype(k.dtype), p.astype(g.dtype)
    dq = _times_keys(k, ds).astype(q.dtype)
    dk = einsum("...kq,...qd->...kd", ds, q).astype(k.dtype)
    dv = einsum("...kq,...qe->...ke", p, g).astype(v.dtype)
    return dq, dk, dv, d_row, d_col, d_beside


attend.defvjp(_forward, _backward)


def attention_weights(q: Array, k: Array, bias_row: Bias = None, bias_col: Bias = None) -> Array:
    """The probabilities [.., Q, KH*KW] themselves, materialised: for pictures only."""
    return jax.nn.softmax(_logits(q, k, bias_row, bias_col), axis=-2).swapaxes(-1, -2)
