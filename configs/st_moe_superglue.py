"""ST-MoE fine-tuned on SuperGLUE: all tasks in one mixture (arXiv 2202.08906, section 4).

    python -m launch.train --config=configs/st_moe_superglue.py:sample --workdir=runs/superglue
    python -m launch.train --config=configs/st_moe_superglue.py --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.dir=DIR [--config.data.vocabulary=...]
    python -m launch.evaluate --workdir=DIR [--write_predictions=DIR]

Published (table 10, dev): ST-MoE-L 87.4, Dense-L 85.1. Each task is sampled by its size, capped at
65,536 examples; constant rate 1e-3 after 1,000 steps of warm-up; dropout 0.1; auxiliary losses and
optimiser slots kept; capacity factor 1.25 / 2.0. Expert dropout, steps and lengths are not
published: 0.2, 20k and 512 + 114 are assumed. Hardware: as configs/st_moe_l.py. Not run with this
code: no score of ours stands here.

Variants: `sample` is a model of 444,032 parameters on the few examples that come with this
package, scored on what it was trained on: a check that everything fits together and no benchmark.
Measured here: 100 in every task after 800 steps, 6 CPU minutes (README.md). `dense`; the subsets
`non_moe`, `moe`, `attention`, `ffn` (figure 5); `no_aux` (table 5); `sentinels` (table 7).
`--config.sweep=grid` prints the 18 settings of table 20, and `--config.sweep=N` trains one of them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import recipes
from moe.config import default_config, finetuning_recipe, sample_recipe

VARIANTS = {
    "sample": sample_recipe("superglue"),
    "dense": recipes.sets(routing__num_experts=0, published__score=85.1),
    **{name: recipes.sets(finetune__train=name) for name in ("non_moe", "moe", "attention", "ffn")},
    "no_aux": recipes.sets(routing__balance_loss_weight=0.0, published__score=85.8),
    "sentinels": recipes.sets(data__sentinels=1, published__score=0.0),
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: sample, dense, no_aux, sentinels, and subsets of weights."""
    config = finetuning_recipe(default_config("st_moe_l"), "superglue")
    config.name = "st_moe_superglue"
    config.published.score = 87.4
    config.published.source = "arXiv 2202.08906 table 10"
    return recipes.pick(__file__, variant, VARIANTS, config)
