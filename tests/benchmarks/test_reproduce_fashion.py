"""`benchmarks.reproduce_fashion` on a few images of noise: equal sizes, trained, printed again."""

import gzip
import json
import struct

import jax
import numpy as np
import pytest

from benchmarks import reproduce_fashion
from benchmarks.harness import accuracy, sweep
from configs.common import load
from trainlib.model.weights import abstract
from trainlib.sharding.mesh import make_mesh
from vitattn import plan, train
from vitattn.models import build

# Networks that compile in seconds; everything else is as shipped.
SHORT = (
    "--seeds=1",
    "--kinds=conv,sasa",
    "--config.steps=1",
    "--config.batch_size=8",
    "--config.model.blocks=1,1,1",
    "--config.schedule.warmup_steps=0",
    "--config.data.workers=0",
)


@pytest.fixture
def fashion(tmp_path):
    """The four files, with a few images of noise and every label."""
    folder, rng = tmp_path / "fashion", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for role, array in {"images": images, "labels": labels}.items():
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            file = folder / f"{name}-{role}-idx{array.ndim}-ubyte.gz"
            file.write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_all_networks_have_as_many_parameters_within_four_hundredths():
    configs = [
        load.from_flags(f"{reproduce_fashion.CONFIG}:{kind}", {}).config
        for kind in reproduce_fashion.TITLES
    ]
    counts = [abstract(build(config.model)).param_count for config in configs]
    assert max(counts) <= 1.04 * min(counts)
    ways = {(config.steps, config.batch_size, config.optimizer.to_json()) for config in configs}
    assert len(ways) == 1


@pytest.mark.slow  # two networks are compiled
def test_runs_are_measured_drawn_and_then_only_printed(fashion, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
    arguments = [f"--fashion={fashion}", f"--runs={tmp_path}", *SHORT]
    assert reproduce_fashion.main(arguments) == 0
    results = json.loads((tmp_path / "test" / "results.json").read_text())
    assert [(r["kind"], r["examples"]) for r in results] == [("conv", 20), ("sasa", 20)]
    assert all(r["cpu_seconds"] > 0 and r["flops"] > 1e6 for r in results)
    assert (tmp_path / "test" / "top1.png").stat().st_size > 1000
    capsys.readouterr()
    monkeypatch.setattr(train, "run", None)
    assert reproduce_fashion.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 of 2 runs are finished" in out
    assert "top-1 on 20 test images after 1 steps of 8 images, 1 seeds" in out
    assert "goal, top-1 of the best at least 93.5 %: missed" in out


def test_a_table_of_what_is_finished(fashion, tmp_path, capsys):
    arguments = [f"--fashion={fashion}", f"--runs={tmp_path}", "--table"]
    assert reproduce_fashion.main(arguments) == 0
    assert "0 of 15 runs are finished" in capsys.readouterr().out


def test_mean_spread_and_cost_of_each_kind():
    rest = {"params": 1234, "flops": 5e6, "steps": 3, "batch_size": 8, "examples": 20}
    results = [
        {"kind": kind, "seed": seed, "top1": top1 + 0.02 * seed, "cpu_seconds": 30.0 + seed, **rest}
        for seed in (0, 1)
        for kind, top1 in (("conv", 0.75), ("aa", 0.5))
    ]
    titles = {"aa": "augmented", "sasa": "stand-alone", "conv": "convolution"}
    head, augmented, convolution = accuracy.table("network", results, titles)
    assert head.split()[-4:] == ["CPU", "s", "a", "run"]
    assert augmented.split()[:5] == ["augmented", "1,234", "5.0", "51.00", "%"]
    # The sample deviation of 75 and 77 is sqrt(2).
    assert convolution.split("%")[1].split() == ["1.41", "75.00,", "77.00", "30,", "31"]


def test_what_a_run_cost_is_added_up_over_its_stops(tmp_path):
    run = sweep.Run("conv", 0, load.from_flags(reproduce_fashion.CONFIG, {}).config, tmp_path)

    def stopped(config, workdir):
        sum(range(10**6))
        raise KeyboardInterrupt

    costs = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sweep.costed(stopped)(run.config, run.workdir)
        costs.append(sweep.cost(run)["cpu_seconds"])
    assert costs[1] > costs[0] > 0
