"""ST-MoE-32B fine-tuned on SuperGLUE without the pod that trained it: experts frozen, in int8.

    python -m launch.train --config=configs/st_moe_32b_finetune.py --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.dir=DIR [--config.data.vocabulary=...]

Published (table 12, test server): 91.2 with all 269B parameters learning, on a pod of the size that
  trained them. Figure 5: of ST-MoE-L, fine-tuning all weights but the experts loses nothing.
Recipe: section 4, written out below; what is not published is marked as assumed. Experts and their
  routers do not learn (`finetune.train=non_moe`), and experts are read into int8 with a float32
  scale for each output channel.
Hardware: 64 chips of TPU v5e, an expert of each sparse block on every chip.
Never run: no score of ours stands here. `python -m launch.compile` with this configuration compiles
  the step for its 64 chips on a laptop: 15.1 of 17.2 GB at the compiler's peak, 7.07 s predicted.

Variants: `v6e_32` is for 32 chips of v6e with two experts on each; not compiled to its end yet.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

VARIANTS = {
    "v6e_32": {"target": "v6e-32", "mesh.data": 32},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: v6e_32."""
    config = default_config()
    config.name = "st_moe_32b_finetune"
    config.published.params = "269B"
    config.published.score = 91.2
    config.published.source = "arXiv 2202.08906 table 12"

    config.model.vocab_size = 32128
    config.model.d_model = 5120
    config.model.d_ff = 20480  # of dense layers and of each expert
    config.model.num_heads = 64
    config.model.head_dim = 128
    config.model.encoder_blocks = 24
    config.model.decoder_blocks = 24
    config.model.activation = "geglu"
    config.model.dropout = 0.1
    config.model.expert_dropout = 0.0  # experts do not learn here; none is published for the 32B
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 64
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    # Groups of one sequence: what is measured of an example does not depend on its neighbours.
    config.routing.group_sequences = 1
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.task = "finetune"
    config.finetune.train = "non_moe"  # neither experts nor their routers
    config.finetune.frozen_dtype = "int8"
    config.finetune.keep_slots = True  # of the optimiser, read with the weights that learn
    config.data.source = "task:superglue"
    config.data.vocabulary = "sentencepiece:cc_all.32000.model"  # its user supplies it
    config.data.encoder_length = 512  # assumed
    config.data.decoder_length = 114  # assumed

    config.batch_size = 512  # 2^18 tokens of the encoder
    config.steps = 20_000  # assumed
    config.optimizer.name = "adafactor"
    config.schedule.name = "constant"
    config.schedule.learning_rate = 1e-3
    config.schedule.warmup_steps = 1_000  # linear

    config.target = "v5e-64"
    config.mesh.data = 64  # an expert each
    config.log_every = 50
    config.eval_every = 1_000
    config.checkpoint.every = 1_000

    return pick(config, variant, VARIANTS, __file__)
