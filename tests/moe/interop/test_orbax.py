"""T5X checkpoints that Orbax wrote, as T5X has it do with use_orbax=True: the manager, the names of
its directories and the handler without OCDBT; and what damaged and hostile ones do.
"""

from __future__ import annotations

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import msgpack_utils

from launch import import_weights
from moe import interop
from moe.interop import t5x_io, zstd
from tests.moe.interop import models
from trainlib.errors import CheckpointError, run_command
from trainlib.formats import layout as interchange

NAMES = {"t5": "t5", "st_moe": "flaxformer_scan", "switch_encoder": "flaxformer"}


def nested(leaves):
    tree = {}
    for name, value in leaves.items():
        *outer, leaf = name.split("/")
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def train_state(name, names):
    """What T5X saves, its parameters those of a model of ours, and ours."""
    config = models.config(name)
    values = models.arrays(config)
    leaves = interop.layout(config, "t5x", names).by_leaf()
    theirs = {
        n: jnp.asarray(value)
        for leaf, entries in leaves.items()
        for n, value in interchange.give(entries, values[leaf], None)
    }
    slots = {"token_embedder": {"embedding": {"v_row": jnp.zeros(24), "m": jnp.zeros(1)}}}
    return nested(theirs), {"step": np.int32(7), "param_states": slots}, values


