"""wendelin export of slices: what NumPy selects, in each kind of file; blocks are copied whole."""

import os
import shutil

import numpy as np
import pytest
import transaction

import wendelin
from wendelin import ZRagged
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.address import parse_index
from wendelin.cli.files import flat
from wendelin.cli.stored import StoredArray
from wendelin.lib.zodb import dbclose, dbopen
from wendelin.zarr import ZarrGroup

BLOCK = 1 << 16
C = np.arange(40 * 50 * 60, dtype="i4").reshape(40, 50, 60)
LONG = np.arange(20 * BLOCK // 8, dtype="f8")
PIECE = np.arange(300, dtype="f8").reshape(100, 3)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Return the path of a database, which tests only read."""
    path = str(tmp_path_factory.mktemp("slices") / "x.fs")
    root = dbopen(path)
    for name, order in ("C", "C"), ("F", "F"):
        root[name] = A = ZBigArray(C.shape, C.dtype, order, blksize=BLOCK)
        A.attrs["_ARRAY_DIMENSIONS"] = ["t", "y", "x"]
        A.attrs["units"] = "K"
    root["long"] = ZBigArray(LONG.shape, LONG.dtype, blksize=BLOCK)
    root["wide"] = ZBigArray((30, 4 * BLOCK), "u1", blksize=BLOCK)
    root["holes"] = ZBigArray((20 * BLOCK,), "u1", blksize=BLOCK)
    root["huge"] = ZBigArray((1 << 70,), "u1")
    root["pieces"] = R = ZRagged("f8", row=(3,), blksize=BLOCK)
    transaction.commit()
    for name in "CF":
        root[name][...] = C
    root["long"][...] = LONG
    root["wide"][:] = np.arange(30)[:, None]
    root["holes"][7 * BLOCK + 5] = 1
    R.put("other", PIECE[:7] + 1000)
    R.put("first", PIECE)
    transaction.commit()
    dbclose(root)
    return path


INDICES = [
    "3", "-1, 2", "3:7", "3:4, 10:20", "5, 6, 7", "...", ":", "::-1", "30:2:-3, ..., ::7", "7:7",
    "1:3, 5:5", "..., -1", ":, 3, 10:12", "5:1000", "2, ::-1, 59:0:-20", ":, :, 4:6",
]  # fmt: skip


@pytest.mark.parametrize("name", ["C", "F"])
def test_a_slice_is_what_numpy_selects(url, tmp_path, call, name):
    for index in INDICES:
        call("export", "--force", "--step", "64K", f"{url}#{name}[{index}]", tmp_path / "x.npy")
        found, expected = np.load(tmp_path / "x.npy"), C[parse_index(index)]
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape, index
        assert np.array_equal(found, expected), index


def test_every_kind_of_file(url, tmp_path, call):
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    expected = C[3:9:2, 5]
    for suffix in "npz", "raw", "csv", "h5", "zarr", "yaml":
        for name in "C", "F":
            call("export", "--force", f"{url}#{name}[3:9:2, 5]", tmp_path / f"x.{suffix}")
            read = {
                "npz": lambda p: np.load(p)[name],  # noqa: B023
                "raw": lambda p: np.fromfile(p, "i4").reshape(
                    expected.shape,
                    order=name,  # noqa: B023
                ),
                "csv": lambda p: np.loadtxt(p, delimiter=","),
                "h5": lambda p: h5py.File(p)[name][...],  # noqa: B023
                "zarr": lambda p: zarr.open(p)[...],
                "yaml": lambda p: np.fromfile(p.with_suffix(".array"), "i4").reshape(
                    expected.shape
                ),
            }[suffix]
            assert np.array_equal(read(tmp_path / f"x.{suffix}"), expected), (suffix, name)
    attrs = zarr.open(tmp_path / "x.zarr")
    assert attrs.attrs["units"] == "K"
    assert attrs.metadata.dimension_names == ("t", "x")


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_columns(url, tmp_path, call, suffix):
    """Fields and columns of rows, also of an array in Fortran order."""
    pytest.importorskip("pyarrow")
    for name in "C", "F":
        call("export", "--force", f"{url}#{name}[3:9:2, 5, :4]", out := tmp_path / f"x.{suffix}")
        call("import", out, f"{tmp_path / 'new.fs'}#{name}")
        with wendelin.open(tmp_path / "new.fs") as g:
            columns = [g[name][key][:] for key in g[name]]
        assert np.array_equal(np.transpose(columns), C[3:9:2, 5, :4])


def test_slices_of_pieces_and_of_zarr(url, tmp_path, call):
    zarr = pytest.importorskip("zarr")
    for index in "10:20", "::-7, 1", "5":
        call("export", "--force", f"{url}#pieces/first[{index}]", tmp_path / "x.npy")
        assert np.array_equal(np.load(tmp_path / "x.npy"), PIECE[parse_index(index)])
    call("export", f"{url}#pieces/first", tmp_path / "x.yaml")
    assert (tmp_path / "x.array").read_bytes() == PIECE.tobytes()
    url = shutil.copy(url, tmp_path)
    with wendelin.open(url) as g:
        g["z"] = Z = ZarrGroup()
        zarr.open_group(Z.store()).create_array("a", data=C, chunks=(7, 50, 60))
    for index in INDICES:
        call("export", "--force", f"{url}#z/a[{index}]", tmp_path / "x.npy")
        assert np.array_equal(np.load(tmp_path / "x.npy"), C[parse_index(index)]), index


def test_the_kernel_copies_blocks(url, tmp_path, call, monkeypatch):
    """Python does not read a slice that is one run of the array and lies in blocks of the file."""
    copied = []
    real = os.copy_file_range

    def copy(source, target, size, offset, at):
        copied.append(n := real(source, target, size, offset, at))
        return n

    def read(*args):
        raise AssertionError("it is read")

    monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(flat, "share_range", lambda *args: False)  # as most file systems
    monkeypatch.setattr(StoredArray, "read", read)
    rows = BLOCK // 8
    for name in "x.npy", "x.raw", "x.yaml":
        for start, stop in (rows, 5 * rows), (100, 3 * rows + 1), (rows + 1, rows + 2):
            copied.clear()
            call("export", "--force", f"{url}#long[{start}:{stop}]", tmp_path / name)
            assert sum(copied) == (stop - start) * 8
    assert np.array_equal(np.fromfile(tmp_path / "x.array", "f8"), LONG[rows + 1 : rows + 2])
    call("export", f"{url}#wide[7:9]", tmp_path / "wide.npy")
    assert np.array_equal(np.load(tmp_path / "wide.npy")[:, 0], [7, 8])
    call("export", f"{url}#holes[{3 * BLOCK + 5}:{19 * BLOCK}]", tmp_path / "holes.raw")
    holes = np.fromfile(tmp_path / "holes.raw", "u1")
    assert holes.size == 16 * BLOCK - 5
    assert holes.nonzero()[0].tolist() == [4 * BLOCK]
    assert os.stat(tmp_path / "holes.raw").st_blocks * 512 <= 3 * BLOCK


def test_blocks_between_are_not_loaded(url, tmp_path, call, monkeypatch):
    spans = []
    real = StoredArray.read

    def read(self, idx):
        start, stop = self._span(self._split(idx)[0])
        spans.append(stop - start)
        return real(self, idx)

    monkeypatch.setattr(StoredArray, "read", read)
    call("export", f"{url}#wide[::3, 5:7]", tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.arange(0, 30, 3)[:, None].repeat(2, 1))
    assert spans == [2] * 10


def test_an_interrupted_export_goes_on_with_the_same_slice(url, tmp_path, call, monkeypatch):
    from wendelin.cli.slices import _SliceSource

    real = _SliceSource._read

    def fails(self, start, stop):
        if start:
            raise OSError(28, "No space left on device")
        return real(self, start, stop)

    args = ("export", "--json", "--step", "64K", f"{url}#long[::-2]", tmp_path / "x.npy")
    with monkeypatch.context() as m:
        m.setattr(_SliceSource, "_read", fails)
        assert "the same command goes on" in call(*args, code=1).stderr
    for other in f"{url}#long[1::2]", f"{url}#long":
        assert "of another export (index" in call(*args[:4], other, args[5], code=1).stderr
    assert call(*args).json["resumed_at"] == 1 << 16
    assert np.array_equal(np.load(tmp_path / "x.npy"), LONG[::-2])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("C[40]", "C of shape (40, 50, 60) has no such part: index 40 is out of bounds"),
        ("C[1, 2, 3, 4]", "too many indices"),
        ("C[::0]", "slice step cannot be zero"),
        ("huge[5:]", f"has {(1 << 70) - 5} bytes: a file cannot have more"),
        ("pieces[:3]", "pieces is a ZRagged: a slice is of one piece, as in"),
        ("pieces/first[200]", "first of shape (100, 3) has no such part"),
        ("[3]", "a slice is of an array"),
    ],
)
def test_a_wrong_slice_is_one_line(url, tmp_path, call, address, message):
    error = call("export", f"{url}#{address}", tmp_path / "x.npy", code=1).stderr
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.npy.part").exists()


def test_a_part_of_what_is_larger_than_the_address_space(url, tmp_path, call):
    call("export", f"{url}#huge[{1 << 69}:{(1 << 69) + 5}]", tmp_path / "x.raw")
    assert (tmp_path / "x.raw").read_bytes() == bytes(5)


def test_a_slice_of_a_damaged_block_is_not_copied(url, tmp_path, call):
    url = shutil.copy(url, tmp_path)
    with open(url, "r+b") as file:
        at = file.read().index(LONG[BLOCK // 8 :][:8].tobytes())
        file.seek(at)
        file.write(b"\1\2\3")
    for index in f"{BLOCK // 8 + 5}:{BLOCK // 2}", "::-1":
        error = call("export", "--check", f"{url}#long[{index}]", tmp_path / "x.npy", code=1).stderr
        assert "checksum" in error
    call("export", f"{url}#long[:{BLOCK // 8}]", tmp_path / "x.npy")


def test_a_file_system_with_reflinks_shares_blocks(url, tmp_path, call, monkeypatch):
    """What both files share is not read: neither by Python, nor for its checksum, nor copied."""
    url = shutil.copy(url, tmp_path)
    rows = BLOCK // 8
    with open(url, "r+b") as file:
        file.seek(file.read().index(LONG[rows:][:8].tobytes()))
        file.write(b"\1\2\3")
    shared = []

    def share(source, offset, target, at, size):
        """Do what the kernel does on XFS: it takes whole blocks only."""
        assert not (offset | at | size) % 4096
        shared.append(size)
        return os.pwrite(target, os.pread(source, size, offset), at) == size

    def copy(*args):
        raise AssertionError("it is copied")

    monkeypatch.setattr(flat, "share_range", share)
    with monkeypatch.context() as m:
        m.setattr(os, "copy_file_range", copy)
        call("export", f"{url}#long[{rows}:{3 * rows}]", tmp_path / "x.raw")
    assert sum(shared) == 2 * BLOCK
    found = np.fromfile(tmp_path / "x.raw", "f8")
    assert np.array_equal(found[1:], LONG[rows + 1 : 3 * rows])
    assert found[0] != LONG[rows]  # the damaged bytes
    shared.clear()
    args = ("export", "--force", f"{url}#long[{rows}:{3 * rows}]")
    assert "checksum" in call(*args, "--check", tmp_path / "x.raw", code=1).stderr
    for index in f"{2 * rows + 1}:{3 * rows}", f"{2 * rows}:{3 * rows - 1}":  # not whole blocks
        call("export", "--force", f"{url}#long[{index}]", tmp_path / "x.raw")
    assert not shared
    assert "checksum" in call(*args, tmp_path / "x.npz", code=1).stderr  # nothing is shared
