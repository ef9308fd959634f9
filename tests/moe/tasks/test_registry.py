"""Each task's text, from records in the form in which its benchmark is published."""

from __future__ import annotations

import json

import pytest

from moe.tasks import records, registry
from moe.tasks.task import TEST, TRAIN, VALIDATION
from tests.moe.tasks.published import GOLDEN, TFDS, jsonl


@pytest.mark.parametrize("task", GOLDEN)
def test_records_as_published_become_the_texts_of_t5(folder, task):
    files, expected = GOLDEN[task]
    found = records.load(folder(files), f"task:{task}", TRAIN)
    assert [(example.inputs, example.targets) for example in found] == expected


def test_articles_of_xsum_that_are_not_there_are_counted(folder, capsys):
    config = folder(GOLDEN["xsum"][0])
    assert len(records.load(config, "task:xsum", TRAIN)) == 1
    note = capsys.readouterr().err
    assert "task:xsum (train)" in note
    assert "misses 1 of 2 articles" in note


def test_articles_of_xsum_as_its_authors_publish_them(folder):
    """The archive of files ID.summary, where the title is no part of the summary."""
    files = {
        "xsum/XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json": json.dumps({"train": ["1", "2"]}),
        "xsum/bbc-summary-data/1.summary": (
            "[SN]URL[SN]\nhttp://x\n\n[SN]TITLE[SN]\nTitle\n\n"
            "[SN]FIRST-SENTENCE[SN]\nShort.\n\n[SN]RESTBODY[SN]\nOne.\nTwo.\n"
        ),
        "xsum/bbc-summary-data/2.summary": "[SN]URL[SN]\nhttp://y\n\n[SN]RESTBODY[SN]\nOne.\n",
    }
    (_, good), (where, bad) = records.read(folder(files), "task:xsum", TRAIN)
    assert where.endswith("(2.summary)")
    assert "has not the parts [SN]FIRST-SENTENCE[SN]" in str(bad)
    assert (good.inputs, good.targets) == ("summarize: One.\nTwo.", ("Short.",))


def test_every_task_is_covered():
    alike = {"axb", "axg", "arc_challenge", "anli_r1", "anli_r2"}
    assert set(GOLDEN) | alike == set(registry.TASKS)


def test_diagnostics_read_as_rte(folder):
    files = {
        "AX-b/AX-b.jsonl": jsonl(
            {"sentence1": "P.", "sentence2": "H.", "idx": 0, "label": "entailment", "logic": "x"}
        ),
        "AX-g/AX-g.jsonl": jsonl({"premise": "P.", "hypothesis": "H.", "idx": 0}),
    }
    config = folder(files)
    (first,) = records.load(config, "task:axb", TEST)
    (second,) = records.load(config, "task:axg", TEST)
    assert first.inputs == second.inputs == "rte hypothesis: H. premise: P."
    assert (first.label, second.label) == (0, -1)
    assert second.targets == ()


def test_what_scoring_needs_comes_along(folder):
    config = folder({**GOLDEN["multirc"][0], **GOLDEN["record"][0], **GOLDEN["wsc"][0]})
    both = records.load(config, "task:multirc", TRAIN)
    assert [(e.key, e.label, e.choices) for e in both] == [
        ((3, 5, 8), 1, ("False", "True")),
        ((3, 5, 9), 0, ("False", "True")),
    ]
    (query,) = records.load(config, "task:record", TRAIN)
    assert (query.key, query.choices, query.answers) == ((2, 7), ("Ann", "Bo", "Rome"), ("Bo",))
    (span,) = records.load(config, "task:wsc", TRAIN)
    assert (span.answers, span.label) == (("Mark",), 1)


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "expected"),
    [
        # Punctuation sticks to the pronoun.
        ('Good for him," he said.', "him", 2, 'Good for *him* ," he said.'),
        # The published index is one word off.
        ("They want to use it , now .", "it", 3, "They want to use *it* , now ."),
    ],
)
def test_pronouns_are_found_where_the_published_index_is_not_exact(
    folder, text, pronoun, index, expected
):
    spans = {"span1_index": 0, "span1_text": text.split()[0]}
    spans |= {"span2_index": index, "span2_text": pronoun}
    row = {"text": text, "idx": 0, "label": False, "target": spans}
    (example,) = records.load(folder({"WSC/train.jsonl": jsonl(row)}), "task:wsc", TRAIN)
    assert example.inputs == f"wsc: {expected}"
    assert example.targets == ()  # a wrong span is not trained on


def test_pronouns_of_dpr_are_marked_where_t5_marks_them(folder):
    """Before a space, a full stop or a comma, the first of them; a contraction stays as it is."""
    lines = ["Al told Bo that he's late.", "he", "Al,Bo", "Bo", ""]
    lines += ["Al saw Bo when he, as he said, left.", "he", "Al,Bo", "Al", ""]
    lines += ["Al told Bo to heat it.", "he", "Al,Bo", "Bo", ""]
    config = folder({"DPR/train.c.txt": "\n".join(lines)})
    (_, first), (_, second), (where, bad) = records.read(config, "task:dpr", TRAIN)
    assert first.inputs == "wsc: Al told Bo that he's late."
    assert second.inputs == "wsc: Al saw Bo when *he*, as he said, left."
    assert where.endswith("line 11")
    assert "has not the pronoun 'he'" in str(bad)


@pytest.mark.parametrize("task", TFDS)
def test_tfds_gives_the_same_text_as_the_published_file(folder, data_config, tfds_of, task):
    asked = tfds_of([TFDS[task]])
    (theirs,) = records.load(data_config(dir=""), f"task:{task}", TRAIN)
    assert asked == [(registry.TASKS[task].tfds, None)]
    ours = records.load(folder(GOLDEN[task][0]), f"task:{task}", TRAIN)[0]
    for name in ("inputs", "targets", "label", "choices", "answers"):
        assert getattr(theirs, name) == getattr(ours, name), name


def test_the_samples_are_whole():
    """About 24 examples a SuperGLUE task and 8 of each other, in every split that they have."""
    from moe.config import default_config

    config = default_config("st_moe_tiny").data
    for name, task in registry.TASKS.items():
        counts = {}
        for split in task.tfds_splits:
            file = records.SAMPLES / task.folders[0] / task.files[split]
            there = file.exists() or name == "xsum"  # whose splits are lists in one file
            if there and (name not in registry.GROUPS["summaries"] or split != TEST):
                counts[split] = len(records.load(config, f"sample:{name}", split))
        total = sum(counts.values())
        least, most = (20, 30) if name in (*registry.GROUPS["superglue"], "axb", "axg") else (8, 8)
        assert least <= total <= most, (name, counts)
        if VALIDATION in task.tfds_splits:
            assert counts[TRAIN] > counts[VALIDATION] > 0
