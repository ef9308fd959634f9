"""What each policy of recomputation keeps of a real block: multiply-adds of the traced gradient, by
hand.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from moe.routing.config import capacity
from trainlib.model.flops import multiply_adds

B, ENCODER, DECODER = 2, 12, 7


def again(policy, config, length, source=0):
    """Multiply-adds of a sparse block in the backward pass beyond twice those of its forward pass:
    what was not kept, but for the last product, which nothing in the backward pass reads.
    """
    if policy in ("none", "dots"):
        return 0
    d, f, inner = config.d_model, config.d_ff, config.num_heads * config.head_dim
    tokens = B * length
    scores = 2 * tokens * (length + source) * inner
    if policy in ("minimal", "offload"):
        return scores
    attention = 4 * tokens * d * inner
    if source:
        attention += 2 * tokens * d * inner + 2 * B * source * d * inner
    routing = config.stack_routing("decoder" if source else "encoder")
    rows = routing.num_experts * B * capacity(routing, length, train=True)
    router, expert = tokens * d * routing.num_experts, rows * d * f
    full = attention + scores + router + 3 * expert + 2 * tokens * d * f
    # The last product of the experts is what comes back by an exchange.
    return full - expert if policy == "exchange" else full


@pytest.fixture(scope="module")
def counted(small, made, text):
    """(remat of the encoder, of the decoder) -> the model of one sparse block in each stack, and
    multiply-adds of the gradient of its output and all that it reports.
    """
    batch = {name: jnp.asarray(value) for name, value in text(B, ENCODER, DECODER).items()}

    @functools.cache
    def count(encoder, decoder, dispatch="index", reduce_dtype="float32"):
        blocks = {"encoder_blocks": 1, "decoder_blocks": 1, "sparse_period": 1}
        kept = {"remat": encoder, "decoder_remat": decoder, "reduce_dtype": reduce_dtype}
        config = small(4, {"dispatch": dispatch}, **blocks, **kept)
        abstract, params = made(config)

        def loss(params):
            x, reports = abstract.bind(params, {}).hidden(batch, train=True)
            return jnp.sum(jnp.square(x)) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(reports))

        return config, multiply_adds(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)

    return count


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        *(("dots", "full"), ("minimal", "exchange"), ("offload", "dots")),
        *(("exchange", "minimal"), ("full", "offload"), ("full", "")),
    ],
)
def test_a_policy_computes_again_what_it_does_not_keep(counted, encoder, decoder):
    least = counted("none", "none")[1]
    config, work = counted(encoder, decoder)
    first = again(encoder, config, ENCODER)
    assert work - least == first + again(decoder or encoder, config, DECODER, ENCODER)


@pytest.mark.thorough
def test_minimal_keeps_products_however_they_are_computed(counted):
    form = ("dropless", "bfloat16")
    config, work = counted("minimal", "minimal", *form)
    scores = again("minimal", config, ENCODER) + again("minimal", config, DECODER, ENCODER)
    assert work - counted("none", "none", *form)[1] == scores
