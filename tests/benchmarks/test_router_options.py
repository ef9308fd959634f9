"""The table of `benchmarks.router_options`: figures of records, and every option as a model."""

import pytest

from benchmarks import router_options
from moe.models import architecture
from trainlib.errors import ConfigError


def test_violation_and_drops_of_records():
    record = {
        **{"router/encoder.1/load_0": 0.75, "router/encoder.1/load_1": 0.25},
        **{"router/decoder.1/load_0": 0.5, "router/decoder.1/load_1": 0.5},
        **{f"router/{s}.1/dropped_choices": v for s, v in (("encoder", 0.2), ("decoder", 0.0))},
        **{f"router/{s}.1/dropped_tokens": 0.1 for s in ("encoder", "decoder")},
    }
    assert router_options.balance([record, record]) == {
        "violation": 0.25,
        "largest": 0.5,
        "dropped_choices": 0.1,
        "dropped_tokens": 0.1,
    }


def test_differences_are_of_equal_seeds():
    zero = dict.fromkeys(("violation", "largest", "dropped_choices", "dropped_tokens"), 0.0)
    losses = {("", 0): 2.0, ("", 1): 3.0, ("later", 0): 2.1, ("later", 1): 2.9, ("whole", 1): 3.5}
    results = [{"kind": k, "seed": s, "loss": v} | zero for (k, s), v in losses.items()]
    lines = "\n".join(router_options.table(results))
    assert "| 2.500 | -0.000 (-0.100 to +0.100) |" in lines or "| 2.500 | +0.000 (" in lines
    assert "| 3.500 | +0.500 (+0.500 to +0.500) |" in lines
    assert lines.endswith("Seeds: 0, 1.")


@pytest.mark.parametrize("kind", router_options.KINDS)
def test_every_option_is_a_model(kind, tmp_path):
    """Its keys exist, fit one another, and change something."""
    run = router_options.planned(tmp_path, kind, 1, {})
    model = architecture(run.config.model, run.config.routing)
    base = router_options.planned(tmp_path, "", 1, {}).config
    assert model.all_sparse_blocks == {"encoder": (0, 1), "decoder": (0, 1)}
    assert (model == architecture(base.model, base.routing)) == (kind == "")


def test_an_option_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'sigmoid'"):
        router_options.main(["--options=bias,sigmoyd", "--table"])
