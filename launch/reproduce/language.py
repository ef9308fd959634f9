"""The experiments of ST-MoE (arXiv 2202.08906)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from launch.reproduce import computed
from launch.reproduce.experiment import Measure, Rows, Setting, Values, settings
from moe.papers.fine_tuning import row_of
from moe.sweep import SETTINGS

Known = Iterator[tuple[str, dict[str, Any]]]  # name of an exhibit, what `Experiment` takes

MC4 = "mC4 (public) with its vocabulary of 250,112 pieces"
C4 = "C4 (public)"
GLAM = "C4 (public) and GLaM's data sets, which are private: data.parts names those of the user"
TASKS = "SuperGLUE (public), and a checkpoint of 500k steps on C4 (st_moe_l:long)"
OTHER_TASKS = "the tasks (public), and a checkpoint of 500k steps on C4 (st_moe_l:long)"

STABILITY = (
    "0.66 million parameters with 4 experts, span corruption on Python's documentation as bytes, "
    "300 steps of 32 rows at five times the usual rate"
)
SHORT_STABILITY = STABILITY.replace("300 steps", "100 steps")
SAMPLES = (
    "0.44 million parameters with 4 experts on the embedded examples of SuperGLUE, 60 steps of 16, "
    "scored on what it was trained on: whether all fits together, no benchmark"
)

_POD = "v5p-64"  # 32 chips, an expert each
_XL: Values = {
    "model.d_model": "2048",
    "model.d_ff": "5120",
    "model.num_heads": "32",
}
_DENSE: Values = {"routing.num_experts": "0"}
_LARGER: Values = {**_DENSE, **_XL}
_PRETRAINED: Values = {"steps": "100", "eval_every": "100", "checkpoint.every": "25"}
_TUNED: Values = {"steps": "60", "eval_every": "60", "checkpoint.every": "20"}
_TINY, _SAMPLE = "st_moe_stability", "st_moe_superglue:sample"
_Z_LOSS = "st_moe_stability:z_loss"

QUALITY = Measure("ours: negative log perplexity", lambda run: run.negative("cross_entropy"), 3)
STABLE = Measure("ours: stable runs", lambda run: run.stable, 0, count=True)
LARGEST = Measure("ours: largest |logit|", lambda run: run.largest("max_logit"), 1)
SCORE = Measure("ours: mean score", lambda run: run.last("score/mean"))
TRAINED = Measure("ours: training cross-entropy", lambda run: run.trained("cross_entropy"), 3)
DROPPED = Measure("ours: tokens dropped %", lambda run: run.mean_percent("dropped_tokens"))
_DONE = "`make reproduce-stability`: all seven settings, six seeds, docs/results.md"


def experiments() -> Known:
    """Name of an exhibit -> what `Experiment` takes beside it."""
    yield from _stability()
    yield from _fine_tuning()
    yield from _design()
    yield from _results()
    yield from _tracing()


def _stability() -> Known:
    yield from _methods()
    yield "figure 1", {"note": "two seeds of the baseline of table 2: --table=2 --seeds=2"}
    yield (
        "figure 2",
        {
            "compute": computed.roundoff,
            "computed_is": "the spacing of each format below the end of the range, by NumPy",
        },
    )
    yield from _coefficients()


def _methods() -> Known:
    methods: dict[str, dict[str, Values]] = {
        "table 2": {
            "Baseline": {},
            "Remove GEGLU": {"model.activation": "relu"},
            "Remove RMS Norm. Scale Param": {"model.norm_scale": "false"},
        },
        "table 3": {
            "Baseline": {},
            "Input jitter (1e-2)": {"routing.jitter": "0.01"},
            "Dropout (0.1)": {"model.dropout": "0.1"},
        },
        "table 4": {
            "Baseline": {},
            "Update clipping (clip = 0.1)": {"optimizer.update_clip": "0.1"},
            "Router Z-Loss": {"routing.z_loss_weight": "0.001"},
        },
    }
    # Two matrices have the parameters of GEGLU's three at 1.5 times the width.
    wider = {"st_moe_l:mc4": {"model.d_ff": "7680"}, _TINY: {"model.d_ff": "192"}}
    for name, rows in methods.items():
        full, tiny = (
            {
                row: (config, {**values, **(more if "GEGLU" in row else {})})
                for row, values in rows.items()
            }
            for config, more in wider.items()
        )
        yield (
            name,
            {
                "needs": MC4,
                "full": settings(full),
                "tiny": settings(tiny),
                "measures": (STABLE, QUALITY, LARGEST),
                "tiny_is": STABILITY,
                "minutes": 5,
                "done": _DONE,
            },
        )


def _coefficients() -> Known:
    weights = {"no z-loss": "0"} | {w: w for w in ("1e-4", "1e-3", "1e-2", "1e-1")}
    sweep: dict[str, str | tuple[str, Values]] = {
        row: (_TINY, {"routing.z_loss_weight": weight}) for row, weight in weights.items()
    }
    full = {row: ("st_moe_l", {"routing.z_loss_weight": w}) for row, w in weights.items()}
    yield (
        "figure 7",
        {
            "needs": C4,
            "full": settings(full),
            "tiny": settings(sweep, **_keys(_PRETRAINED)),
            "measures": (LARGEST, QUALITY),
            "tiny_is": SHORT_STABILITY,
            "minutes": 4,
        },
    )


def _keys(values: Values) -> dict[str, str]:
    return {key.replace(".", "__"): value for key, value in values.items()}


def _tuned(rows: Rows) -> list[Setting]:
    """Rows of fine-tuning at the paper's scale, planned for the pod of st_moe_l."""
    return settings(rows, target=_POD)


