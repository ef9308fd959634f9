"""ST-MoE at 2.5 million parameters, pre-trained by span corruption on the text that is embedded.

    python -m launch.train --config=configs/st_moe_tiny.py --workdir=runs/st_moe_tiny

Data: the English prose of Python's own documentation topics, as bytes; 4 + 4 blocks, the last of
each stack with 4 experts and a dense layer beside them, top-2, capacity factor 1.25 / 2.0. Built
here: 2,494,720 parameters. Hardware: 2 CPU cores. No paper has a score at this size; the run prints
the unigram entropy of its targets, 3.55 nats, which a model that learns nothing but frequencies
reaches. Measured here: see README.md.

Variant `dense`: the same without experts, 1,707,008 parameters.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from moe.config import default_config

VARIANTS = {"dense": recipes.sets(routing__num_experts=0)}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: dense."""
    config = default_config("st_moe_tiny")
    config.target = "v5e-4"
    # At this size nothing is short of memory, and CPUs compute bfloat16 slower than float32.
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.routing.min_capacity = 1  # 4 rows for each expert would hide what is dropped
    config.data.encoder_length = 128
    config.data.decoder_length = 48
    config.batch_size = 32
    config.schedule.learning_rate = 3.0  # a small model learns faster at three times the usual rate
    config.steps = 240
    config.eval_every = 80
    config.checkpoint.every = 80
    return recipes.pick(__file__, variant, VARIANTS, config)
