"""ST-MoE at 2.5 million parameters, pre-trained by span corruption on the text that is embedded.

    python -m launch.train --config=configs/st_moe_tiny.py --workdir=runs/st_moe_tiny

Data: the English prose of Python's own documentation topics, as bytes; 4 + 4 blocks, the last of
each stack with 4 experts and a dense layer beside them, top-2, capacity factor 1.25 / 2.0. Built
here: 2,494,720 parameters. Hardware: 2 CPU cores. No paper has a score at this size; the run prints
the unigram entropy of its targets, 3.55 nats, which a model that learns nothing but frequencies
reaches. Measured here: see docs/results.md.

Variant `dense`: the same without experts, 1,707,008 parameters. Variant `lm_adapt` goes on from a
run of the plain one, which --config.init_from names, as a prefix language model; `ul2` pre-trains
with the seven denoisers of UL2 (arXiv 2205.05131). Variant `deepseek`: experts and
router after DeepSeek-V3 (arXiv 2412.19437), each of the four experts cut into four and one of the
two choices made a shared expert, 2,694,400 parameters; see docs/router_options.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common.variants import pick
from moe.config import default_config

VARIANTS = {
    "dense": {"routing.num_experts": 0},
    # LM adaptation (arXiv 2104.08691, section 3.1), a tenth of pre-training as there: T5 went on
    # for 100k steps after 1M. The rate is the one that pre-training ended with.
    "lm_adapt": {
        "init_from": "CHECKPOINT",  # its user names it
        "data.objective": "prefix_lm",
        "data.decoder_length": 128,
        "steps": 24,
        "seed": 1,
        "eval_every": 24,
        "checkpoint.every": 24,
    },
    "ul2": {"data.objective": "ul2", "data.decoder_length": 128},
    "deepseek": {
        "model.expert_d_ff": 64,
        "model.shared_experts": 4,
        "routing.num_experts": 16,
        "routing.top_k": 4,
        "routing.capacity_factor": 5.0,
        "routing.capacity_factor_eval": 8.0,
        "routing.second_policy": "all",
        "routing.scores": "sigmoid",
        "routing.gate_scale": 2.5,
        "routing.balance_bias": True,
        "routing.bias_update_rate": 0.01,  # ten times the usual, for a run of some hundred steps
        "routing.expert_groups": 4,
        "routing.groups_per_token": 2,
        "routing.balance_over": "sequence",
        "routing.balance_choices": "all",
        "routing.balance_loss_weight": 1e-4,
        "routing.z_loss_weight": 0.0,
    },
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: dense, lm_adapt, ul2, deepseek."""
    config = default_config()
    config.name = "st_moe_tiny"

    config.model.vocab_size = 512
    config.model.d_model = 128
    config.model.d_ff = 256  # of dense layers and of each expert
    config.model.num_heads = 4
    config.model.head_dim = 32
    config.model.encoder_blocks = 4
    config.model.decoder_blocks = 4
    config.model.activation = "geglu"
    config.model.dropout = 0.0
    # At this size nothing is short of memory, and CPUs compute bfloat16 slower than float32.
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.sparse_period = 4  # the last of every 4 blocks has experts
    config.model.extra_ffn = "after"  # and a dense layer after them
    config.routing.num_experts = 4
    config.routing.top_k = 2
    config.routing.capacity_factor = 1.25
    config.routing.capacity_factor_eval = 2.0
    config.routing.min_capacity = 1  # the default of 4 would hide what is dropped
    config.routing.balance_loss_weight = 0.01
    config.routing.z_loss_weight = 1e-3
    config.objective.z_loss = 1e-4

    config.data.source = "pydoc"
    config.data.vocabulary = "bytes"
    config.data.objective = "span_corruption"
    config.data.noise_density = 0.15
    config.data.mean_span = 3.0
    config.data.encoder_length = 128
    config.data.decoder_length = 48

    config.batch_size = 32
    config.steps = 240
    config.optimizer.name = "adafactor"
    config.schedule.name = "inverse_sqrt"  # learning_rate / sqrt(max(step, plateau_steps))
    config.schedule.learning_rate = 3.0  # a small model learns faster at three times the usual rate
    config.schedule.plateau_steps = 10_000

    config.target = "v5e-4"
    config.eval_every = 80
    config.checkpoint.every = 80

    return pick(config, variant, VARIANTS, __file__)
