"""Eight simulated CPU devices for every test, set before JAX starts; tests build smaller meshes
from them.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import tiers  # noqa: E402
from tests.compiler import flags  # noqa: E402

os.environ["JAX_PLATFORMS"] = "cpu"
if flags(8) not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags(8)}".strip()


def programs_of_this_session() -> str:
    """A folder for the programs that commands compile, in this process and in others: never the
    user's own. Processes of pytest-xdist share it.
    """
    folder, owner = tempfile.mkdtemp(prefix="vitattn-moe-programs-"), os.getpid()
    atexit.register(lambda: owner == os.getpid() and shutil.rmtree(folder, ignore_errors=True))
    return folder


if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["VITATTN_MOE_COMPILE_CACHE"] = programs_of_this_session()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the processes of pytest-xdist print nothing
        config.pluginmanager.register(tiers.Announcement(config))


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(items):
    tiers.sample(items)


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
    """No file keeps what another one compiled: all of them together take 6 GB in each process."""
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are no part of a test's name: those of an archive hold the time, and processes that
    name a test differently cannot share the suite."""
    return f"{argname}_bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Runs of one configuration share what they compile."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
