"""The experiments: one for each table and figure, of configurations that there are."""

import numpy as np
import pytest

from configs.common.cite import _table_fields
from launch.reproduce import catalog
from trainlib.errors import ConfigError
from vitattn import papers

EXPERIMENTS = {experiment.key: experiment for experiment in catalog.experiments()}
MODELS = {
    (exhibit.paper.name, exhibit.name, row.label): row.model
    for exhibit in papers.exhibits()
    for row in papers.published()
    if row.source.startswith(exhibit.paper.arxiv) and row.label in exhibit.labels
}


def test_every_table_and_figure_has_one():
    assert len(EXPERIMENTS) == 8 + 4 + 7 + 5 + 21 + 8
    for experiment in EXPERIMENTS.values():
        assert experiment.scales or experiment.note, experiment.key
        assert bool(experiment.tiny) == bool(experiment.measures), experiment.key
        assert bool(experiment.tiny) == bool(experiment.tiny_is), experiment.key
        assert bool(experiment.compute) == bool(experiment.computed_is), experiment.key
        assert experiment.minutes <= 10, experiment.key
        if experiment.full:
            assert experiment.needs, experiment.key


# A corner of each kind; the others take as long as all other tests of this room together.
CORNERS = (("aa", "table 6"), ("sasa", "table 3"), ("st_moe", "table 5"), ("st_moe", "figure 8"))


@pytest.mark.sample(7)
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[] if key in CORNERS else pytest.mark.thorough)
        for key in EXPERIMENTS
        if EXPERIMENTS[key].full or EXPERIMENTS[key].tiny
    ],
    ids=" ".join,
)
def test_rows_are_different_and_can_be_configured(key):
    experiment = EXPERIMENTS[key]
    for settings in (experiment.full, experiment.tiny):
        rows = [setting.row for setting in settings]
        assert len(rows) == len(set(rows))
        assert len({setting.flags for setting in settings}) == len(rows), "no two are the same"
        for setting in settings:
            config = setting.load(seed="1")
            assert config.seed == 1
            if settings is experiment.full:
                assert config.target, f"{setting.flags}: no pod to compile for"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(key, marks=[] if key in CORNERS else pytest.mark.thorough)
        for key in EXPERIMENTS
        if key[0] != "st_moe" and EXPERIMENTS[key].exhibit.rows
    ],
    ids=" ".join,
)
def test_full_rows_build_the_published_models(key):
    for setting in EXPERIMENTS[key].full:
        model = MODELS.get((*key, setting.row))
        if model is not None:
            assert _table_fields(setting.load().model) == _table_fields(model), setting.row
    assert {s.row for s in EXPERIMENTS[key].full} == set(EXPERIMENTS[key].exhibit.labels)


def test_rows_that_are_left_out_are_said():
    """Of ST-MoE: rows of others' models, rows that cannot be configured, rows of one mixture."""
    for key, experiment in EXPERIMENTS.items():
        labels, full = set(experiment.exhibit.labels), {s.row for s in experiment.full}
        if key[0] == "st_moe" and labels - full and not experiment.compute:
            assert experiment.note, key


def test_places_at_random_are_those_that_are_drawn():
    """Of the blocks without experts as many as have some: by default_rng(0), stack after stack."""
    experiment = EXPERIMENTS["st_moe", "table 16"]
    for blocks, settings in ((24, experiment.full), (4, experiment.tiny)):
        assert {setting.row for setting in settings} == set(experiment.exhibit.labels)
        rng = np.random.default_rng(0)
        plain = [n for n in range(blocks) if n % 4 != 3]
        drawn = [sorted(rng.choice(plain, blocks // 4, replace=False)) for _ in range(2)]
        model = {s.row: s.load().model for s in settings}["Sparse, extra FFN placed at random"]
        places = model.extra_ffn_blocks, model.decoder_extra_ffn_blocks
        assert [list(of_stack) for of_stack in places] == drawn


@pytest.mark.parametrize(
    ("paper", "kind", "number", "message"),
    [
        ("aaa", "table", "1", "Did you mean 'aa'"),
        ("st_moe", "table", "22", "arXiv 2202.08906 has no table 22"),
        ("sasa", "figure", "x", "Its figures: 1 A local window"),
    ],
)
def test_what_there_is_not(paper, kind, number, message):
    with pytest.raises(ConfigError, match=message):
        catalog.find(paper, kind, number)


def test_a_paper_by_its_arxiv_id():
    assert catalog.find("1904.09925", "table", "7").key == ("aa", "table 7")
    assert {e.key[0] for e in catalog.of_paper("2202.08906")} == {"st_moe"}
    assert len(catalog.of_paper(None)) == len(EXPERIMENTS)
