"""Every shipped vision configuration and variant: builds, counts as published, trains a step."""

import re

import jax
import numpy as np
import pytest

from configs.common import load
from trainlib.config import differences, flatten
from trainlib.errors import ConfigError
from trainlib.model import weights as nn
from trainlib.sharding.mesh import make_mesh
from trainlib.sharding.rules import batch_parts, batch_sharding
from trainlib.step import schedules, step
from trainlib.step import train_state as state
from trainlib.step.optimizers import make_optimizer
from vitattn import config as config_lib
from vitattn import papers
from vitattn.classification import objective as classify
from vitattn.data import make_source, train_batches
from vitattn.models import build
from vitattn.models.counts import params_by_part
from vitattn.models.resnet.config import STAGES

FILES = {path.stem: load.load_module(path) for path in load.shipped()}
MODULES = {
    stem: module
    for stem, module in FILES.items()
    if module.get_config("").get("task") == "classification"
}
NAMES = [(stem, v) for stem, module in MODULES.items() for v in ("", *module.VARIANTS)]
PAPERS = {
    (f"arXiv {row.source}", row.top1, row.top5, row.params, float(row.gflops or 0)): row
    for row in papers.published()
}

# Exact parameters of the models that the files are named after.
EXPECTED = {
    "aa_mnasnet": 4_056_046,
    "aa_resnet34": 20_745_072,
    "aa_resnet50": 25_809_392,
    "aa_resnet101": 45_386_728,
    "aa_resnet152": 61_613_536,
    "aa_wrn28_10": 36_054_100,
    "mnasnet": 3_887_038,
    "resnet50": 25_557_032,
    "sasa_resnet26": 10_331_264,
    "sasa_resnet38": 14_173_384,
    "sasa_resnet50": 18_015_504,
    "wrn28_10": 36_278_324,
}

# Variants that are no row of a table, because the papers have none (or print it for depth 50 only).
UNPUBLISHED = re.compile(
    r":digits|reproduce_|:halo|:gather_excite|sasa.*:width"
    r"|sasa_resnet(26|38):(stem|position|window|stages)"
)


def counted(config) -> int:
    return nn.abstract(build(config.model)).param_count


def test_every_published_file_is_there():
    assert set(EXPECTED) <= set(MODULES)


