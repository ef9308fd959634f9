"""The public names of `moe`, as a stranger uses them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import configs
import moe
from configs.common import load as config_files
from moe.models import architecture, named
from tests.launch.commands import ROOT
from trainlib.errors import ConfigError


def test_importing_moe_imports_nothing_heavy_and_names_are_there():
    code = (
        "import sys, moe\n"
        "bad = [n for n in ('jax', 'flax', 'numpy', 'ml_collections') if n in sys.modules]\n"
        "assert not bad, bad\n"
        "assert dir(moe) == sorted(moe.__all__), dir(moe)\n"
        "from moe import RoutingConfig\n"
        "assert RoutingConfig.__module__ == 'moe.routing.config'\n"
        "assert 'jax' not in sys.modules or moe.route\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert all(getattr(moe, name).__doc__ for name in moe.__all__)
    with pytest.raises(AttributeError, match="'moe' has no attribute 'creat_model'"):
        moe.creat_model  # noqa: B018


SHIPPED = [path.stem for path in config_files.shipped() if path.stem in moe.list_models()]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_means_the_same_model_as_the_configuration_of_that_name(name):
    config = configs.load(name)
    assert named(name) == architecture(config.model, config.routing)


def test_names_are_listed_and_mistakes_named():
    assert len(SHIPPED) == 4
    assert moe.list_models("st_moe_*") == sorted(SHIPPED)
    assert {"t5_1_1_small", "switch_base"} < set(moe.list_models())
    for message, name, options in (
        ("Did you mean 'st_moe_tiny'", "st_moe_tny", {}),
        ("Did you mean 'd_model'", "st_moe_tiny", {"d_modl": 3}),
        ("Did you mean 'top_k'", "st_moe_tiny", {"routing": {"topk": 3}}),
        (r"routing=\{'num_experts': 8\}", "st_moe_tiny", {"num_experts": 8}),
        ("top_k=5 is more than", "st_moe_tiny", {"routing": {"top_k": 5}}),
    ):
        with pytest.raises(ConfigError, match=message):
            moe.create_model(name, rngs=None, **options)
