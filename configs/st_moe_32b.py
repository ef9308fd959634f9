"""ST-MoE-32B: 269 billion parameters, 32 billion used for a token (arXiv 2202.08906).

    python -m launch.prepare --config=configs/st_moe_32b.py [--config.data.vocabulary=...]
    python -m launch.train --config=configs/st_moe_32b.py --workdir=DIR [the same overrides]

Published (tables 11, 19, section 6): 269B parameters, 64 experts in 6 + 6 of 24 + 24 blocks, top-2,
capacity factor 1.25 in training and 2.0 in evaluation, 1.5T tokens in batches of 2048 rows (1M
tokens), Adafactor; built here: 269,104,613,376 parameters. The mixture is C4 (public) and six
sources that its user must supply (`data.parts`). Hardware: TPU v4-1024 in the paper, 512 chips of
two cores; its mesh of 64 x 16 cores, one expert a row, is 64 x 8 chips here, where a chip is one
device. `python -m launch.compile --config=configs/st_moe_32b.py` compiles the step for it on a
laptop. Never run: no score of ours stands here. Its fine-tuned scores are those of table 12.

Variants: `c4` reads only C4; `v5p_1024` is the same mesh on 512 chips of v5p, `v5p_2048` one of 64
x 16 on 1024 chips (groups of 2 rows, because a chip has no more), `v6e_256` one of 64 x 4.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from moe.config import default_config, published_recipe

VARIANTS = {
    "c4": recipes.sets(data__source="c4"),
    "v5p_1024": recipes.sets(target="v5p-1024"),
    "v5p_2048": recipes.sets(target="v5p-2048", mesh__model=16, routing__group_sequences=2),
    "v6e_256": recipes.sets(target="v6e-256", mesh__model=4),
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: c4, v5p_1024, v5p_2048, v6e_256."""
    config = published_recipe(default_config("st_moe_32b"), tokens=1_500_000_000_000)
    config.data.source = "mixture:st_moe_32b"
    config.routing.group_sequences = 4
    config.target = "v4-1024"
    config.mesh.data, config.mesh.model = 64, 8
    config.published.params = "269B"
    config.published.source = "arXiv 2202.08906 table 11"
    return recipes.pick(__file__, variant, VARIANTS, config)
