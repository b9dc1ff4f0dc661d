"""Import of a file of which some is damaged: it is named, and the rest is there."""

import zipfile

import numpy as np
import pytest
import transaction
from support.clidata import database

import wendelin
from wendelin.cli import whole

h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")

pytestmark = [pytest.mark.formats, pytest.mark.once]

N = 40_000
A, B = np.arange(N), np.arange(N) * 3
BAD = np.arange(N) + 10**9  # no other array has its bytes


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spoil(path, data, at):
    """Change a few bytes of some that a file has."""
    with open(path, "r+b") as f:
        place = f.read().index(data) + at
        f.seek(place)
        f.write(b"\xff\xfe\xff\xfe")


def hdf5(name):
    with h5py.File(name, "w") as f:
        f["g/first"], f["last"] = A, B
        f.create_dataset("g/bad", data=BAD, chunks=(N // 8,), fletcher32=True)
        f["g/link"], f["g/fine"] = h5py.SoftLink("/g/bad"), h5py.SoftLink("/last")
    spoil(name, BAD[N // 2 : N // 2 + 4].tobytes(), 0)


def zarr_folder(name):
    g = zarr.open_group(name, mode="w", zarr_format=3)
    for at, values in {"g/first": A, "g/bad": BAD, "last": B}.items():
        g.create_array(at, shape=(N,), chunks=(N // 8,), dtype="i8")[:] = values
    with open(f"{name}/g/bad/c/4", "wb") as f:
        f.write(b"no codec wrote this")


def npz(name):
    np.savez(name, **{"g/first": A, "g/bad": BAD, "last": B})
    spoil(name, BAD[N // 2 : N // 2 + 4].tobytes(), 0)


@pytest.mark.parametrize("step", ["32M", "64K"])
@pytest.mark.parametrize("make", [hdf5, zarr_folder, npz])
def test_the_rest_of_a_file_is_imported(call, path, make, step):
    name = {hdf5: "x.h5", zarr_folder: "x.zarr", npz: "x.npz"}[make]
    make(name)
    args = ("--step", step, "--blksize", "16K", name)
    done = call("import", *args, f"{path}#t", code=1)
    left = [line for line in done.stderr.splitlines() if ":g/bad: " in line]
    assert len(left) == 1
    assert left[0].startswith(f"wendelin import: left out, {name}:g/bad: ")
    links = make is hdf5
    count = {hdf5: "2 of 7", zarr_folder: "1 of 5", npz: "1 of 4"}[make]
    message = f"{count} arrays, groups and links of {name} could not be read, and "
    assert done.stderr.splitlines()[-1].startswith(f"wendelin import: error: {message}")
    with wendelin.open(path, "r") as g:
        assert set(g["t/g"]) == {"first", *(["fine"] if links else [])}
        assert np.array_equal(g["t/g/first"][:], A)
        assert np.array_equal(g["t/last"][:], B)
    with database(path) as root:
        assert set(root) == {"t"}
        assert not [key for key in root["t"]["g"] if "~" in key]
    done = call("import", "--json", *args, f"{path}#again", code=1)
    assert {a["name"] for a in done.json["arrays"]} == {"g/first", "last"}
    assert "g/bad" in [each["name"] for each in done.json["left_out"]]
    error = call("import", f"{name}:g/bad", f"{path}#one", code=1).stderr
    assert error.count("\n") == 1


def test_what_was_damaged_is_known_when_an_import_goes_on(call, path, monkeypatch):
    """Also after an interrupt, the exit code says that something is left out."""
    npz("x.npz")
    with zipfile.ZipFile("x.npz", "a") as archive:
        archive.writestr("z.npy", b"not an array")
    args = ("import", "--step", "64K", "--blksize", "16K", "x.npz", f"{path}#t")

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(whole.Whole, "_finish", interrupted)
        assert "goes on from there" in call(*args, code=1).stderr
    done = call(*args, code=1)
    assert "x.npz:g/bad" not in done.stderr  # it was said
    assert "2 of 5 arrays, groups and links of x.npz could not be read" in done.stderr
    with wendelin.open(path, "r") as g:
        assert {p for p, v in g["t"].walk() if hasattr(v, "dtype")} == {"g/first", "last"}


def test_an_error_of_the_database_ends_the_import(call, path, monkeypatch):
    """It is not a fault of the file: nothing is left out."""
    np.savez("x.npz", a=A, b=B)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr(transaction.TransactionManager, "commit", fail)
        m.setattr(transaction, "commit", fail)
        error = call("import", "x.npz", f"{path}#t", code=1).stderr
    assert "No space left on device" in error
    assert "could not be read" not in error
    call("import", "x.npz", f"{path}#t")
