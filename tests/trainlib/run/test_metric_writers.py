"""metrics.jsonl: exact floats, repair after a kill, cuts on resume; TensorBoard events."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from trainlib.errors import StorageError
from trainlib.run import metric_writers as writers
from trainlib.run.metric_writers import JsonLines, TensorBoard, Writers, read


def write_steps(path, steps, start=0):
    writer = JsonLines(path, start)
    for step in steps:
        writer.write(step, "train", {"loss": np.float32(1 / step)})
    writer.close()


def test_f32_values_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(2**32, size=500, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    writer = JsonLines(tmp_path / "m.jsonl")
    for step, value in enumerate(values):
        writer.write(step, "train", {"loss": jnp.asarray(value) if step % 2 else value})
    writer.close()
    back = np.array([record["loss"] for record in read(tmp_path / "m.jsonl")], np.float32)
    np.testing.assert_array_equal(back, values)


def test_every_line_is_strict_json_even_with_nan(tmp_path):
    writer = JsonLines(tmp_path / "m.jsonl")
    writer.write(
        3, "eval", {"a": math.nan, "b": math.inf, "c": -math.inf, "n": 7, "note": "x", "e": None}
    )
    line = (tmp_path / "m.jsonl").read_text()

    def refuse(word):
        raise AssertionError(word)

    record = json.loads(line, parse_constant=refuse)
    assert record == {
        **{"step": 3, "kind": "eval", "a": "NaN", "b": "Infinity", "c": "-Infinity"},
        **{"n": 7, "note": "x", "e": None},
    }
    (record,) = read(tmp_path / "m.jsonl")
    assert math.isnan(record["a"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


def test_a_resumed_series_is_as_if_nothing_had_happened(tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write_steps(whole, range(1, 31))
    write_steps(broken, range(1, 18))  # killed at 17, checkpoint at 10
    write_steps(broken, range(11, 24), start=10)  # killed at 23, checkpoint at 20
    write_steps(broken, range(21, 31), start=20)
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["broken.jsonl", "whole.jsonl"]


def test_every_place_to_be_killed_in_a_line_is_repaired(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, range(1, 4))
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for length in range(len(lines[2])):
        path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
        write_steps(path, [3], start=2)
        assert path.read_bytes() == content
        path.write_bytes(b"".join(lines[:2]) + lines[2][:length])
        assert [record["step"] for record in read(path)] == [1, 2]


def test_a_half_line_without_its_newline_is_cut_even_at_an_earlier_step(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}')
    JsonLines(path, 5).close()
    assert [record["step"] for record in read(path)] == [1]
    assert path.read_bytes().endswith(b"\n")


def test_damage_in_the_middle_is_removed_and_said(tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff\n[1]\n{"step": "x"}\n{"step": 2}\n')
    JsonLines(path, 5).close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert "3 damaged lines were removed" in " ".join(capsys.readouterr().err.split())


def test_an_intact_file_is_not_rewritten(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, range(1, 4))
    inode = path.stat().st_ino
    JsonLines(path, 3).close()
    assert path.stat().st_ino == inode


def test_a_kill_during_the_cut_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    write_steps(path, range(1, 6))
    content = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writers.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        JsonLines(path, 2)
    assert path.read_bytes() == content
    monkeypatch.undo()
    JsonLines(path, 2).close()
    assert [record["step"] for record in read(path)] == [1, 2]


def test_a_record_is_on_disk_as_soon_as_it_is_written(tmp_path):
    program = (
        "import os, sys; from trainlib.run.metric_writers import JsonLines\n"
        "JsonLines(sys.argv[1]).write(1, 'train', {'loss': 0.5}); os._exit(9)"
    )
    path = tmp_path / "m.jsonl"
    root = Path(writers.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, cwd=root)
    assert done.returncode == 9
    assert [record["loss"] for record in read(path)] == [0.5]


def test_a_missing_directory_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"absent.*m\.jsonl.*--workdir") as caught:
        JsonLines(tmp_path / "absent" / "m.jsonl")
    assert caught.value.exit_code == 74


def test_a_disk_that_fills_up_within_a_line_is_a_storage_error_and_is_repaired(tmp_path):
    path = tmp_path / "m.jsonl"
    write_steps(path, [1])
    writer = JsonLines(path, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = path.stat().st_size + 10  # the system takes 10 bytes of the next line, then no more
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(StorageError, match=r"m\.jsonl"):
            writer.write(2, "train", {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.stat().st_size == soft
    write_steps(path, [2], start=1)
    assert [record["loss"] for record in read(path)] == [1.0, 0.5]


def events(directory):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the package is whole)

    found = []
    for file in sorted(directory.iterdir()):
        data, position = file.read_bytes(), 0
        while position < len(data):  # TFRecord: length u64, crc u32, payload, crc u32
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            found += [("restart", event.step)] * (event.session_log.status == 1)
            position += 16 + length
    return found


def test_tensorboard_gets_the_numbers_and_is_purged_on_resume(tmp_path):
    writer = TensorBoard(tmp_path)
    writer.write(1, "train", {"loss": np.float32(0.5), "note": "text", "none": None})
    writer.write(2, "eval", {"top1": 1})
    writer.close()
    assert events(tmp_path) == [(1, "train/loss", 0.5), (2, "eval/top1", 1.0)]
    resumed = TensorBoard(tmp_path, step=1)
    resumed.close()
    assert events(tmp_path)[-1] == ("restart", 2)


def write_steps_of(writer, steps):
    for step in range(steps):
        writer.write(step, "train", {"loss": 1.0})


def test_tensorboard_takes_what_is_not_defined_without_a_word(tmp_path, caplog):
    writer = TensorBoard(tmp_path / "t")
    writer.write(1, "train", {"mean_of_nothing": math.nan})
    writer.close()
    assert not caplog.records


def test_a_full_disk_stops_the_events_instead_of_holding_the_run(tmp_path):
    writer = TensorBoard(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write_steps_of(writer, 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writers_write_both(tmp_path):
    run = Writers(tmp_path)
    run.write(4, "train", {"loss": 0.25})
    run.close()
    assert list(read(tmp_path / "metrics.jsonl")) == [{"step": 4, "kind": "train", "loss": 0.25}]
    assert events(tmp_path / "tensorboard") == [(4, "train/loss", 0.25)]
    plain = tmp_path / "plain"
    plain.mkdir()
    Writers(plain, tensorboard=False).close()
    assert [file.name for file in plain.iterdir()] == ["metrics.jsonl"]


def test_pytorch_is_not_loaded_for_scalars(tmp_path):
    pytest.importorskip("torch")
    code = (
        "import sys\n"
        "from trainlib.run.metric_writers import Writers\n"
        f"Writers({str(tmp_path)!r}).write(1, 'train', {{'loss': 1.0}})\n"
        "assert 'tensorboardX' in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
