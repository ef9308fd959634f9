"""Archives of arrays, as they are written and as somebody might make them."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from trainlib.errors import DataError
from trainlib.formats.npz import read_arrays

MOST = 1 << 20


def header(shape, dtype="<f4"):
    """The beginning of an .npy, without its data."""
    file = io.BytesIO()
    content = {"descr": dtype, "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, content)
    return file.getvalue()


def archive(path, members, packed=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packed) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(save, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a/b": rng.normal(size=(3, 0, 2)),
        "half": rng.normal(size=(5, 7)).astype(np.float16),
        "columns": np.asfortranarray(rng.integers(0, 9, (4, 3))),
        "bits": rng.random(9) < 0.5,
        "text": np.asarray("söme"),
        "big": rng.normal(size=3).astype(">f8"),
    }
    save(tmp_path / "x.npz", **arrays)
    found = read_arrays(tmp_path / "x.npz", MOST)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    "members",
    [
        [("a.npy", header((1 << 40,)))],  # asks for more memory than there is
        [("a.npy", header((-1,)) + b"1234")],
        [("a.npy", header((3,)) + b"1234")],
        [("a.npy", header((1,)) + b"12345678")],
        [("a.npy", header((1,), "|O") + pickle.dumps([1]))],
        [("a.npy", header((1,), [("x", "<f4")]) + b"1234")],
        [("a.npy", b"")],
        [("a.npy", b"\x93NUMPY\x09\x00")],
        [("a.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)],
        [("a.npy", header((1,)) + b"1234"), ("a", header((1,)) + b"1234")],
        [(f"{n}.npy", b"") for n in range(1001)],
        [("a.npy", header((MOST,)) + bytes(4 * MOST))],  # a few kilobytes that unpack to megabytes
    ],
    ids=range(12),
)
def test_what_is_no_plain_array_is_refused(members, tmp_path):
    with pytest.raises(DataError, match=r"x\.npz"):
        read_arrays(archive(tmp_path / "x.npz", members), MOST)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    archive(path, [("a.npy", header((1,)) + b"1234")], zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="another way than deflate"):
        read_arrays(path, MOST)
    np.savez(path, a=np.zeros(1000))
    whole = path.read_bytes()
    for cut in (0, 10, 500, len(whole) - 30):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read_arrays(path, MOST)
    broken = bytearray(whole)
    broken[300] ^= 1  # a bit of the data, which the checksum knows
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match="damaged"):
        read_arrays(path, MOST)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="named pipe"):
        read_arrays(path, MOST)
