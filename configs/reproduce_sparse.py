"""Does sparsity pay at half a million parameters? On the Brown corpus, a sparse model, a dense one
of equal FLOPs a token, and a dense one of equal parameters.

    make reproduce-sparse BROWN=DIR    # each by bytes and by SentencePiece, three seeds
    python -m launch.train --config=configs/reproduce_sparse.py:sparse --workdir=runs/sparse \
        --config.data.source=brown:DIR

Data: DIR holds the tagged Brown corpus (docs/data.md); of each genre one text in fifty is held
out, one at least. Models: the recipe of configs/st_moe_tiny.py at 2 + 2 blocks of width 64; the
last block of each stack has 8 experts and a dense layer beside them, top-2, capacity factor 1.25.
Built here, by bytes: 1,149,056 parameters. The dense models are wider: `dense_flops` (d_ff 416) has
484,352 parameters and 0.2 % fewer FLOPs, `dense_params` (d_ff 1,280) 1,147,904 parameters and 2.3
times the FLOPs. With 2,048 words instead of bytes (`sparse_pieces` and so on) each has 196,608
parameters more. One recipe for all, not tuned for any. Hardware: 2 CPU cores.

Published: ST-MoE's claim is about models a thousand times larger; there is nothing at this size.
Measured here: see docs/results.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

DENSE_FLOPS = {"routing.num_experts": 0, "model.d_ff": 416}
DENSE_PARAMS = {"routing.num_experts": 0, "model.d_ff": 1280}
PIECES = {"model.vocab_size": 2048}  # with data.vocabulary, which the command trains first
VARIANTS = {
    "sparse": {},
    "dense_flops": DENSE_FLOPS,
    "dense_params": DENSE_PARAMS,
    "sparse_pieces": PIECES,
    "dense_flops_pieces": PIECES | DENSE_FLOPS,
    "dense_params_pieces": PIECES | DENSE_PARAMS,
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: sparse, dense_flops, dense_params, and each before _pieces."""
    config = default_config()
    config.name = "reproduce_sparse"

    config.model.vocab_size = 512
    config.model.d_model = 64
    config.model.d_ff = 256  # of dense layers and of each expert
    config.model.num_heads = 4
    config.model.head_dim = 16
    config.model.encoder_blocks = 2
    config.model.decoder_blocks = 2
    config.model.activation = "geglu"
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.sparse_period = 2  # the last of every 2 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 8
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.min_capacity = 1
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.data.source = "pydoc"  # the command sets brown:DIR
    config.data.holdout = 0.02
    config.data.vocabulary = "bytes"
    config.data.objective = "span_corruption"
    config.data.noise_density = 0.15
    config.data.mean_span = 3.0
    config.data.encoder_length = 128
    config.data.decoder_length = 48
    config.data.workers = 0  # a process that imports all of this costs more than it saves

    config.batch_size = 32
    config.steps = 300
    config.optimizer.name = "adafactor"
    config.optimizer.factored_min_size = 64
    config.schedule.name = "inverse_sqrt"  # learning_rate / sqrt(max(step, plateau_steps))
    config.schedule.learning_rate = 3.0  # as st_moe_tiny
    config.schedule.plateau_steps = 10_000

    config.target = "v5e-4"
    config.eval_every = 60
    config.checkpoint.every = 60

    return pick(config, variant, VARIANTS, __file__)