def save(path, target, state, *, use_ocdbt=False, step=7, **options):
    """As `OrbaxCheckpointManagerInterface` of T5X does."""
    tree = {"target": target, "state": state}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
    manager = ocp.CheckpointManager(
        path,
        checkpointers={"state": ocp.Checkpointer(handler)},
        options=ocp.CheckpointManagerOptions(step_prefix="checkpoint"),
    )
    save_args = jax.tree.map(lambda _: ocp.SaveArgs(**options), tree)
    manager.save(step, {"state": tree}, save_kwargs={"state": {"save_args": save_args}})
    manager.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Model -> (directory, ours); arrays of several chunks."""
    root, made = tmp_path_factory.mktemp("orbax"), {}
    for name, names in NAMES.items():
        target, state, values = train_state(name, names)
        save(root / name, target, state, chunk_byte_size=2048)
        made[name] = root / name, values
    return made


def read(path):
    foreign = interop.open_foreign("t5x", path)
    specs = interop.abstract(foreign.config).params
    layout = interop.layout(foreign.config, foreign.kind, foreign.names)
    interchange.match(layout, specs, foreign.shapes).check(path)
    return foreign, {
        leaf: interchange.take(entries, specs[leaf], foreign.shapes, foreign.read)
        for leaf, entries in layout.by_leaf().items()
    }


def as_older_versions(directory):
    """Their tree in msgpack: text for arrays in directories, the arrays that were not split."""
    state = directory / "state"
    target = {}
    for folder in state.glob("target.*"):
        *outer, leaf = folder.name.split(".")[1:]
        node = target
        for part in outer:
            node = node.setdefault(part, {})
        node[leaf] = f"PLACEHOLDER://{folder.name}"
        if leaf == "scale":
            node[leaf] = t5x_io._read(t5x_io._describe(folder))
            shutil.rmtree(folder)
    tree = {"target": target, "state": {"step": np.int32(7)}}
    (state / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize(tree))
    (state / "_METADATA").unlink()
    (directory / "_CHECKPOINT_METADATA").unlink()


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("older", [False, True], ids=["json", "msgpack"])
def test_weights_of_a_train_state(written, tmp_path, name, older):
    source, values = written[name]
    shutil.copytree(source, tmp_path / "run")
    step = tmp_path / "run" / "checkpoint_7"
    assert len(list(step.glob("state/target.token_embedder.embedding/*.0"))) > 1
    if older:
        as_older_versions(step)
    for place in (step.parent, step, step / "state"):
        foreign, back = read(place)
        assert foreign.names == NAMES[name]
        for leaf, value in values.items():
            np.testing.assert_array_equal(back[leaf], value, strict=True)
    assert foreign.config.model.relative_attention_num_buckets == (
        10 if name == "switch_encoder" else 32
    )


def test_the_last_step_and_other_types(tmp_path):
    """save_dtype=bfloat16 of T5X; a temporary directory of a save that was cut off is no step."""
    target, state, values = train_state("t5", "t5")
    for step in (7, 12):
        save(tmp_path, target, state, step=step, dtype=jnp.bfloat16)
    (tmp_path / "checkpoint_40.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert t5x_io.find(tmp_path) == tmp_path / "checkpoint_12" / "state"
    _, back = read(tmp_path)
    kernel = values["encoder.dense.ffn.up"]
    expected = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(back["encoder.dense.ffn.up"], expected)


def test_one_database_is_refused_and_the_advice_works(tmp_path, capsys):
    target, state, values = train_state("t5", "t5")
    save(tmp_path / "database", target, state, use_ocdbt=True)
    flags = ["--format=t5x", f"--out={tmp_path / 'back'}"]
    flags += [f"--path={tmp_path / 'database'}"]
    assert run_command(lambda: import_weights.main(flags)) == 66
    told = " ".join(capsys.readouterr().err.split())
    assert "OCDBT" in told
    assert "PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)" in told
    place = tmp_path / "database" / "checkpoint_7" / "state"
    restored = ocp.PyTreeCheckpointer().restore(place)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
    ocp.Checkpointer(handler).save(tmp_path / "again", args=ocp.args.PyTreeSave(restored))
    _, back = read(tmp_path / "again")
    for leaf, value in values.items():
        np.testing.assert_array_equal(back[leaf], value, strict=True)


# ------------------------------------------------------------------ damaged and hostile
EMBEDDING = "target.token_embedder.embedding"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def renamed(key):
    def change(state):
        def rename(content):
            leaf = next(v for k, v in content["tree_metadata"].items() if "embedding" in k)
            leaf["key_metadata"][0]["key"] = "target"
            leaf["key_metadata"][1]["key"] = key

        edit(state / "_METADATA", rename)

    return change


def metadata(**values):
    return lambda state: edit(state / "_METADATA", lambda content: content.update(values))


def zarray(**values):
    return lambda state: edit(state / EMBEDDING / ".zarray", lambda content: content.update(values))


def chunk(make):
    def change(state):
        path = state / EMBEDDING / "0.0"
        data = path.read_bytes()
        path.unlink()
        if (new := make(data)) is not None:
            path.write_bytes(new)

    return change


def frame(blocks, size):
    return zstd.MAGIC + b"\xa0" + size.to_bytes(4, "little") + b"".join(blocks)


def run(length, last=0):
    """A block of one byte, repeated."""
    return (last | 1 << 1 | length << 3).to_bytes(3, "little") + b"x"


def link(state):
    shutil.move(state, state.with_name("moved"))
    os.symlink(state.with_name("moved"), state)


def link_chunk(state):
    path = state / EMBEDDING / "0.0"
    shutil.move(path, state / "moved")
    os.symlink(state / "moved", path)


BOMB = frame([run(131072)] * 40_000 + [run(1, 1)], 128 * 24 * 4)
HOSTILE = {
    "a chunk is missing": (chunk(lambda data: None), "cannot be read"),
    "a chunk is a link": (link_chunk, "symbolic link"),
    "a chunk is empty": (chunk(lambda data: b""), "no zstd frame"),
    "a chunk is cut off": (chunk(lambda data: data[:-9]), "cut off"),
    "a chunk has more behind it": (chunk(lambda data: data + b"more"), "something after it"),
    "a chunk of garbage": (chunk(lambda data: b"garbage" * 99), "no zstd frame"),
    "a chunk of another size": (chunk(lambda data: frame([run(9, 1)], 9)), "in place of"),
    "a chunk that becomes 5 GB": (chunk(lambda data: BOMB), "far more than"),
    "a shape larger than the chunks": (zarray(shape=[128, 24000], chunks=[128, 24000]), "zstd"),
    "more chunks than there are": (zarray(shape=[128, 2400]), "cannot be read"),
    "another codec": (zarray(compressor={"id": "blosc"}), "gzip, zstd or no compression"),
    "a codec that is a list": (zarray(compressor={"id": [1]}), "gzip, zstd or no compression"),
    "the state is a link": (link, "symbolic link"),
    "a name that climbs": (renamed(".."), "holds the name"),
    "a name with a slash": (renamed("../../etc"), "holds the name"),
    "a name that is a number": (renamed(3), "holds the name"),
    "an array that is not there": (renamed("absent"), "cannot be read"),
    "zarr version 3": (metadata(use_zarr3=True), "zarr version 3"),
    "no tree": (metadata(tree_metadata=[]), "tree_metadata"),
    "a leaf without keys": (metadata(tree_metadata={"a": {}}), "key_metadata"),
    "keys that are none": (metadata(tree_metadata={"a": {"key_metadata": [1]}}), "list of keys"),
    "no parameters": (metadata(tree_metadata={}), "not those of a T5 1.1"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_damaged_is_refused(written, tmp_path, name):
    target, state, _ = train_state("t5", "t5")
    source = written["t5"][0].parent / "whole"
    if not source.exists():
        save(source, target, state)
    shutil.copytree(source / "checkpoint_7", tmp_path / "checkpoint_7")
    change, told = HOSTILE[name]
    change(tmp_path / "checkpoint_7" / "state")
    with pytest.raises(CheckpointError, match=told):
        interop.open_foreign("t5x", tmp_path).read("token_embedder/embedding")


@pytest.mark.parametrize("place", ["PLACEHOLDER://../secret", "PLACEHOLDER:///etc", "elsewhere"])
def test_text_that_names_another_place_is_refused(written, tmp_path, place):
    state = tmp_path / "checkpoint_3" / "state"
    state.mkdir(parents=True)
    tree = {"target": {"a": {"kernel": place}}}
    (state / "checkpoint").write_bytes(msgpack_utils.msgpack_serialize(tree))
    with pytest.raises(CheckpointError, match=r"lies at|holds str"):
        t5x_io.Checkpoint(tmp_path)


@pytest.mark.parametrize("size", [1, 255, 256, 65_000, 300_000, 3_000_000])
@pytest.mark.parametrize("random", [False, True])
def test_zstd_of_tensorstore(size, random):
    """Frames of every form of their header, of one block and of many."""
    import tensorstore

    data = np.full(size, 3, np.uint8)
    if random:
        data = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    store = tensorstore.KvStore.open({"driver": "memory"}).result()
    metadata = {"shape": [size], "chunks": [size], "compressor": {"id": "zstd", "level": 1}}
    spec = {"driver": "zarr", "metadata": metadata | {"dtype": "|u1"}}
    tensorstore.open(spec, kvstore=store, create=True).result().write(data).result()
    packed = store["0"]
    assert zstd.unpack(packed, size) == data.tobytes()
    assert len(packed) <= zstd.most_packed(size)
    with pytest.raises(ValueError, match="in place of"):
        zstd.unpack(packed, size + 1)
    with pytest.raises(ValueError, match="cut off"):
        zstd.unpack(packed[:-1], size)