def _fine_tuning() -> Known:
    yield from _dropped_tokens()
    yield from _sentinels()
    yield from _overfitting()
    yield from _dropout()
    yield from _subsets()
    yield from _sensitivity()


def _dropped_tokens() -> Known:
    factors = [(0.75, 2.0), (1.25, 2.0), (2.0, 3.0), (4.0, 5.0)]
    grid = {
        f"train {train}, eval {held_out}, {'' if loss else 'no '}aux loss": {
            "routing.capacity_factor": str(train),
            "routing.capacity_factor_eval": str(held_out),
            "routing.balance_loss_weight": "0.01" if loss else "0",
        }
        for loss in (True, False)
        for train, held_out in factors
    }
    yield (
        "table 5",
        {
            "needs": TASKS,
            "full": _tuned({row: ("st_moe_superglue", v) for row, v in grid.items()}),
            **_samples({row: (_SAMPLE, v) for row, v in grid.items()}, (DROPPED, SCORE), 7),
        },
    )


def _sentinels() -> Known:
    yield "table 6", {"note": "an illustration; `--config.data.sentinels=1` writes its last row"}
    marks = {
        f"{model}, {'' if count == '1' else 'no '}sentinels": {**values, "data.sentinels": count}
        for model, values in (("Dense", _DENSE), ("Sparse", {}))
        for count in ("0", "1")
    }
    grammar = {f"{row}, grammar": values for row, values in marks.items()}
    one: Values = {"data.source": "sample:grammar"}
    yield (
        "table 7",
        {
            "needs": f"{TASKS}; Write & Improve with LOCNESS of BEA-2019 (public, for research)",
            "full": _tuned({row: ("st_moe_superglue", v) for row, v in marks.items()})
            + _tuned({row: ("st_moe_tasks:bea2019", v) for row, v in grammar.items()}),
            **_samples(
                {row: (_SAMPLE, v) for row, v in marks.items()}
                | {row: (_SAMPLE, {**one, **v}) for row, v in grammar.items()},
                (SCORE, TRAINED),
                8,
            ),
            "note": "the paper does not name its data of grammar; exact match, as it prints",
        },
    )


def _overfitting() -> Known:
    pairs = {
        f"{model}, {title}": (task, values)
        for task, title in (("cb", "CB"), ("record", "ReCoRD"))
        for model, values in (("Dense", _DENSE), ("Sparse", {}))
    }
    yield (
        "figure 3",
        {
            "needs": TASKS,
            "full": _tuned(
                {
                    row: ("st_moe_superglue", {**v, "data.source": f"task:{task}"})
                    for row, (task, v) in pairs.items()
                }
            ),
            **_samples(
                {
                    row: (
                        _SAMPLE,
                        {
                            **v,
                            "data.source": f"sample:{task}",
                            "evaluation.split": "validation",
                        },
                    )
                    for row, (task, v) in pairs.items()
                },
                (TRAINED, SCORE),
                4,
            )
            | {"tiny_is": SAMPLES.replace("scored on what it was trained on", "a few held out")},
        },
    )


