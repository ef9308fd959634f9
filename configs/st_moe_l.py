"""ST-MoE-L: 4.1 billion parameters, 32 experts in every fourth block, FLOPs of Dense-L (arXiv
2202.08906).

    python -m launch.prepare --config=configs/st_moe_l.py [--config.data.vocabulary=...]
    python -m launch.train --config=configs/st_moe_l.py --workdir=DIR [the same overrides]

Published (tables 8 and 11): 4.1B parameters; negative log perplexity -1.369 on C4 after 100k steps
  of 1M tokens (dense: -1.474).
Built here: 4,105,444,352 parameters.
Hardware: 32 devices on the data axis and any number on the model axis, for example TPU v4 or v5p
  4x4x2.
Never run with this code: no score of ours stands here.

Variants: `dense` is Dense-L, 783,150,080 parameters; `long` trains 500k steps as for fine-tuning;
`mc4` is the baseline of the paper's stability study (section 3, tables 2 to 4): FLOPs of T5-XL, mC4
with its vocabulary, 20k steps, no router z-loss. Its languages and their rates are those of mT5
(arXiv 2010.11934), which registers them with seqio as the Mixture mc4: a file of one line, `import
multilingual_t5.tasks`, is what `python -m launch.prepare --config=configs/st_moe_l.py:mc4
--tasks=FILE.py` takes. `lm_adapt` goes on from a run of the plain one or of `long`, which
--config.init_from names, as a prefix language model; `ul2` pre-trains with the seven
denoisers of UL2 (arXiv 2205.05131).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

VARIANTS = {
    "dense": {
        "routing.num_experts": 0,
        "published.params": "0.8B",
        "published.neg_log_perplexity": -1.474,
    },
    "long": {"steps": 500_000, "published.neg_log_perplexity": 0.0},
    "mc4": {
        "model.vocab_size": 250_112,
        "model.d_model": 2048,
        "model.d_ff": 5120,
        "model.num_heads": 32,
        "routing.z_loss_weight": 0.0,
        "data.source": "seqio:mc4",
        "data.vocabulary": "sentencepiece:mc4.250000.100extra/sentencepiece.model",
        "steps": 20_000,
        "published.params": "",
        "published.neg_log_perplexity": -1.755,
        "published.source": "arXiv 2202.08906 table 2",
    },
    # LM adaptation as of T5 (arXiv 2104.08691, section 3.1): 100k more steps, 512 tokens on both
    # sides. The inverse square root of T5's steps 1.0M to 1.1M is 1.00e-3 to 0.95e-3.
    "lm_adapt": {
        "init_from": "CHECKPOINT",  # its user names it
        "data.objective": "prefix_lm",
        "data.decoder_length": 512,
        "steps": 100_000,
        "seed": 1,
        "schedule.name": "constant",
        "schedule.learning_rate": 1e-3,
        "published.neg_log_perplexity": 0.0,
    },
    "ul2": {
        "data.objective": "ul2",
        "data.decoder_length": 512,
        "published.neg_log_perplexity": 0.0,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: dense, long, mc4, lm_adapt, ul2."""
    config = default_config()
    config.name = "st_moe_l"
    config.published.params = "4.1B"
    config.published.neg_log_perplexity = -1.369
    config.published.source = "arXiv 2202.08906 tables 8, 11"

    config.model.vocab_size = 32128
    config.model.d_model = 1024
    config.model.d_ff = 2816  # of dense layers and of each expert
    config.model.num_heads = 16
    config.model.head_dim = 64
    config.model.encoder_blocks = 24
    config.model.decoder_blocks = 24
    config.model.activation = "geglu"
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 32
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.group_sequences = 4  # tokens compete within groups of 4 sequences
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.data.source = "c4"
    config.data.vocabulary = "sentencepiece:cc_all.32000.model"  # its user supplies it
    config.data.objective = "span_corruption"
    config.data.noise_density = 0.15
    config.data.mean_span = 3.0
    config.data.encoder_length = 512
    config.data.decoder_length = 114

    config.batch_size = 2048  # 2^20 tokens of the encoder
    config.steps = 100_000
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"  # learning_rate / sqrt(max(step, plateau_steps))
    config.schedule.learning_rate = 1.0
    config.schedule.plateau_steps = 10_000

    config.target = "v5p-64"  # 32 chips, an expert each
    config.log_every = 100
    config.eval_every = 5_000
    config.eval_batches = 16
    config.checkpoint.every = 1_000

    return pick(config, variant, VARIANTS, __file__)
