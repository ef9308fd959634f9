"""What routers of whole models see: how often the layers before took a token, and words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import ConfigError


def test_a_router_sees_how_often_the_layers_before_took_a_token(small, made, quick):
    """The first router is indifferent, so that its first expert gets every token and keeps 3 of a
    sequence; the second sends the tokens that were kept to one expert and the others to the other.
    """
    routing = {"top_k": 1, "capacity_factor_eval": 0.5, "min_capacity": 1}
    config = small(2, routing, kind="encoder", encoder_blocks=2, sparse_period=1)
    with_history = small(
        2, routing, kind="encoder", encoder_blocks=2, sparse_period=1, router_history=True
    )
    abstract, params = made(with_history)
    router, table = np.zeros((2, 16, 2)), np.zeros((2, 2, 16))
    router[1, 0] = [1, -1]
    table[1, :, 0] = [-1000, 1000]  # kept by no layer, by one
    params["encoder.sparse.experts.router"] = router.astype(np.float32)
    params["encoder.sparse.experts.router_history"] = table.astype(np.float32)
    batch = {"encoder_inputs": np.ones((2, 12), np.int32)}
    batch["encoder_segments"] = np.ones((2, 12), np.int32)
    batch["encoder_segments"][1, 7:] = 0  # padding

    @quick
    def loads(params):
        _, reports = abstract.bind(params, {}).hidden(batch)
        return reports["encoder"]["sparse"]["router"].metrics["load"][0]

    np.testing.assert_array_equal(loads(params), [[12 + 7, 0], [3 + 3, 9 + 4]])
    assert set(made(config)[1]) == set(params) - {"encoder.sparse.experts.router_history"}


@pytest.mark.parametrize("seen", ["word", "both"])
def test_the_gradient_of_a_router_stops_at_the_word_embedding(small, made, quick, seen):
    """The z-loss of a router that sees words alone: without the gradient the embedding gets none of
    it. Beside the layer's input ("both") it gets that which goes through the attention.
    """
    gradients = {}
    batch = {name: np.ones((1, 5), np.int32) for name in ("decoder_inputs", "decoder_segments")}
    for flows in (True, False):
        one = {"kind": "decoder", "decoder_blocks": 1, "sparse_period": 1, "extra_ffn": "none"}
        abstract, params = made(small(**one, router_input=seen, router_input_gradient=flows))

        def z_loss(table, abstract=abstract, params=params):
            _, reports = abstract.bind(params | {"embedding.table": table}, {}).hidden(batch)
            return jnp.sum(reports["decoder"]["sparse"]["router"].losses["z"][0])

        loss, gradient = quick(jax.value_and_grad(z_loss))(params["embedding.table"])
        gradients[flows] = loss, np.asarray(gradient)
    np.testing.assert_allclose(gradients[True][0], gradients[False][0], rtol=1e-6)
    assert np.abs(gradients[True][1]).max() > 0
    assert np.abs(gradients[True][1] - gradients[False][1]).max() > 1e-3
    assert np.any(gradients[False][1]) == (seen == "both")


def test_a_gradient_that_cannot_be_stopped_is_refused(small):
    with pytest.raises(ConfigError, match=r"router_input='hidden'\. Use 'word' or 'both'"):
        small(router_input_gradient=False)
