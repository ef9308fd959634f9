"""Held-out images with what a classifier says of them; a detector is in tests/launch."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import configs
from trainlib.checkpoint import checkpoints as checkpoint
from trainlib.errors import CheckpointError, DataError
from trainlib.run.resume import checkpoint_meta
from trainlib.step.train_state import TrainState
from vitattn.analysis import overlay
from vitattn.data import make_source
from vitattn.plan import make_replicated
from vitattn.samples import images
from vitattn.task import task_of

# Ten layers, the fifth with attention: it compiles in seconds.
SMALL = {
    "depth": 10,
    "widening": 1,
    "image_size": 8,
    "num_classes": 10,
    "dtype": "float32",
    "attention": {"num_heads": 2, "min_key_depth": 4, "stages": (3,)},
}


@pytest.fixture(scope="module")
def config():
    return configs.load(
        "aa_wrn28_10:digits", **{"model": SMALL, "data.workers": 0, "ema_decay": 0.0}
    )


@pytest.fixture(scope="module")
def saved(config, tmp_path_factory):
    """A workdir with weights that no training made, and these."""
    workdir, random = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    abstract = make_replicated(config).abstract

    def draw(specs):
        made = {}
        for name, spec in specs.items():
            spread = np.sqrt(6 / max(6, np.prod(spec.shape[:-1])))
            low = 0.5 if name.endswith(("var", "scale")) else -spread
            made[name] = jnp.asarray(random.uniform(low, low + 2 * spread, spec.shape), jnp.float32)
        return made

    arrays = draw(abstract.params), draw(abstract.model_state)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    state = TrainState(jnp.int32(3), *arrays, (), None, jnp.zeros(2, jnp.int32))
    checkpoints.save(3, state, checkpoint_meta(config, {}))
    checkpoints.close()
    return workdir, abstract, arrays


def test_a_classifier_shows_images_classes_and_where_it_looks(config, saved):
    workdir, abstract, arrays = saved
    taken = images.take(config, workdir, None, 4)
    source = make_source(config.data, config.data.eval_split)
    records = [len(source) * n // 4 for n in range(4)]
    assert taken.step == 3
    right = sum(bool(sample.right) for sample in taken.samples)
    assert taken.about == (
        f"4 of the {len(source):,} images of the split test of digits, at equal distances; {right} "
        "of them are classified right."
    )
    mean, std = task_of(config).statistics(config.data)
    pixels = (
        np.stack([np.asarray(source[record].image) for record in records]) / 255
    )  # none is cut or resized
    seen = np.broadcast_to(pixels, (4, 8, 8, 3)).astype(np.float32)
    forward = jax.jit(lambda x: abstract.bind(*arrays)(x, train=False))
    logits = np.asarray(forward((seen - mean) / std))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for sample, record, chance, image in zip(taken.samples, records, chances, seen, strict=True):
        label, best = source[record].label, np.argsort(-chance)[:3]
        assert sample.title == source.describe(record)
        assert sample.right == (best[0] == label)
        assert [name for name, _ in sample.shares] == [source.class_names[n] for n in best]
        np.testing.assert_allclose([share for _, share in sample.shares], chance[best], rtol=1e-4)
        (row,) = sample.compared
        assert row.truth == f"{source.class_names[label]} ({100 * chance[label]:.3g} %)"
        picture, attention = sample.pictures
        shown = np.asarray(Image.open(io.BytesIO(picture.content)))
        assert np.array_equal(shown[::30, ::30], np.rint(255 * image))
        assert attention.caption.startswith("attention of conv3_x.0.conv1, ")
        assert ", mean of 2 heads, to " in attention.caption
        assert Image.open(io.BytesIO(attention.content)).size == (240, 240)


def test_what_is_missing_is_said(config, saved, tmp_path):
    with pytest.raises(CheckpointError, match="no whole step"):
        images.take(config, tmp_path, None, 4)
    elsewhere = config.copy_and_resolve_references()
    elsewhere.data.source = f"folder:{tmp_path / 'gone'}"
    with pytest.raises(DataError, match="gone"):
        images.take(elsewhere, saved[0], None, 4)


def test_a_map_colours_the_part_of_the_image_that_it_names():
    """Attention to the lower right quarter alone: it is bright, the rest stays dim and grey."""
    weights = np.zeros((2, 2), np.float32)
    weights[1, 1] = 0.5
    drawn = overlay.overlay(np.full((8, 8, 3), 0.5, np.float32), weights)
    assert drawn.shape == (240, 240, 3)
    assert drawn[:60, :60] == pytest.approx(0.5 * 0.55)  # grey, dimmed
    corner = drawn[-30:, -30:]
    assert corner.min(axis=(0, 1))[0] > 0.75
    assert (corner[..., 0] > corner[..., 2] + 0.2).all()  # the bright end of the colours is yellow
    assert overlay.words(weights) == "to 50 %\n50 % beyond the border"
    assert overlay.enlarged(8, 8) == 30
    assert overlay.enlarged(640, 480) == 1
    assert np.isfinite(overlay.overlay(np.zeros((8, 8, 3), np.float32), np.zeros((2, 2)))).all()


def test_the_query_is_marked_where_it_is():
    picture = images.attention(
        np.zeros((8, 8, 3), np.float32), np.zeros((1, 2, 2), np.float32), "conv4_x.0", (2, 5)
    )
    assert picture.caption == "attention of conv4_x.0, its head, to 0 %, 100 % beyond the border"
    drawn = np.asarray(Image.open(io.BytesIO(picture.content))).astype(int)
    green = drawn[..., 1] > drawn[..., 0] + 60
    rows, columns = np.nonzero(green)
    assert rows.mean() == pytest.approx(2.5 * 30, abs=1.5)
    assert columns.mean() == pytest.approx(5.5 * 30, abs=1.5)
