"""ST-MoE-32B: 269 billion parameters, 32 billion used for a token (arXiv 2202.08906).

    python -m launch.prepare --config=configs/st_moe_32b.py --config.data.vocabulary=sentencepiece:FILE
    python -m launch.train --config=configs/st_moe_32b.py --workdir=DIR (with the same overrides)

Published (tables 11, 19, section 6): 269B parameters, 64 experts in 6 + 6 of 24 + 24 blocks, top-2,
capacity factor 1.25 in training and 2.0 in evaluation, 1.5T tokens in batches of 2048 rows (1M
tokens), Adafactor; built here: 269,104,613,376 parameters. The mixture is C4 (public) and six
sources that its user must supply (`data.parts`). Hardware: 1024 TPU v4 cores in the paper; the
default mesh, 64 rows x 8 columns, is for 512 chips of v4 or v5p. Compiled ahead of time for those,
never run: no score of ours stands here. Its fine-tuned scores are those of table 12.

Variants: `c4` reads only C4; `v5p_1024` is a mesh of 64 x 16, `v6e_256` one of 64 x 4.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common
from moe.config import default_config

TOKENS = 1_500_000_000_000


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: c4, v5p_1024, v6e_256."""
    config = default_config("st_moe_32b")
    common.st_moe(config, TOKENS)
    config.data.source = "mixture:st_moe_32b"
    config.routing.group_sequences = 4
    config.mesh.data, config.mesh.model = 64, 8
    config.published.params = "269B"
    config.published.source = "arXiv 2202.08906 table 11"
    variants = {"c4": _c4, "v5p_1024": _v5p_1024, "v6e_256": _v6e_256}
    return common.pick(__file__, variant, variants, config)


def _c4(config: ConfigDict) -> None:
    config.data.source = "c4"


def _v5p_1024(config: ConfigDict) -> None:
    config.mesh.model = 16
    config.routing.group_sequences = 2  # 2048 rows on 1024 chips


def _v6e_256(config: ConfigDict) -> None:
    config.mesh.model = 4
