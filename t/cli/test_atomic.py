"""wendelin import --atomic: all in one transaction."""

from pathlib import Path

import numpy as np
import pytest
import transaction
from scipy import sparse
from support.clidata import database

from wendelin.bigfile import stats
from wendelin.cli.files.convert import as_bytes
from wendelin.cli.transfer import Target

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

PIECES = Path(__file__).parent.parent / "data" / "bigarray-0.2.2"
DATA = np.arange(6 << 18, dtype="i8")  # 12 MiB


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", DATA)
    np.savez("x.npz", large=DATA, small=DATA[:100], other=DATA[:2000])
    return tmp_path


@pytest.fixture
def commits(testdb):
    """Return a function that says how many transactions the database has had since last asked."""
    seen = set()

    def new():
        with database(testdb.url) as root:
            undos = root._p_jar.db().undoLog(0, 1000)
        fresh = {entry["id"] for entry in undos} - seen
        seen.update(fresh)
        return len(fresh)

    with database(testdb.url) as root:
        root["other"] = 1
        transaction.commit()
    new()
    return new


def test_all_is_one_transaction(call, testdb, commits, set_page_memory):
    set_page_memory(4 << 20)
    url = testdb.url
    step = ["--step", "1M", "--blksize", "64K"]
    call("import", *step, "x.npy", f"{url}#in/steps")
    assert commits() > 5
    call("import", "--atomic", *step, "x.npy", f"{url}#in/one")
    assert commits() == 1
    call("import", "--atomic", *step, "x.npz", f"{url}#all")
    assert commits() == 1
    call("import", "--atomic", "--replace", *step, "x.npz", f"{url}#all")
    assert commits() == 1
    assert stats().spooled == 0
    with database(url) as root:
        assert list(root["in"]) == ["one", "steps"]
        assert np.array_equal(root["in"]["one"][:], DATA)
        assert np.array_equal(root["all"]["large"][:], DATA)
        assert sorted(root["all"]) == ["large", "other", "small"]
        assert np.array_equal(root["all"]["other"][:], DATA[:2000])


def test_other_kinds(call, testdb, commits):
    url = testdb.url
    M = sparse.random_array((5000, 80), density=0.1, format="csr", random_state=0)
    sparse.save_npz("m.npz", M)
    call("import", "--as", "sparse", "--atomic", "--step", "20K", "m.npz", f"{url}#M")
    assert commits() == 1
    np.savetxt("t.csv", DATA[:3000].reshape(-1, 3), fmt="%d", delimiter=",")
    call("import", "--atomic", "--step", "4K", "t.csv", f"{url}#table")
    assert commits() == 1
    with database(url) as root:
        assert (root["M"][:] != M).nnz == 0
        assert len(root["table"]) == 1000


def test_ragged(call, testdb, commits):
    call("import", "--as", "ragged", "--atomic", "--step", "10", PIECES, f"{testdb.url}#R")
    assert commits() == 1
    with database(testdb.url) as root:
        assert len(root["R"]) == 3


def test_zarr(call, testdb, commits):
    zarr = pytest.importorskip("zarr")
    zarr.open_group("x.zarr", mode="w").create_array("a", data=DATA[:6000], chunks=(100,))
    args = ["import", "--as", "zarr", "--step", "2K", "x.zarr"]
    call(*args, "--atomic", f"{testdb.url}#Z")
    assert commits() == 1
    with database(testdb.url) as root:
        store = root["Z"].store()
        assert np.array_equal(zarr.open_group(store, mode="r")["a"][:], DATA[:6000])


@pytest.mark.parametrize("file", ["x.npy", "x.npz"])
def test_nothing_is_left_of_one_that_failed(call, testdb, commits, monkeypatch, file):
    url = testdb.url
    args = ["import", "--step", "1M", "--blksize", "64K", file, f"{url}#new/x"]
    count = 0

    def fails(data):
        nonlocal count
        count += 1
        if count % 7 == 0:
            raise OSError(5, "the disk failed")
        return as_bytes(data)

    monkeypatch.setattr("wendelin.cli.transfer.as_bytes", fails)
    done = call(*args, "--atomic", code=1)
    assert "the disk failed" in done.stderr
    assert "nothing was imported" in done.stderr
    assert "goes on" not in done.stderr
    assert commits() == 0
    assert "goes on" in call(*args, code=1).stderr  # in steps
    assert commits() > 1


def test_it_begins_again_after_one_in_steps(call, testdb, commits, monkeypatch, here):
    url = testdb.url
    args = ["import", "--step", "1M", "--blksize", "64K", here / "x.npy", f"{url}#x"]
    with monkeypatch.context() as m:
        m.setattr(Target, "finish", lambda self: 1 / 0)
        call(*args, code=1)
    commits()
    with monkeypatch.context() as m:
        m.setattr(transaction, "commit", lambda: 1 / 0)
        assert "nothing was imported" in call(*args, "--atomic", code=1).stderr
    assert commits() == 0
    call(*args, "--atomic")
    assert commits() == 1
    with database(url) as root:
        assert list(root) == ["other", "x"]
        assert np.array_equal(root["x"][:], DATA)


def test_larger_than_memory(call, here, monkeypatch, set_page_memory):
    set_page_memory(4 << 20)
    args = ["import", "--atomic", "--blksize", "64K", "x.npy", "x.fs#x"]
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", str(here / "none"))
    assert "WENDELIN_CORE_SPOOL is" in call(*args, code=1).stderr
    monkeypatch.setenv("WENDELIN_CORE_SPOOL", "0")
    done = call(*args, code=1)
    assert "WENDELIN_CORE_SPOOL" in done.stderr
    assert "nothing was imported" in done.stderr
    monkeypatch.delenv("WENDELIN_CORE_SPOOL")
    call(*args)
    with database("x.fs") as root:
        assert np.array_equal(root["x"][:], DATA)
