"""Bugs that were shipped are found, by name; the same routers without them are not accused."""

import pytest

from moe.conformance import cases, verdict
from moe.conformance.readings import BUG
from tests.moe.conformance import historical

TOP1 = ("top1", "layers", "padding")
TOPK = ("top2", "top3", "dropless", "sigmoid")


def bugs(adapter, themes):
    """Name -> part and issue of the bugs that are found."""
    found = {}
    for finding in verdict.judge(adapter, cases.load(themes)):
        for reading in finding.readings:
            if reading.kind == BUG:
                found[reading.name] = (finding.part, reading.where)
    return found


@pytest.mark.parametrize(
    ("adapter", "themes"), [(historical.Switch, TOP1), (historical.TopK, TOPK)]
)
def test_a_router_without_bugs_has_conventions_alone(adapter, themes):
    assert not bugs(adapter(), themes)


@pytest.mark.parametrize(
    ("adapter", "themes", "names", "part", "issue"),
    [
        (
            historical.CapacityIgnored,
            TOP1,
            {"capacity is ignored", "z-loss of the largest probability"},
            "routing",
            "huggingface/transformers#48293",
        ),
        (
            historical.DroppedKeepTheirInput,
            TOP1,
            {"tokens without a slot keep their input"},
            "routing",
            "huggingface/transformers#37017",
        ),
        (
            historical.LayersPooled,
            TOP1,
            {"layers are pooled before they are balanced"},
            "balance",
            "huggingface/transformers#29503",
        ),
        (
            historical.SoftmaxTwice,
            ("top2", "dropless"),
            {"probabilities went through a softmax again"},
            "balance",
            "huggingface/transformers#45120",
        ),
        (
            historical.SmallSigmoids,
            TOPK,
            {"an epsilon outweighs small sigmoids"},
            "balance",
            "NVIDIA/Megatron-LM#1545",
        ),
        (
            historical.PaddedMap,
            ("top2", "top3"),
            {"slots filled up to capacity are counted as tokens"},
            "balance",
            "NVIDIA/Megatron-LM#1617",
        ),
    ],
)
def test_a_bug_that_was_shipped_is_found_by_name(adapter, themes, names, part, issue):
    found = bugs(adapter(), themes)
    assert set(found) == names
    assert (part, issue) in found.values()
