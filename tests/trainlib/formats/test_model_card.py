"""The model card of an export, read as Hugging Face's hub reads it."""

import dataclasses
import itertools
import math
import re

import pytest
import yaml
from markdown_it import MarkdownIt

from trainlib.errors import ConfigError, plain
from trainlib.formats.model_card import Export, Metric, Subject, card, check_license, escaped

huggingface_hub = pytest.importorskip("huggingface_hub")

SUBJECT = Subject(
    what="A test.",
    pipeline="image-classification",
    task="image classification",
    tags=("vitattn-moe", "jax", "jax"),
    papers=("1904.09925",),
    rows={"classes": "2: a, b"},
    data="CIFAR-100",
    data_id="uoft-cs/cifar100",
    split="test",
    metrics={"top1": Metric("accuracy", "top-1 accuracy", True)},
    hidden=("examples",),
    use="\nprint('hello')\n",
)
EXPORT = Export(
    name="small:variant",
    license="apache-2.0",
    parameters=12_345,
    step=300,
    weights={"weights": "as stored"},
    library="vitattn-moe",
    figures={"top1": 0.9375, "loss": 0.25, "bad": math.nan, "examples": 360.0},
    note="",
    command=["vitattn-moe", "train", "--config=x.py", "--config.data.dir=DATA_DIR"],
    versions={"jax": "0.10.2"},
)


def test_the_hub_reads_what_was_measured():
    text = card(SUBJECT, EXPORT)
    data = huggingface_hub.ModelCard(text).data
    assert (data.license, data.library_name) == ("apache-2.0", "vitattn-moe")
    assert data.pipeline_tag == "image-classification"
    assert data.tags == ["vitattn-moe", "jax"]
    assert data.datasets == ["uoft-cs/cifar100"]
    assert data.metrics == ["accuracy", "loss"]
    assert data.model_name == "small:variant"
    first, second = data.eval_results
    assert (first.metric_type, first.metric_value) == ("accuracy", 0.9375)
    assert (first.dataset_type, first.dataset_split) == ("uoft-cs/cifar100", "test")
    assert (second.metric_type, second.metric_value) == ("loss", 0.25)
    for words in (
        "# small:variant",
        "| parameters | 12,345 |",
        "[arXiv 1904.09925](https://arxiv.org/abs/1904.09925)",
        "at step 300, on the split test of CIFAR-100",
        "| top-1 accuracy | 93.75 % |",
        "  --config.data.dir=DATA_DIR\n",
        "Words in capitals",
    ):
        assert words in text, words
    assert "nan" not in text
    again = huggingface_hub.ModelCard(str(huggingface_hub.ModelCard(text)))
    assert again.data.to_dict() == data.to_dict()


def test_figures_of_parts_tell_no_directory_and_stay_apart():
    sources = ("text:/home/John Smith/a", "text:/home/John Smith/b", "pydoc")
    names = [f"part/{source}/{figure}" for source in sources for figure in ("accuracy", "loss")]
    figures = {name: float(number) for number, name in enumerate(names)}
    text = card(SUBJECT, dataclasses.replace(EXPORT, figures=figures))
    assert "Smith" not in text
    shown = {
        row.metric_name: row.metric_value
        for row in huggingface_hub.ModelCard(text).data.eval_results
    }
    assert shown == {
        "part/text:PATH/accuracy": 0,
        "part/text:PATH/loss": 1,
        "part/text:PATH/accuracy (2)": 2,
        "part/text:PATH/loss (2)": 3,
        "part/pydoc/accuracy": 4,
        "part/pydoc/loss": 5,
    }
    assert all(f"| {escaped(name)} | {value:g} |" in text for name, value in shown.items())


def test_a_card_without_figures_and_licence_says_so():
    export = dataclasses.replace(EXPORT, license="", figures={}, note="nothing was evaluated.")
    text = card(SUBJECT, export)
    data = huggingface_hub.ModelCard(text).data
    assert data.license is None
    assert data.eval_results is None
    assert "None: nothing was evaluated." in text
    assert "The author has not chosen a licence yet" in text


HOSTILE = (
    "x\n---\nlicense: mit\n",
    'a": [1]\nlicense: "mit',
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://tracker.example/p.png)",
    "| a | b |",
    "`code` **bold** $x$ &amp;",
    "https://evil.example www.evil.example me@evil.example",
    "\u202egnp.exe \x1b[2J \x85 \u2028 \ud800 \U0001f600",
    "# heading",
    "- !!python/object/apply:os.system ['x']",
    "{{template}} %s ```",
    "",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_others_become_neither_yaml_nor_markup(name):
    subject = dataclasses.replace(SUBJECT, data=name, split=name)
    command = ["vitattn-moe", "train", f"--config.name={name}"]
    export = dataclasses.replace(EXPORT, name=name, figures={name: 0.5}, command=command)
    text = card(subject, export)
    loaded = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])
    assert set(loaded) == {
        *("library_name", "pipeline_tag", "license", "tags", "datasets", "metrics", "model-index")
    }
    assert loaded["license"] == "apache-2.0"
    assert isinstance(loaded["model-index"][0]["name"], str)
    (entry,) = loaded["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == 0.5
    assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]
    tokens = MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1])
    kinds = {token.type for token in tokens} | {c.type for t in tokens for c in t.children or ()}
    assert not kinds & {"html_block", "html_inline", "image", "hr", "bullet_list_open", "em_open"}
    inline = [token for token in tokens if token.type == "inline"]
    links = [c.attrs["href"] for t in inline for c in t.children if c.type == "link_open"]
    assert links == ["https://arxiv.org/abs/1904.09925"]
    titles = [
        t.content for before, t in itertools.pairwise(tokens) if before.type == "heading_open"
    ]
    assert titles[-4:] == ["Figures", "Use", "Training", "License"]
    seen = ["".join(c.content for c in t.children) for t in inline]  # what a reader sees
    assert seen[0] == plain(name).strip() or not name
    assert sum(text == plain(name).strip() for text in seen) >= 3 or not name


def test_licences_are_identifiers():
    assert check_license("cc-by-nc-sa-4.0") == "cc-by-nc-sa-4.0"
    assert check_license("") == ""
    with pytest.raises(ConfigError, match=r"Did you mean 'apache-2\.0'"):
        check_license("Apache 2.0")
    with pytest.raises(ConfigError, match="no identifier of a licence"):
        check_license("mit\nlicense: other")
