"""One T5 v1.1 with random weights twice: of `transformers`, and converted to ours by `moe.interop`.

Letters: B sequences, K tokens of the encoder, C candidates, L tokens of a candidate.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

SMALL = {  # google/t5-v1_1-small
    **{"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6},
    **{"num_layers": 8, "num_decoder_layers": 8},
}
TINY = {
    **{"vocab_size": 96, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2},
    **{"num_layers": 2, "num_decoder_layers": 2},
}
_FIXED = {
    **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    **{"decoder_start_token_id": 0},
}
_NEVER = 0, 1  # padding and EOS: answers are as long as they may be


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same model on both sides.

    Attributes:
      theirs: T5ForConditionalGeneration in float32, ready for inference.
      config: of ours, as `moe.interop` made it.
      params: the weights of ours.
      ours: the module.
    """

    theirs: Any
    config: ConfigDict
    params: dict[str, jax.Array]
    ours: Any

    def generate(self, words: np.ndarray, length: int, **options: Any) -> np.ndarray:
        """int [B, length] words of `generate` of `transformers` for words int32 [B, K]."""
        import torch

        with torch.inference_mode():
            ids = torch.from_numpy(words).long()
            found = self.theirs.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                do_sample=False,
                **options,
            )
        return found[:, 1:].numpy()

    def scores(self, words: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float32 [B, C]: log-probabilities by `transformers` of candidates int32 [B, C, L], all of
        L words; one pass of the encoder serves the candidates of an input.
        """
        import torch

        batch, count, length = candidates.shape
        with torch.inference_mode():
            ids = torch.from_numpy(words).long()
            encoded = self.theirs.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
            targets = torch.from_numpy(candidates).long().reshape(-1, length)
            logits = self.theirs(
                encoder_outputs=(encoded.last_hidden_state.repeat_interleave(count, 0),),
                attention_mask=torch.ones_like(ids).repeat_interleave(count, 0),
                decoder_input_ids=torch.nn.functional.pad(targets[:, :-1], (1, 0)),
                use_cache=False,
            ).logits
            chosen = logits.gather(-1, targets[..., None])[..., 0]
            return (chosen - logits.logsumexp(-1)).sum(-1).reshape(batch, count).numpy()


def pair(sizes: dict[str, int], seed: int = 0) -> Pair:
    """Makes both; torch and `transformers` must be there.

    Args:
      sizes: `SMALL` or `TINY`, or fields of `transformers.T5Config`.
      seed: of the weights.
    """
    import torch

    from benchmarks.harness import torch_vision

    torch_vision.prepare()
    import transformers

    from moe import interop
    from moe.models.transformer import Transformer
    from trainlib.formats import layout as interchange

    torch.set_num_threads(1)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **_FIXED))
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in sorted(theirs.named_parameters()):
            scale = value.shape[-1] ** -0.5 if value.ndim > 1 else 1.0
            if name.endswith(".q.weight"):  # as T5 begins; sharper attention would amplify rounding
                scale *= sizes["d_kv"] ** -0.5
            value.copy_(torch.from_numpy(scale * random.standard_normal(value.shape, np.float32)))
        theirs.lm_head.weight[list(_NEVER)] = 0
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        foreign = interop.open_foreign("hf", Path(folder))
        abstract = interop.abstract(foreign.config)
        entries = interop.layout(foreign.config, foreign.kind, foreign.names).by_leaf()
        there = {name: value.numpy() for name, value in theirs.state_dict().items()}
        params = {
            leaf: jnp.asarray(
                interchange.take(entries[leaf], spec, foreign.shapes, there.__getitem__)
            )
            for leaf, spec in abstract.params.items()
        }
    config = foreign.config
    config.model.dtype, config.model.remat = "float32", "none"
    ours = interop.abstract(config).bind(params, {})
    assert isinstance(ours, Transformer)
    return Pair(theirs.eval(), config, params, ours)


def inputs(sizes: dict[str, int], batch: int, length: int, seed: int = 1) -> np.ndarray:
    """Random words int32 [B, K] without padding."""
    random = np.random.default_rng(seed)
    return random.integers(2, sizes["vocab_size"], (batch, length), dtype=np.int32)
