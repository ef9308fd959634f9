"""`benchmarks.reproduce_detection` on drawn pictures: trained, printed again, drawn."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import reproduce_detection
from trainlib.errors import DataError
from trainlib.sharding.mesh import make_mesh
from vitattn import plan, train

# Networks that compile in seconds; everything else is as shipped.
SHORT = (
    "--seeds=1",
    "--kinds=conv,sasa",
    "--config.steps=1",
    "--config.model.width=0.125",
    "--config.model.features=16",
    "--config.model.head_layers=1",
    "--config.model.image_size=64,64",
    "--config.schedule.warmup_steps=0",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Bright squares of three sizes, as COCO json for each split."""
    folder, rng = tmp_path_factory.mktemp("bccd"), np.random.default_rng(0)
    (folder / "images").mkdir()
    categories = [{"id": 1 + n, "name": name} for n, name in enumerate(("RBC", "WBC", "Platelets"))]
    for split, count in (("train", 16), ("val", 8), ("test", 14)):
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels, name = np.zeros((48, 64, 3), np.uint8), f"{split}_{number}.png"
            for kind, side in enumerate((12, 20, 6)):
                x, y = (int(value) for value in rng.integers(0, 28, 2))
                pixels[y : y + side, x : x + side, kind] = 200
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1 + kind,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow  # two networks are compiled for training, and one again to be drawn
def test_runs_are_measured_drawn_and_then_only_printed(cells, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "make_mesh", lambda *_: make_mesh(devices=jax.devices()[:1]))
    arguments = [f"--bccd={cells}", f"--runs={tmp_path}", *SHORT]
    assert reproduce_detection.main(arguments) == 0
    results = json.loads((tmp_path / "test" / "results.json").read_text())
    assert [(result["kind"], result["examples"]) for result in results] == [
        ("conv", 14),
        ("sasa", 14),
    ]
    assert all(result["cpu_seconds"] > 0 and result["flops"] > 1e6 for result in results)
    with Image.open(tmp_path / "test" / "detections.jpg") as picture:
        assert min(picture.size) > 300
    capsys.readouterr()
    monkeypatch.setattr(train, "run", None)
    assert reproduce_detection.main(arguments) == 0
    out = capsys.readouterr().out
    assert (
        "BCCD, test split, 14 images of 64 x 64 pixels, after 1 steps of 4 images, 1 seeds" in out
    )
    assert f"{results[0]['params']:,}" in out
    assert "goal, AP50 of the best at least 75 %" in out


def test_the_folder_has_to_be_there(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        reproduce_detection.main([f"--bccd={tmp_path / 'none'}"])


def test_means_and_spread_of_a_table(capsys):
    rest = {
        "steps": 3,
        "batch_size": 8,
        "image_size": (192, 256),
        "examples": 72,
        "wall_seconds": 60,
    }
    rest |= {"params": 1234, "flops": 5e8, "ap": 0.4, "ap75": 0.3, "cpu_seconds": 30.0}
    results = [
        {"kind": kind, "seed": seed, "ap50": ap50 + 0.02 * seed, **rest}
        for seed in (0, 1)
        for kind, ap50 in (("conv", 0.75), ("aa", 0.5))
    ]
    reproduce_detection.print_table("test", results)
    out = capsys.readouterr().out
    assert "76.0 +- 1.4" in out
    assert "75.0, 77.0" in out
    assert "all runs: 2.0 CPU minutes" in out
    assert "at least 75 %: met" in out
    assert "at least 85 %: missed" in out