def _dropout() -> Known:
    rates = {
        f"dropout {rate}": {"model.dropout": rate, "model.expert_dropout": rate}
        for rate in ("0.0", "0.1", "0.2", "0.3")
    } | {
        f"dropout 0.1, of experts {rate}": {"model.dropout": "0.1", "model.expert_dropout": rate}
        for rate in ("0.2", "0.4")
    }
    yield (
        "figure 4",
        {
            "needs": TASKS,
            "full": _tuned({row: ("st_moe_superglue", v) for row, v in rates.items()}),
            **_samples({row: (_SAMPLE, v) for row, v in rates.items()}, (SCORE, TRAINED), 5),
            "note": "the rates beyond 0.1 are assumed: those of the picture cannot be read",
        },
    )


def _subsets() -> Known:
    subsets = {"All": "all", "Non MoE": "non_moe", "MoE": "moe"}
    subsets |= {"Attention": "attention", "FFN": "ffn"}
    learned = {row: {"finetune.train": name} for row, name in subsets.items()}
    tuned = _samples({row: (_SAMPLE, v) for row, v in learned.items()}, (SCORE, TRAINED), 6)
    tuned["tiny"] = [dataclasses.replace(s, start=_PRETRAINING) for s in tuned["tiny"]]
    tuned["tiny_is"] = f"{SAMPLES}; from 100 steps of span corruption on Python's documentation"
    yield (
        "figure 5",
        {
            "needs": TASKS,
            "full": _tuned({row: ("st_moe_superglue", v) for row, v in learned.items()}),
            **tuned,
        },
    )


def _sensitivity() -> Known:
    sweep = {
        f"{model}, {row_of(setting)}": {**values, "sweep": str(number)}
        for model, values in (("Dense", _DENSE), ("Sparse", {}))
        for number, setting in enumerate(SETTINGS)
    }
    yield (
        "table 20",
        {
            "needs": TASKS,
            "full": _tuned({row: ("st_moe_superglue", v) for row, v in sweep.items()}),
            "note": "no tiny variant: 65k to 1M tokens of a batch have no meaning at 158 examples",
        },
    )
    yield (
        "figure 6",
        {
            "note": "means of the runs of table 20, which this table shows as computed from its "
            "cells"
        },
    )


# What the small models of fine-tuning start from, where they start from something.
_PRETRAINING = Setting(
    "start",
    _Z_LOSS,
    {
        **_PRETRAINED,
        "model.vocab_size": "384",
        "model.encoder_blocks": "2",
        "model.decoder_blocks": "2",
        "model.sparse_period": "2",
    },
)


def _samples(
    rows: Mapping[str, tuple[str, Values]], measures: tuple[Measure, ...], minutes: float
) -> dict[str, Any]:
    """A tiny variant on the embedded examples."""
    tiny = {row: (config, {**_TUNED, **values}) for row, (config, values) in rows.items()}
    return {
        "tiny": settings(tiny),
        "measures": measures,
        "tiny_is": SAMPLES,
        "minutes": minutes,
    }


def _routed(choices: int, train: str, held_out: str, **more: str) -> Values:
    return {
        "routing.top_k": str(choices),
        "routing.capacity_factor": train,
        "routing.capacity_factor_eval": held_out,
        **more,
    }


def _pretrained(
    rows: dict[str, Values],
    few: tuple[str, ...],
    minutes: float,
    measure: Measure = QUALITY,
    tiny: dict[str, Values] | None = None,
) -> dict[str, Any]:
    """Rows of ST-MoE-L for 100k steps, and the few of them that a laptop trains; `tiny`: its keys
    of them, where they are others.
    """
    return {
        "needs": C4,
        "full": settings({row: ("st_moe_l", values) for row, values in rows.items()}),
        "tiny": settings({row: (_Z_LOSS, {**_PRETRAINED, **(tiny or rows)[row]}) for row in few}),
        "measures": (measure,),
        "tiny_is": SHORT_STABILITY,
        "minutes": minutes,
    }


