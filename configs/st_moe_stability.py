"""What keeps a small sparse model stable: the interventions of ST-MoE's tables 2 to 4, one each.

    make reproduce-stability
    python -m launch.train --config=configs/st_moe_stability.py:z_loss --workdir=runs/z_loss

The paper trains a model of T5-XL's FLOPs (3B) with 32 experts for 20k steps; of its runs the
baseline was stable in 4 of 6, every intervention in 3 of 3. This is a model of 0.6 million
parameters with 4 experts on the embedded text, at five times the usual learning rate, because a
model this small is stable at the usual one. It is stable at this one too: `make
reproduce-stability` trains a deeper one at four times this rate, whose baseline fails with half of
its seeds. Hardware: 2 CPU cores. Measured here: see docs/results.md.

Variants: `z_loss` adds the router z-loss (1e-3), `jitter` input jitter of 1e-2, `dropout` a rate of
0.1, `clip` an update clip of 0.1, `relu` two matrices instead of GEGLU at equal parameters,
`no_scale` norms without a learned scale. The plain configuration is the baseline, without z-loss.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

VARIANTS = {
    "z_loss": {"routing.z_loss_weight": 1e-3},
    "jitter": {"routing.jitter": 0.01},
    "dropout": {"model.dropout": 0.1},
    "clip": {"optimizer.update_clip": 0.1},
    "relu": {"model.activation": "relu", "model.d_ff": 192},
    "no_scale": {"model.norm_scale": False},
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: z_loss, jitter, dropout, clip, relu, no_scale."""
    config = default_config()
    config.name = "st_moe_stability"

    config.model.vocab_size = 512
    config.model.d_model = 64
    config.model.d_ff = 128  # of dense layers and of each expert
    config.model.num_heads = 4
    config.model.head_dim = 16
    config.model.encoder_blocks = 4
    config.model.decoder_blocks = 4
    config.model.activation = "geglu"
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 4
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.min_capacity = 1
    config.routing.jitter = 0.0
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 0.0
    config.objective.z_loss = 1e-4

    config.data.source = "pydoc"
    config.data.vocabulary = "bytes"
    config.data.objective = "span_corruption"
    config.data.noise_density = 0.15
    config.data.mean_span = 3.0
    config.data.encoder_length = 64
    config.data.decoder_length = 32

    config.batch_size = 32
    config.steps = 300
    config.max_skipped_steps = 300  # a run that diverges is a result here
    config.optimizer.name = "adafactor"
    config.optimizer.factored_min_size = 64
    config.optimizer.update_clip = 1.0
    config.schedule.name = "inverse_sqrt"  # learning_rate / sqrt(max(step, plateau_steps))
    config.schedule.learning_rate = 5.0  # five times the usual rate
    config.schedule.plateau_steps = 10_000

    config.target = "v5e-4"
    config.eval_every = 50
    config.checkpoint.every = 300

    return pick(config, variant, VARIANTS, __file__)
