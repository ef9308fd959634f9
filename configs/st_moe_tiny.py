"""ST-MoE at 2.5 million parameters, pre-trained by span corruption on embedded English text.

python -m launch.train --config=configs/st_moe_tiny.py --workdir=runs/st_moe_tiny
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from moe.config import default_config


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: dense (the same model without experts)."""
    config = default_config("st_moe_tiny")
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.encoder_length = 128
    config.data.decoder_length = 48
    config.batch_size = 32
    config.steps = 600
    config.eval_every = 200
    config.checkpoint.every = 200
    config.routing.min_capacity = 1
    return common.pick(__file__, variant, {}, config)