def _design() -> Known:
    yield from _routing()
    yield from _architecture()
    yield from _scale()


def _routing() -> Known:
    plain = {
        f"Top-{n} {train}/{held_out}": _routed(n, train, held_out)
        for n, train in ((1, "0.75"), (2, "0.75"), (1, "1.0"), (2, "1.0"), (1, "1.25"), (2, "1.25"))
        for held_out in (train, "2.0")
    }
    most = {
        f"Top-{n} 2.0/{held_out}": _routed(n, "2.0", held_out)
        for n in (2, 3)
        for held_out in ("2.0", "3.0")
    }
    few = ("Top-1 0.75/2.0", "Top-2 0.75/2.0", "Top-1 1.25/2.0", "Top-2 1.25/2.0")
    yield (
        "table 8",
        {
            **_pretrained(
                {"Dense-L": _DENSE, "Dense-XL": _LARGER, **plain, **most},
                ("Dense-L", *few, "Top-2 2.0/2.0", "Top-3 2.0/2.0"),
                6,
            ),
            "note": "the tiny variant leaves out rows that differ in the evaluation alone",
        },
    )
    prioritised = {
        f"BPR Top-1 {train}/{held_out}": _routed(
            1, train, held_out, **{"routing.batch_prioritized": "true"}
        )
        for train in ("0.5", "0.75", "1.0", "1.25")
        for held_out in (train, "2.0")
    }
    yield (
        "table 18",
        _pretrained(
            {"Dense": _DENSE, "Dense-L": _LARGER, **plain, **prioritised},
            (
                *("Dense", "BPR Top-1 0.5/2.0", *few[:2], "BPR Top-1 0.75/2.0"),
                *(*few[2:], "BPR Top-1 1.25/2.0"),
            ),
            7,
        ),
    )
    thresholds = {
        f"Top-{n}, {threshold}": _routed(n, "3.0", "3.0", **{"routing.second_threshold": threshold})
        for n in (2, 3)
        for threshold in ("0.2", "0.05")
    }
    yield (
        "table 21",
        _pretrained({"Dense": _DENSE, "Dense-L": _LARGER, **thresholds}, ("Dense", *thresholds), 4),
    )


def _extra_layers(sparse: str, encoder: str, decoder: str) -> dict[str, Values]:
    """Rows of table 16.

    The dense model has its extra layers in those blocks that the sparse one makes sparse.

    Args:
      sparse: these blocks.
      encoder: blocks of the encoder that have them at random.
      decoder: the same of the decoder.
    """
    elsewhere = {"model.extra_ffn_blocks": encoder, "model.decoder_extra_ffn_blocks": decoder}
    return {
        "Dense": _DENSE,
        "Dense, extra FFN layers": {**_DENSE, "model.extra_ffn_blocks": sparse},
        "Sparse": {"model.extra_ffn": "none"},
        "Sparse, extra FFN after": {"model.extra_ffn": "after"},
        "Sparse, extra FFN before": {"model.extra_ffn": "before"},
        "Sparse, extra FFN placed at random": elsewhere,
    }


def _architecture() -> Known:
    # As many blocks as have experts, of those that have none, by NumPy's default_rng(0): first of
    # the encoder, then of the decoder. A test draws them again.
    rows = _extra_layers("3,7,11,15,19,23", "0,5,6,9,10,14", "9,12,14,16,20,22")
    few = _extra_layers("3", "2", "1")
    yield (
        "table 16",
        {
            **_pretrained(rows, tuple(few), 9, tiny=few),
            "note": "the paper says neither where a dense model has extra layers nor which places "
            "were drawn: read as the blocks that the sparse model makes sparse, and as blocks "
            "without experts, drawn with seed 0",
        },
    )
    biases: dict[str, Values] = {
        "Dense": _DENSE,
        "Sparse": {},
        "Sparse + Additive Bias": {"model.expert_bias": "additive"},
        "Sparse + Multiplicative Bias": {"model.expert_bias": "multiplicative"},
    }
    yield "table 17", _pretrained(biases, tuple(biases), 3)


