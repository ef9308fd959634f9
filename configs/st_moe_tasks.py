"""ST-MoE fine-tuned on the paper's other tasks, one variant each (arXiv 2202.08906, table 10).

    python -m launch.train --config=configs/st_moe_tasks.py:sample --workdir=runs/tasks
    python -m launch.train --config=configs/st_moe_tasks.py:squad_v2 --workdir=DIR \\
        --config.init_from=CHECKPOINT --config.data.dir=DIR
    python -m launch.evaluate --workdir=DIR

Published for ST-MoE-L: SQuAD v2 F1 94.5, XSum ROUGE-2 21.8, CNN-DailyMail ROUGE-2 20.7, TriviaQA
33.8, Natural Questions 29.5, WebQuestions 33.2 (closed book), ARC Easy 75.4 and Challenge 56.9,
Winogrande XL 81.7, ANLI R3 57.3. Grammar 22.2 to 22.9 exact matches (table 7), of data that the
paper does not name: `bea2019`, and `c4_200m`, which trains on both, are the public ones.
Recipe: as configs/st_moe_superglue.py; summaries by beams of 4 with length penalty 0.6, as T5.
Hardware: as configs/st_moe_l.py.
Never run with this code: no score of ours stands here.

Variant `sample`: all of these tasks from the few examples that come with this package; no
benchmark. The plain configuration is `squad_v2`.
"""

from __future__ import annotations

from typing import Any

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
    "data.source": "sample:squad,closed_book,arc,winogrande,anli,summaries,grammar",
    "data.vocabulary": "bytes",
    "data.encoder_length": 256,
    "data.decoder_length": 96,  # summaries are longer than labels
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


def _task(name: str, score: float) -> dict[str, Any]:
    """One task and the published score of ST-MoE-L; 0 where there is none."""
    return {"data.source": f"task:{name}", "published.score": score}


# Beams as in T5; only the first examples of a split are scored while training.
SUMMARY = {
    "data.encoder_length": 2048,
    "data.decoder_length": 512,
    "decoding.method": "beam",
    "decoding.num_beams": 4,
    "decoding.alpha": 0.6,  # length penalty
    "decoding.max_length": 256,
    "evaluation.limit": 1024,
}
# A corrected sentence is as long as the sentence.
SENTENCES = {
    "data.encoder_length": 128,
    "data.decoder_length": 128,
    "decoding.method": "beam",
    "decoding.num_beams": 4,
    "decoding.max_length": 128,
    "evaluation.limit": 1024,
}
VARIANTS = {
    "sample": SAMPLE,
    "squad_v1": _task("squad_v1", 0.0),
    "squad_v2": _task("squad_v2", 94.5),
    "trivia_qa": _task("trivia_qa", 33.8),
    "natural_questions": _task("natural_questions", 29.5),
    "web_questions": _task("web_questions", 33.2),
    "arc_easy": _task("arc_easy", 75.4),
    "arc_challenge": _task("arc_challenge", 56.9),
    "winogrande": _task("winogrande", 81.7),
    "anli": _task("anli", 57.3),
    "xsum": _task("xsum", 21.8) | SUMMARY,
    "cnn_dailymail": _task("cnn_dailymail", 20.7) | SUMMARY,
    "bea2019": _task("bea2019", 0.0) | SENTENCES,
    "c4_200m": _task("c4_200m,bea2019", 0.0) | SENTENCES,
}


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; variants: sample, and one for each task."""
    config = default_config()
    config.name = "st_moe_tasks"
    config.published.score = 94.5
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
    config.data.source = "task:squad_v2"
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
