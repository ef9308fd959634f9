"""ST-MoE-32B: 269 billion parameters, 32 billion used for a token (arXiv 2202.08906).

    python -m launch.prepare --config=configs/st_moe_32b.py [--config.data.vocabulary=...]
    python -m launch.train --config=configs/st_moe_32b.py --workdir=DIR [the same overrides]

Published (tables 11, 19, section 6): 269B parameters, 64 experts in 6 + 6 of 24 + 24 blocks, 1.5T
  tokens of a mixture of C4, which is public, and six sources that its user must supply
  (`data.parts`). Its fine-tuned scores are those of table 12.
Built here: 269,104,613,376 parameters.
Hardware: TPU v4-1024 in the paper, 512 chips of two cores. Its mesh of 64 x 16 cores, one expert on
  each of 64, is 64 x 8 chips here, where a chip is one device.
Never run: no score of ours stands here. `python -m launch.compile --config=configs/st_moe_32b.py`
  compiles the step for that pod on a laptop.

Variants: `c4` reads only C4; `v5p_1024` is the same mesh on 512 chips of v5p, `v5p_2048` one of 64
x 16 on 1024 chips (groups of 2 sequences, because a chip has no more), `v6e_256` one of 64 x 4.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

VARIANTS = {
    "c4": {"data.source": "c4"},
    "v5p_1024": {"target": "v5p-1024"},
    "v5p_2048": {"target": "v5p-2048", "mesh.model": 16, "routing.group_sequences": 2},
    "v6e_256": {"target": "v6e-256", "mesh.model": 4},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: c4, v5p_1024, v5p_2048, v6e_256."""
    config = default_config()
    config.name = "st_moe_32b"
    config.published.params = "269B"
    config.published.source = "arXiv 2202.08906 table 11"

    config.model.vocab_size = 32128
    config.model.d_model = 5120
    config.model.d_ff = 20480  # of dense layers and of each expert
    config.model.num_heads = 64
    config.model.head_dim = 128
    config.model.encoder_blocks = 24
    config.model.decoder_blocks = 24
    config.model.activation = "geglu"
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 64
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.group_sequences = 4  # tokens compete within groups of 4 sequences
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.data.source = "mixture:st_moe_32b"
    config.data.vocabulary = "sentencepiece:cc_all.32000.model"  # its user supplies it
    config.data.objective = "span_corruption"
    config.data.noise_density = 0.15
    config.data.mean_span = 3.0
    config.data.encoder_length = 512
    config.data.decoder_length = 114

    config.batch_size = 2048  # 2^20 tokens of the encoder
    config.steps = 1_500_000_000_000 // (config.batch_size * config.data.encoder_length)
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"  # learning_rate / sqrt(max(step, plateau_steps))
    config.schedule.learning_rate = 1.0
    config.schedule.plateau_steps = 10_000

    config.target = "v4-1024"
    config.mesh.data = 64  # an expert each
    config.mesh.model = 8
    config.log_every = 100
    config.router.log_every = 100  # of 768 experts; a sample takes the host some 100 ms
    config.router.dead_after = 1_000
    config.eval_every = 5_000
    config.eval_batches = 16
    config.checkpoint.every = 1_000

    return pick(config, variant, VARIANTS, __file__)