def _scale() -> Known:
    yield (
        "table 9",
        {
            "needs": "nothing: --scale=full --plan predicts the time of each step",
            "full": settings(
                {
                    f"{title}, {factor}": (config, {"routing.capacity_factor": factor})
                    for title, config in (("ST-MoE-L", "st_moe_l"), ("ST-MoE-32B", "st_moe_32b"))
                    for factor in ("1.25", "2.0")
                }
            ),
            "done": "predicted for ST-MoE-32B: +7.9 % from 1.25 to 2.0, docs/planning.md",
        },
    )
    yield (
        "table 19",
        {
            "needs": GLAM,
            "full": settings({"ST-MoE-32B": "st_moe_32b"}),
            "compute": computed.mixture,
            "computed_is": "what data.source=mixture:st_moe_32b reads",
        },
    )
    small: Values = {"target": "v5e-32", "mesh.model": "4"}
    yield (
        "figure 8",
        {
            "needs": "nothing: --scale=full --plan compiles both meshes, on 32 chips of v5e",
            "full": settings(
                {
                    "2D mesh": (
                        "st_moe_base",
                        {**small, "mesh.data": "8", "routing.num_experts": "8"},
                    ),
                    "3D mesh": (
                        "st_moe_base",
                        {
                            **small,
                            "mesh.replica": "4",
                            "mesh.data": "2",
                            "routing.num_experts": "2",
                        },
                    ),
                }
            ),
        },
    )


def _results() -> Known:
    tasks = {"SQuADv2": "squad_v2", "XSum": "xsum", "CNN-DM": "cnn_dailymail"}
    tasks |= {"WinoGrande (XL)": "winogrande", "ANLI (R3)": "anli", "ARC-Easy": "arc_easy"}
    tasks |= {"ARC-Challenge": "arc_challenge", "Closed Book TriviaQA": "trivia_qa"}
    tasks |= {"Closed Book NatQA": "natural_questions", "Closed Book WebQA": "web_questions"}
    named = {"SuperGLUE": "st_moe_superglue"}
    named |= {title: f"st_moe_tasks:{name}" for title, name in tasks.items()}
    samples: dict[str, tuple[str, Values]] = {
        f"{title}, {model}": (config, values)
        for title, config in (("SuperGLUE", _SAMPLE), ("the other tasks", "st_moe_tasks:sample"))
        for model, values in (("Dense", _DENSE), ("ST-MoE", {}))
    }
    yield (
        "table 10",
        {
            "needs": OTHER_TASKS,
            "full": _tuned({f"{title}, ST-MoE-L": config for title, config in named.items()})
            + _tuned(
                {f"{title}, Dense-L": (config, _DENSE) for title, config in named.items()},
            ),
            **_samples(samples, (SCORE, TRAINED), 4),
            "done": "`vitattn-moe train --config=st_moe_superglue:sample`: 100 in all tasks on its "
            "own training examples, docs/results.md",
            "note": "SuperGLUE is one mixture, whose run gives its eight rows",
        },
    )
    yield (
        "table 11",
        {
            "needs": C4,
            "full": settings(
                {
                    "Dense-L": "st_moe_l:dense",
                    "ST-MoE-L": "st_moe_l",
                    "ST-MoE-32B": "st_moe_32b:c4",
                }
            ),
            "compute": computed.models,
            "computed_is": "parameters and FLOPs of a sequence of 512 + 114 tokens, counted "
            "without arrays",
        },
    )
    yield (
        "table 12",
        {
            "needs": f"{GLAM}; the tasks are public",
            "full": settings({"pre-training": "st_moe_32b"}),
            "note": "fine-tuning follows st_moe_superglue and st_moe_tasks with the sizes of "
            "st_moe_32b; zero- and one-shot columns are of other models, which are not here",
        },
    )


def _tracing() -> Known:
    trained = f"{C4}, and a trained ST-MoE-L"
    for name, needs in (("table 13", trained), ("table 15", f"{MC4}, and a model trained on it")):
        yield (
            name,
            {
                "needs": needs,
                "note": "words read by eye: which tokens an expert gets is told by the analysis "
                "of a trained run, not by a score",
            },
        )
    yield (
        "table 14",
        {
            "needs": trained,
            "compute": computed.uniform_entropy,
            "computed_is": "the entropy of uniform routing; those of layers need a trained model",
        },
    )
