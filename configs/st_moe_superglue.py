"""ST-MoE fine-tuned on SuperGLUE: all tasks in one mixture (arXiv 2202.08906, section 4).

    python -m launch.train --config=configs/st_moe_superglue.py:sample --workdir=runs/superglue
    python -m launch.train --config=configs/st_moe_superglue.py --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.dir=DIR [--config.data.vocabulary=...]
    python -m launch.evaluate --workdir=DIR [--write_predictions=DIR]

Published (table 10, dev): ST-MoE-L 87.4, Dense-L 85.1.
Recipe: section 4, written out below; what is not published is marked as assumed. Each task is
  sampled by its size, capped at 65,536 examples. Auxiliary losses stay, and the slots of the
  optimiser are read with the weights.
Hardware: as configs/st_moe_l.py.
Never run with this code: no score of ours stands here.

Variants: `sample` is a model of 444,032 parameters on the few examples that come with this
package, scored on what it was trained on: a check that everything fits together and no benchmark.
Measured here: 100 in every task after 800 steps, 6 CPU minutes (docs/results.md). `dense`; the
subsets `non_moe`, `moe`, `attention`, `ffn` (figure 5); `no_aux` (table 5); `sentinels` (table 7).
`--config.sweep=grid` prints the 18 settings of table 20, and `--config.sweep=N` trains one of them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

# A small model on the examples that come with this package. From scratch it overfits them sooner
# with the usual scale of weights and without noise, and is scored on what it was trained on: the
# few held-out examples would measure nothing.
SAMPLE = {
    "model.vocab_size": 384,
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.num_heads": 4,
    "model.head_dim": 16,
    "model.encoder_blocks": 2,
    "model.decoder_blocks": 2,
    "model.sparse_period": 2,
    "model.init_scale": 1.0,
    "model.dropout": 0.0,
    "model.expert_dropout": 0.0,
    "model.dtype": "float32",
    "model.remat": "none",
    "routing.num_experts": 4,
    "routing.capacity_factor": 2.0,
    "routing.min_capacity": 1,
    "routing.second_policy": "all",
    "data.source": "sample:superglue",
    "data.vocabulary": "bytes",
    "data.encoder_length": 256,
    "data.decoder_length": 48,
    "data.workers": 0,
    "evaluation.split": "train",
    "batch_size": 16,
    "steps": 800,
    "optimizer.name": "adamw",
    "schedule.name": "cosine",
    "schedule.learning_rate": 3e-3,
    "schedule.warmup_steps": 20,
    "log_every": 1,
    "eval_every": 400,
    "eval_batch_size": 32,
    "checkpoint.every": 400,
    "published.score": 0.0,
    "published.source": "",
}

VARIANTS = {
    "sample": SAMPLE,
    "dense": {"routing.num_experts": 0, "published.score": 85.1},
    "non_moe": {"finetune.train": "non_moe"},
    "moe": {"finetune.train": "moe"},
    "attention": {"finetune.train": "attention"},
    "ffn": {"finetune.train": "ffn"},
    "no_aux": {"routing.balance_loss_weight": 0.0, "published.score": 85.8},
    "sentinels": {"data.sentinels": 1, "published.score": 0.0},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: sample, dense, no_aux, sentinels, and subsets of weights."""
    config = default_config()
    config.name = "st_moe_superglue"
    config.published.score = 87.4
    config.published.source = "arXiv 2202.08906 table 10"

    config.model.vocab_size = 32128
    config.model.d_model = 1024
    config.model.d_ff = 2816  # of dense layers and of each expert
    config.model.num_heads = 16
    config.model.head_dim = 64
    config.model.encoder_blocks = 24
    config.model.decoder_blocks = 24
    config.model.activation = "geglu"
    config.model.dropout = 0.1
    config.model.expert_dropout = 0.2  # assumed
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 32
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    # Groups of one sequence: what is measured of an example does not depend on its neighbours.
    config.routing.group_sequences = 1
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.task = "finetune"
    config.finetune.keep_slots = True  # of the optimiser, read with the weights
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

    config.log_every = 50
    config.eval_every = 1_000
    config.checkpoint.every = 1_000

    return pick(config, variant, VARIANTS, __file__)
