"""The cache of compiled programs: what it saves, and that nothing in it can spoil a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.harness import source_graph
from trainlib import compile_cache
from trainlib.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX's settings are given back, and no variable of this session decides."""
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setattr(compile_cache, "_warned", set())
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = compile_cache.enable(str(tmp_path / "programs"))
    assert found is not None
    return found


def computed() -> tuple[list[float], int]:
    """The result of a program with a donated argument, compiled as in a new process, and how many
    programs the cache gave.
    """
    hits: list[str] = []

    def listen(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_listener(listen)
    try:
        step = jax.jit(lambda state, x: state * 0.5 + jnp.sin(x).sum(), donate_argnums=0)
        state, x = jnp.arange(4.0), jnp.arange(8.0)
        for _ in range(3):
            state = step(state, x)
        return state.tolist(), len(hits)
    finally:
        jax.monitoring.unregister_event_listener(listen)


def programs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.program"))


@pytest.mark.thorough
def test_the_second_start_compiles_nothing(folder):
    result, hits = computed()
    assert not hits
    assert len(programs(folder)) >= 1
    again, hits = computed()
    assert again == result
    assert hits == len(programs(folder))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c + b"\0", lambda c: c[:20]],
    ids=["a bit", "half of it", "empty", "longer", "less than its digest"],
)
def test_a_damaged_entry_is_compiled_again_and_replaced(folder, damage, recwarn):
    result, _ = computed()
    whole = {path: path.read_bytes() for path in programs(folder)}
    for path, content in whole.items():
        path.write_bytes(damage(content))
    assert computed() == (result, 0)
    assert computed() == (result, len(whole))
    assert set(programs(folder)) == set(whole)
    assert not [str(w.message) for w in recwarn if "compilation cache" in str(w.message)]


def test_an_entry_in_the_place_of_another_is_not_run(folder):
    result, _ = computed()
    paths = programs(folder)
    for path, other in zip(paths, [p.read_bytes() for p in paths[1:] + paths[:1]], strict=True):
        path.write_bytes(other)
    assert len(paths) > 1
    assert computed() == (result, 0)


def test_an_entry_that_others_could_have_written_is_not_run(folder):
    result, _ = computed()
    paths = programs(folder)
    paths[0].chmod(0o660)
    moved = folder / "moved"
    paths[1].rename(moved)
    paths[1].symlink_to(moved)
    assert computed() == (result, len(paths) - 2)


def test_only_this_user_may_write_where_programs_lie(tmp_path, capsys):
    root = tmp_path / "programs"
    folder = compile_cache.enable(str(root))
    assert {path.stat().st_mode & 0o777 for path in (root, folder)} == {0o700}
    root.chmod(0o770)
    assert compile_cache.enable(str(root)) is None
    assert "others may write" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path, capsys):
    os.chown(tmp_path, 12345, -1)
    assert compile_cache.enable(str(tmp_path)) is None
    assert "belongs to another user" in capsys.readouterr().err


def test_no_place_for_it_is_a_warning_and_no_more(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", Path("/proc/nowhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        assert compile_cache.enable() is None
        assert str(home) in capsys.readouterr().err
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compile_cache.enable() is None
    assert capsys.readouterr().err.startswith("warning: ")
    assert computed()[1] == 0


def test_a_full_disk_is_said_once(folder, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert computed()[1] == 0
    assert capsys.readouterr().err.count("No space left") == 1
    assert not list(folder.iterdir())


def test_many_may_write_one_entry_at_once(folder, capsys):
    entries = compile_cache.Programs(folder)
    value = bytes(100_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: entries.put("key", value), range(40)))
    assert entries.get("key") == value
    assert len(list(folder.iterdir())) == 1
    assert not capsys.readouterr().err


def test_what_was_used_last_stays_and_what_others_keep_there(tmp_path):
    """Any directory may be named, one with other things in it as well."""
    machine, others = tmp_path / "jax-1-x-0", tmp_path / "thesis"
    names = [f"{letter * 40}.program" for letter in "abcd"]
    unfinished = machine / f"{'e' * 40}.{'0' * 16}.tmp"
    foreign = [others / "draft.tmp", others / f"{'e' * 40}.program", machine / "notes.tmp"]
    for age, path in enumerate([*(machine / name for name in names), unfinished, *foreign]):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (10_000 - age, 10_000 - age))
    compile_cache.bound(tmp_path, most=250)
    left = sorted([*(machine / name for name in names[:2]), *foreign])
    assert sorted(tmp_path.glob("*/*")) == left


def test_who_decides_where_it_lies(monkeypatch, tmp_path):
    """The flag, then our variable, then JAX's own setting, then the user's cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    default = compile_cache.enable()
    assert default.parent == tmp_path / "home" / "vitattn-moe" / "programs"
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    assert compile_cache.enable() == tmp_path / "jax"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "ours"))
    assert compile_cache.enable().parent == tmp_path / "ours"
    assert compile_cache.enable(str(tmp_path / "flag")).parent == tmp_path / "flag"
    assert compile_cache.enable("off") is None
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(compile_cache.VARIABLE, "off")
    assert compile_cache.enable() is None


def test_a_flag_that_is_no_path_is_refused():
    with pytest.raises(ConfigError, match="--compile_cache"):
        compile_cache.enable("gs://bucket/programs")


def test_a_users_own_cache_of_jax_is_left_to_jax(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    compile_cache.enable()
    computed()
    assert list(tmp_path.glob("*-cache"))


def test_a_jax_whose_cache_is_not_known_has_none(monkeypatch, tmp_path, capsys):
    from jax._src import compilation_cache as inner

    monkeypatch.delattr(inner, "get_file_cache")
    assert compile_cache.enable(str(tmp_path / "programs")) is None
    assert "this version of JAX" in capsys.readouterr().err


def test_only_commands_switch_it_on():
    """Whoever imports the library decides on a cache of their own."""
    graph = source_graph.file_graph(source_graph.python_files(ROOT))
    users = {file for file, imports in graph.items() if "trainlib.compile_cache" in imports}
    assert users
    assert {file.split(".")[0] for file in users} == {"launch", "benchmarks"}
