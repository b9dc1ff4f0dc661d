"""wendelin import --as zarr, and export of a ZarrGroup: Zarr folders, byte for byte."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import transaction
from support.cli import killed_at
from support.clidata import database

from wendelin.zarr import ZarrGroup

zarr = pytest.importorskip("zarr")

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

DATA = np.arange(6000, dtype="f4").reshape(60, 100)


@pytest.fixture
def url(testdb):
    return testdb.url


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def folder(path="x.zarr", version=3):
    """Make a Zarr folder with a group in it, and arrays of several codecs."""
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.attrs["unit"] = "K"
    group.create_array("a", data=DATA, chunks=(10, 30))
    group.create_array("é/raw", data=DATA, chunks=(60, 7), compressors=None)
    if version == 3:
        group.create_array("s", data=DATA, chunks=(5, 5), shards=(30, 50))
    return path


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


@pytest.mark.parametrize("version", [2, 3])
def test_there_and_back(url, call, version):
    folder(version=version)
    before = files("x.zarr")
    done = call("import", "--as", "zarr", "--json", "x.zarr", f"{url}#runs/g")
    assert json.loads(done.stdout)["keys"] == len(before)
    with database(url) as root:
        group = zarr.open_group(root["runs"]["g"].store(), mode="r")
        assert np.array_equal(group["a"][:], DATA)
        assert np.array_equal(group["é/raw"][:], DATA)
        assert list(root["runs"]) == ["g"]
    call("export", f"{url}#runs/g", "y.zarr")
    assert files("y.zarr") == before
    call("export", f"{url}#runs/g/é/raw", "raw.zarr")
    assert files("raw.zarr") == files("x.zarr/é/raw")
    assert np.array_equal(zarr.open_array("raw.zarr", mode="r")[:], DATA)
    call("import", "--as", "zarr", "x.zarr:a", f"{url}#a")
    with database(url) as root:
        assert np.array_equal(zarr.open_array(root["a"].store(), mode="r")[:], DATA)


def test_export_of_a_past_zarr_array(url, call):
    with database(url) as root:
        root["g"] = ZarrGroup()
        a = zarr.create_array(root["g"].store(), name="a", data=DATA, chunks=(10, 10))
        transaction.commit()
        tid = root._p_jar.db().lastTransaction().hex()
        a[:] = 0
        transaction.commit()
    call("export", "--at", tid, f"{url}#g/a", "then.zarr")
    assert np.array_equal(zarr.open_array("then.zarr", mode="r")[:], DATA)
    call("export", f"{url}#g/a", "now.zarr")
    assert not zarr.open_array("now.zarr", mode="r")[:].any()


def test_wrong_imports_and_exports_of_zarr_folders(url, call, here):
    folder()
    (here / "empty.zarr").mkdir()
    for args, code, why in [
        (("x.zarr", f"{url}#g", "--dtype", "f4"), 2, "--dtype is not for zarr files"),
        (("nothing.zarr", f"{url}#g"), 1, "No such file"),
        (("empty.zarr", f"{url}#g"), 1, "is not a Zarr folder"),
        (("x.zarr:../..", f"{url}#g"), 2, "is not in x.zarr"),
        (("x.npy", f"{url}#g"), 2, "x.npy' is none"),
    ]:
        assert why in call("import", "--as", "zarr", *args, code=code).stderr.replace("\n", " ")
    os.symlink("/etc/passwd", "x.zarr/link")
    why = call("import", "--as", "zarr", "x.zarr", f"{url}#g", code=1).stderr
    assert "symbolic link" in why
    os.unlink("x.zarr/link")
    call("import", "--as", "zarr", "x.zarr", f"{url}#g")
    assert "--replace" in call("import", "--as", "zarr", "x.zarr", f"{url}#g", code=1).stderr
    call("import", "--as", "zarr", "--replace", "x.zarr:a", f"{url}#g")
    assert "has no 'b'" in call("export", f"{url}#g/b", "g.zarr", code=1).stderr
    assert "--force" in call("export", f"{url}#g", "x.zarr", code=1).stderr
    call("export", "--force", f"{url}#g", "x.zarr")
    call("ls", url)


@pytest.mark.only("fs")
def test_keys_that_cannot_be_files(url, call):
    for keys in (["a/../b"], ["a", "a/b"], ["/a"]):
        with database(url) as root:
            root["g"] = g = ZarrGroup()
            g.live_table().change(dict.fromkeys(keys, b"x"))
            transaction.commit()
        assert "cannot be" in call("export", f"{url}#g", "x.zarr", code=1).stderr
        assert not os.path.exists("x.zarr")
        assert not os.path.exists("x.zarr.part")


@pytest.mark.only("fs")
def test_an_import_of_zarr_that_failed_goes_on(url, call, monkeypatch):
    data = np.random.default_rng(1).random((100, 100))
    zarr.open_group("x.zarr", mode="w").create_array("a", data=data, chunks=(5, 100))
    args = "import", "--as", "zarr", "--json", "--step", "16K", "x.zarr", f"{url}#g"
    commit, calls = transaction.commit, itertools.count()
    with monkeypatch.context() as m:
        m.setattr(transaction, "commit", lambda: commit() if next(calls) < 3 else 1 / 0)
        call(*args, code=1)
    with database(url) as root:
        assert list(root) == ["g~import"]
    assert call(*args).json["resumed_at"] > 0
    with database(url) as root:
        assert np.array_equal(zarr.open_group(root["g"].store(), mode="r")["a"][:], data)


@pytest.mark.only("fs")
@pytest.mark.slow
def test_imports_and_exports_of_zarr_go_on_after_kills(url, call):
    data = np.random.default_rng(1).random((3000, 100))
    zarr.open_group("x.zarr", mode="w").create_array("a", data=data, chunks=(5, 100))
    args = "--step", "40K", "x.zarr", f"{url}#g"
    path = url.removeprefix("file://").partition("?")[0]
    for n in range(1, 3):
        size = n * 600_000
        assert killed_at(
            ("import", "--as", "zarr", *args),
            lambda size=size: os.path.exists(path) and os.path.getsize(path) > size,
        )
        with database(url) as root:
            assert list(root) == ["g~import"]
    done = call("import", "--as", "zarr", "--json", *args)
    assert json.loads(done.stdout)["resumed_at"] > 0
    for n in range(1, 3):
        there = n * 100
        assert killed_at(
            ("export", "--step", "40K", f"{url}#g", "y.zarr"),
            lambda there=there: len(list(Path(".").glob("y.zarr.part/a/c/*"))) > there,
        )
        assert not os.path.exists("y.zarr")
    done = call("export", "--json", "--step", "40K", f"{url}#g", "y.zarr")
    assert json.loads(done.stdout)["resumed_at"] > 0
    assert files("y.zarr") == files("x.zarr")
    assert sorted(os.listdir()) == ["x.zarr", "y.zarr"]
