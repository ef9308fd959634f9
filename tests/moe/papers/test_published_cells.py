"""Every cell of ST-MoE's tables against a second copy, laid out otherwise where the paper repeats
itself: routing by capacity factors and algorithms, fine-tuning by tasks.
"""

import pytest

from moe.papers import exhibits

TABLES = {exhibit.name: exhibit for exhibit in exhibits()}


def cells(name):
    return {label: list(row) for label, row in TABLES[name].rows}


def lines(text):
    rows = [line.split() for line in text.strip().splitlines()]
    return {words[0]: words[1:] for words in rows}


def test_all_tables_and_figures_are_there():
    numbers = {
        kind: [e.number for e in exhibits() if e.kind == kind] for kind in ("table", "figure")
    }
    assert numbers == {"table": list(range(1, 22)), "figure": list(range(1, 9))}
    empty = {exhibit.name for exhibit in exhibits() if not exhibit.rows}
    assert empty == {"table 1", *(f"figure {n}" for n in (1, 3, 4, 5, 7))}


BASE = ["4/6", "-1.755 +- 0.02"]
METHODS = {
    "table 2": {
        "Remove GEGLU": ["3/3", "-1.849 +- 0.02"],
        "Remove RMS Norm. Scale Param": ["3/3", "-2.020 +- 0.06"],
    },
    "table 3": {
        "Input jitter (1e-2)": ["3/3", "-1.777 +- 0.03"],
        "Dropout (0.1)": ["3/3", "-1.822 +- 0.11"],
    },
    "table 4": {
        "Update clipping (clip = 0.1)": ["3/3", "-4.206 +- 0.17"],
        "Router Z-Loss": ["3/3", "-1.741 +- 0.02"],
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_stability(name):
    assert cells(name) == {"Baseline": BASE, **METHODS[name]}


def test_dropped_tokens():
    printed = {  # train, eval: score and dropped tokens with the loss, and without
        ("0.75", "2.0"): ("86.5 +- 0.21", "10.6%", "85.7", "15.6%"),
        ("1.25", "2.0"): ("86.7", "0.3%", "85.8", "2.9%"),
        ("2.0", "3.0"): ("85.8", "0.0%", "85.9", "0.4%"),
        ("4.0", "5.0"): ("86.4", "0.0%", "86.4", "0.0%"),
    }
    expected = {}
    for (train, held_out), (score, dropped, without, more) in printed.items():
        row = f"train {train}, eval {held_out}"
        expected[f"{row}, aux loss"] = [dropped, score]
        expected[f"{row}, no aux loss"] = [more, without]
    assert cells("table 5") == expected


def test_sentinels():
    assert cells("table 6") == {
        "Span Corruption": ["I like <X> the pool <Y> day .", "<X> going to <Y> on a sunny"],
        "Fine-Tuning": ["What is the capital of Illinois ?", "Springfield"],
        "Fine-Tuning + Sentinels": ["What is the capital of Illinois ? <X>", "<X> Springfield"],
    }
    assert cells("table 7") == {
        "Dense, no sentinels": ["84.9 +- 0.33", "22.3 +- 0.25"],
        "Dense, sentinels": ["85.1 +- 0.25", "22.1 +- 0.42"],
        "Sparse, no sentinels": ["86.6 +- 0.18", "22.2 +- 0.04"],
        "Sparse, sentinels": ["86.6 +- 0.24", "22.9 +- 0.09"],
    }


# train/eval capacity factors: top-1, top-2, top-3, batch prioritised top-1
ROUTING = lines("""
0.5/0.5    -      -      -      -1.433
0.5/2.0    -      -      -      -1.416
0.75/0.75  -1.428 -1.424 -      -1.409
0.75/2.0   -1.404 -1.402 -      -1.397
1.0/1.0    -1.397 -1.392 -      -1.386
1.0/2.0    -1.384 -1.378 -      -1.379
1.25/1.25  -1.378 -1.375 -      -1.376
1.25/2.0   -1.373 -1.369 -      -1.375
2.0/2.0    -      -1.360 -1.360 -
2.0/3.0    -      -1.359 -1.356 -
""")


def routed(*names, factors=tuple(ROUTING)):
    order = ("Top-1", "Top-2", "Top-3", "BPR Top-1")
    return {
        f"{name} {factor}": [ROUTING[factor][order.index(name)]]
        for name in names
        for factor in factors
        if ROUTING[factor][order.index(name)] != "-"
    }


def test_capacity_factors_and_routing():
    dense = {"Dense-L": ["-1.474"], "Dense-XL": ["-1.384"]}
    assert cells("table 8") == dense | routed("Top-1", "Top-2", "Top-3")
    small = [factor for factor in ROUTING if not factor.startswith("2.0")]
    dense = {"Dense": ["-1.474"], "Dense-L": ["-1.384"]}  # other names for the same
    assert cells("table 18") == dense | routed("Top-1", "Top-2", "BPR Top-1", factors=small)
    thresholds = {"Top-2, 0.2": "-1.354", "Top-2, 0.05": "-1.356"}
    thresholds |= {"Top-3, 0.2": "-1.351", "Top-3, 0.05": "-1.349"}
    assert cells("table 21") == dense | {row: [value] for row, value in thresholds.items()}


def test_step_times():
    assert cells("table 9") == {
        "ST-MoE-L, 1.25": ["2.397"],
        "ST-MoE-L, 2.0": ["2.447 (+7%)"],
        "ST-MoE-32B, 1.25": ["4.244"],
        "ST-MoE-32B, 2.0": ["4.819 (+14%)"],
    }


# task: metric, Dense-L, ST-MoE-L, gain; of the 32B its split, zero-shot, one-shot, best before, own
TASKS = {
    "SQuADv2 F1": "F1 94.0 94.5 +1% dev 68.3 70.0 96.2 96.3",
    "SQuADv2 acc": "acc 87.6 88.1 +1% dev 62.1 64.6 91.3 90.8",
    "SuperGLUE": "avg 85.1 87.4 +3% test - - 90.9 91.2",
    "BoolQ": "acc 87.1 88.6 +2% dev/test 83.0 82.8 92.0 92.4",
    "Copa": "acc 83.0 91.0 +10% dev/test 91.0 92.0 98.2 99.2",
    "RTE": "acc 91.0 92.1 +1% dev/test 68.8 71.5 94.1 93.5",
    "WiC": "acc 70.4 74.0 +5% dev/test 50.5 52.7 77.9 77.7",
    "MultiRC": "F1 83.9 86.0 +3% dev/test 72.9 72.9 88.6 89.6",
    "WSC": "acc 95.2 93.3 -2% dev/test 84.9 83.9 97.3 96.6",
    "ReCoRD": "acc 85.7 88.9 +4% dev/test 90.3 90.8 96.4 95.1",
    "CB": "acc 100 98.2 -2% dev/test 46.4 73.2 99.2 98.0",
    "XSum": "ROUGE-2 19.9 21.8 +10% test - - 24.6 27.1",
    "CNN-DM": "ROUGE-2 20.3 20.7 +2% test - - 21.6 21.7",
    "WinoGrande XL": "acc 75.4 81.7 +8% dev 73.4 73.2 - 96.1",
    "ANLI R3": "acc 54.3 57.3 +6% test 40.9 40.8 53.4 74.7",
    "ARC-Easy": "acc 63.5 75.4 +19% test 71.9 76.6 92.7 95.2",
    "ARC-Challenge": "acc 50.2 56.9 +13% test 51.4 53.2 81.4 86.5",
    "CB TriviaQA": "acc 28.1 33.8 +20% dev 68.0 74.8 61.6 62.3",
    "CB NatQA": "acc 27.2 29.5 +8% test 21.5 23.9 41.5 41.9",
    "CB WebQA": "acc 30.5 33.2 +9% test 38.0 25.3 42.8 47.4",
}
OTHER_NAMES = {  # in the table of the smaller models
    "WinoGrande XL": "WinoGrande (XL)",
    "ANLI R3": "ANLI (R3)",
    "CB TriviaQA": "Closed Book TriviaQA",
    "CB NatQA": "Closed Book NatQA",
    "CB WebQA": "Closed Book WebQA",
}


def test_fine_tuned_models():
    printed = {task: text.split() for task, text in TASKS.items()}
    small = {OTHER_NAMES.get(task, task): row[:4] for task, row in printed.items()}
    assert cells("table 10") == small
    closed_book = {task: "em" for task in printed if task.startswith("CB ")}
    large = {t: [closed_book.get(t, row[0]), *row[4:]] for t, row in printed.items()}
    assert cells("table 12") == large


def test_models():
    expected = lines("""
Dense-L    0.8B  645B  1024 yes 2816  64  16 27 -    -   -
T5-XXL     11.1B 6.3T  4096 yes 10240 64  64 24 -    -   -
Switch-XXL 395B  6.3T  4096 yes 10240 64  64 24 64   1/4 -
Switch-C   1571B 890B  2080 no  6144  64  32 15 2048 1   -
ST-MoE-L   4.1B  645B  1024 yes 2816  64  16 27 32   1/4 yes
ST-MoE-32B 269B  20.2T 5120 yes 20480 128 64 27 64   1/4 yes
""")
    assert cells("table 11") == expected


def test_where_tokens_go():
    assert cells("table 14") == {
        "Encoder": ["2.2", "1.8", "1.6", "1.7", "1.7", "1.2", "3.5"],
        "Decoder": ["3.4"] * 6 + ["3.5"],
    }
    layers = [row[0] for row in cells("table 13").values()]
    assert layers == ["1, 4, 6", "2, 6", "3, 6", "1", "0", "1", "1"]
    assert all(row == [] for row in cells("table 15").values())


def test_architecture():
    assert cells("table 16") == {
        "Dense": ["-1.474", "-"],
        "Dense, extra FFN layers": ["-1.452", "0.022"],
        "Sparse": ["-1.383", "-"],
        "Sparse, extra FFN after": ["-1.369", "0.014"],
        "Sparse, extra FFN before": ["-1.369", "0.014"],
        "Sparse, extra FFN placed at random": ["-1.376", "0.007"],
    }
    assert cells("table 17") == {
        "Dense": ["-1.474", "-"],
        "Sparse": ["-1.369", "-"],
        "Sparse + Additive Bias": ["-1.371", "-0.002"],
        "Sparse + Multiplicative Bias": ["-1.361", "0.008"],
    }
    assert cells("figure 8") == {"2D mesh": ["8 x 4", "8"], "3D mesh": ["4 x 2 x 4", "2"]}


def test_the_mixture_of_data():
    mixture = cells("table 19")
    assert mixture == {
        "Filtered C4": ["183", "0.17"],
        "Filtered Webpages": ["143", "0.34"],
        "Wikipedia": ["3", "0.05"],
        "Conversations": ["174", "0.23"],
        "Forums": ["247", "0.02"],
        "Books": ["390", "0.17"],
        "News": ["650", "0.02"],
    }
    assert sum(float(weight) for _, weight in mixture.values()) == pytest.approx(1)


# Rows in the order of the paper: batches of 1M, 262k and 65k; in each 1e-3, 5e-4 and 1e-4; in each
# slots kept and reset.
DENSE = "84.8 84.3 84.8 84.2 84.0 84.8 84.9 83.7 84.9 84.0 85.1 85.0 83.7 82.5 84.4 84.1 84.9 84.6"
SPARSE = "86.9 85.9 86.1 83.5 84.3 84.3 86.2 85.2 85.5 84.8 85.1 85.5 85.8 85.5 86.5 85.1 85.6 84.5"
MEANS = {  # by rate and batch, of six cells each, worked out by hand from the rows above
    "learning rate 1e-3": (83.98, 85.92),
    "learning rate 5e-4": (84.40, 85.25),
    "learning rate 1e-4": (84.73, 84.88),
    "batch 1M": (84.48, 85.17),
    "batch 262k": (84.60, 85.38),
    "batch 65k": (84.03, 85.50),
}


def test_sensitivity():
    order = [
        f"{rate}, {batch}, slots {slots}"
        for batch in ("1M", "262k", "65k")
        for rate in ("1e-3", "5e-4", "1e-4")
        for slots in ("kept", "reset")
    ]
    rows = zip(DENSE.split(), SPARSE.split(), strict=True)
    assert cells("table 20") == {label: list(row) for label, row in zip(order, rows, strict=True)}
    bars = {label: tuple(map(float, row)) for label, row in cells("figure 6").items()}
    assert bars.keys() == MEANS.keys()
    for label, means in MEANS.items():
        assert bars[label] == pytest.approx(means, abs=0.006), label


def test_round_off():
    assert cells("figure 2") == {
        "[2, 4)": ["0.01563", "2.34e-7"],
        "[32, 64)": ["0.25", "3.81e-6"],
        "[1024, 2048)": ["8.0", "0.00012"],
        "[2^20, 2^21)": ["8192.0", "0.125"],
        "[2^30, 2^31)": ["8288608.0", "128.0"],
    }


def test_gains_are_those_of_the_rows():
    """A slip of the pen in a quality would show beside its gain."""
    for name in ("table 16", "table 17"):
        rows = cells(name)
        for label, (quality, gain) in rows.items():
            if gain != "-":
                base = rows["Dense" if label.startswith("Dense") else "Sparse"][0]
                assert float(quality) - float(base) == pytest.approx(float(gain), abs=1e-9), label