@pytest.mark.sample(12)
@pytest.mark.parametrize(("stem", "variant"), NAMES, ids=lambda part: part or "-")
def test_builds_and_cites_exactly_what_it_is(stem, variant):
    config = MODULES[stem].get_config(variant)
    assert config.name == f"{stem}:{variant}".rstrip(":")
    config_lib.check(config, batch_parts(config_lib.sharding_rules(config), make_mesh()))
    schedule = schedules.make_schedule(config.schedule, config.steps)
    abstract = nn.abstract(build(config.model))
    make_optimizer(config.optimizer, schedule, abstract.params)
    assert sum(params_by_part(abstract).values()) == abstract.param_count
    if not variant and stem in EXPECTED:
        assert abstract.param_count == EXPECTED[stem]
    published = config.published
    if config.name == "wrn28_10:gather_excite":
        assert (published.top1, published.top5) == (79.8, 95.0)
    elif UNPUBLISHED.search(config.name):
        assert not published.source
        assert not published.top1
    else:
        printed = published.params.rstrip("M")
        scores = (published.top1, published.top5, printed, published.gflops)
        row = PAPERS[published.source, *scores]
        assert abstract.param_count == nn.abstract(build(row.model)).param_count
    assert abs(float(schedule(config.steps // 2))) > 0


@pytest.mark.parametrize("stem", EXPECTED)
def test_the_docstring_is_the_claim(stem):
    module = MODULES[stem]
    text, config = " ".join(module.__doc__.split()), module.get_config("")
    published = config.published
    words = [f"{counted(config):,} parameters", f"top-1 {published.top1} %", "(table "]
    words += [f"--config=configs/{stem}.py --workdir", f"--config=configs/{stem}.py:digits"]
    words += [f"{published.params[:-1]} M parameters", "TPU v3", "Never run"]
    words += [f"top-5 {published.top5} %"] if published.top5 else []
    for word in words:
        assert word in text, word
    for variant in module.VARIANTS:
        assert re.search(rf"\b{variant}\b|window3 \.\. |stages345 \.\. ", text), variant


def test_recipes_are_those_of_the_papers():
    config = MODULES["aa_resnet50"].get_config()
    assert config.schedule.learning_rate == pytest.approx(0.128 * 4)
    assert config.steps == pytest.approx(100 * 1_281_167 / 1024, abs=1)
    wide, augmented = (MODULES[n].get_config() for n in ("wrn28_10", "aa_wrn28_10"))
    assert (wide.batch_size, wide.optimizer.weight_decay) == (1024, 2e-4)
    assert (augmented.batch_size, augmented.optimizer.weight_decay) == (256, 5e-4)
    for config in (wide, augmented):
        assert config.steps * config.batch_size == pytest.approx(500 * 50_000, rel=1e-4)
        schedule = schedules.make_schedule(config.schedule, config.steps)
        assert float(schedule(config.schedule.warmup_steps)) == pytest.approx(
            0.2 * config.batch_size / 256, rel=1e-5
        )
        assert float(schedule(config.steps)) == pytest.approx(0, abs=1e-6)
    config = MODULES["sasa_resnet50"].get_config()
    assert config.steps == pytest.approx(130 * 1_281_167 / 4096, abs=1)
    assert (config.ema_decay, config.model.bn_decay) == (0.9999, 0.9999)


def test_mnasnet_with_attention_halves_the_rate_and_ends_at_the_same():
    rates = []
    for name in ("mnasnet", "aa_mnasnet"):
        config = MODULES[name].get_config()
        schedule = schedules.make_schedule(config.schedule, config.steps)
        rates.append([float(schedule(s)) for s in (config.schedule.warmup_steps, config.steps)])
    (start, end), (start_augmented, end_augmented) = rates
    assert start == pytest.approx(0.016 * 4 * 0.97**2, rel=1e-4)
    assert start_augmented == pytest.approx(start / 2, rel=0.02)
    assert end_augmented == pytest.approx(end, rel=1e-4)


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        MODULES["sasa_resnet26"].get_config("digit")


# Compiling decides the time, so models that are the same on digits train once.
SAME = {"aa_resnet152": "aa_resnet101", "sasa_resnet38": "sasa_resnet26"}
SAME["sasa_resnet50"] = "sasa_resnet26"


@pytest.mark.thorough
@pytest.mark.parametrize(("stem", "other"), SAME.items())
def test_small_digits_models_of_deeper_networks_are_the_same(stem, other):
    values, others = (flatten(MODULES[name].get_config("digits")) for name in (stem, other))
    assert set(differences(values, others)) == {"name", "model.depth"}
    blocks = {
        len(getattr(build_digits(name), f"conv{s}_x")) for name in (stem, other) for s in STAGES
    }
    assert blocks == {1}


def build_digits(stem):
    return build(MODULES[stem].get_config("digits").model)


# Each takes 10 to 30 seconds to compile: the default run takes one, the soak all of them.
QUICK = ("sasa_resnet26",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(stem, marks=() if stem in QUICK else pytest.mark.slow)
        for stem in EXPECTED
        if stem not in SAME
    ],
)
def test_a_step_on_digits(stem):
    """One step of the real program on real images: finite, and every weight that can move does."""
    config = MODULES[stem].get_config("digits")
    config.schedule.warmup_steps = 0
    config.batch_size = 8
    mesh, rules = make_mesh(devices=jax.devices()[:1]), config_lib.sharding_rules(config)
    abstract = nn.abstract(build(config.model))
    schedule = schedules.make_schedule(config.schedule, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, abstract.params)
    shardings = state.state_shardings(abstract, optimizer, mesh, rules, with_ema=True)
    first = jax.device_put(drawn(state.abstract_state(abstract, optimizer, shardings)), shardings)
    before = {name: np.array(value) for name, value in first.params.items()}
    loss = classify.loss_function(abstract, config.label_smoothing)
    run = step.make_train_step(loss, optimizer, seed=0, ema_decay=config.ema_decay)
    # Little is computed, so what counts is the time of compilation.
    cheap = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    source = make_source(config.data, "train")
    rows = batch_sharding(rules, mesh)
    with train_batches(source, config.data, 8, 0, 0, 0, 1, config.model.image_size) as batches:
        batch = step.put_batch(
            {k: v for k, v in next(batches).items() if k in classify.FIELDS}, rows
        )
    after, sums = jax.jit(run).lower(first, batch).compile(cheap)(first, batch)
    assert int(after.step) == 1
    assert np.isfinite(float(sums["loss"][0]))
    assert int(after.skipped[0]) == 0
    moved = [n for n, value in after.params.items() if np.any(np.asarray(value) != before[n])]
    assert len(moved) > 0.9 * len(before)


def drawn(like):
    """Small positive numbers for every array of a state, which compile nothing."""
    rng = np.random.default_rng(0)

    def fill(x):
        if x.dtype != np.float32:
            return np.zeros(x.shape, x.dtype)
        return rng.uniform(0.01, 0.1, x.shape).astype(x.dtype)

    return jax.tree.map(fill, like)
