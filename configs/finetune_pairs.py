"""Your own task, from a file of inputs and targets: JSON lines, CSV, TSV or Parquet.

    python -m launch.train --config=configs/finetune_pairs.py --workdir=runs/mine \\
        --config.data.train=train.jsonl [--config.data.validation=validation.jsonl]
    python -m launch.evaluate --workdir=runs/mine --step=best [--write_predictions=DIR]
    python -m launch.predict --workdir=runs/mine --input=questions.jsonl --output=answers.jsonl

Rows are {"inputs": "..", "targets": ".."}, optionally with "choices" and "task"; see
docs/finetuning.md. Without a validation file a tenth of the rows is held out. The checkpoint with
the best mean score is kept.
Model: from nothing 2,494,720 parameters, those of configs/st_moe_tiny.py, which read bytes. With
--config.init_from=DIR, a run or an import, the model and the vocabulary are those of DIR.
Recipe: AdamW with a cosine; assumed, no paper has one for this size.
Hardware: a laptop, for the model from nothing. Measured here: docs/results.md (mails).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import Variants, pick
from moe.config import default_config

VARIANTS: Variants = {}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; it has no variants."""
    config = default_config()
    config.name = "finetune_pairs"

    config.model.vocab_size = 512
    config.model.d_model = 128
    config.model.d_ff = 256  # of dense layers and of each expert
    config.model.num_heads = 4
    config.model.head_dim = 32
    config.model.encoder_blocks = 4
    config.model.decoder_blocks = 4
    config.model.activation = "geglu"
    config.model.dropout = 0.1
    config.model.expert_dropout = 0.1
    config.model.dtype = "float32"  # of a small model on a CPU; set bfloat16 on a chip
    config.model.remat = "none"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 4
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.min_capacity = 1
    # Groups of one sequence: what is measured of an example does not depend on its neighbours.
    config.routing.group_sequences = 1
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.task = "finetune"
    config.finetune.as_init_from = True  # the model and the vocabulary, where there is one
    config.finetune.keep_slots = False  # another optimiser, or none of an import
    config.data.source = "pairs:*"
    config.data.holdout = 0.1  # where data.validation is not set
    config.data.vocabulary = "bytes"
    config.data.encoder_length = 512
    config.data.decoder_length = 64

    config.batch_size = 32
    config.steps = 600
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1e-3
    config.schedule.warmup_steps = 50

    config.log_every = 10
    config.eval_every = 100
    config.checkpoint.every = 100
    config.checkpoint.best = "score/mean"

    return pick(config, variant, VARIANTS, __file__)
