"""wendelin export leaves other files alone, and refuses what cannot be done before it begins."""

import json
import os
import sys

import numpy as np
import pytest
import transaction
from support.clidata import database
from ZODB.utils import p64

import wendelin
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli.errors import Failure
from wendelin.cli.files.flat import LARGE
from wendelin.cli.unfinished import UnfinishedFile

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]


@pytest.fixture
def url(testdb):
    """Return the URL of a database that nobody has open, with an array, and one that is huge."""
    with database(testdb.url) as root:
        root["x"] = A = ZBigArray((5,), "i8", blksize=64 * 1024)
        root["huge"] = ZBigArray((1 << 70,), "u1")
        transaction.commit()
        A[:] = range(5)
        transaction.commit()
    return testdb.url


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Go to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    """Return all files under a folder, with what is in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.startswith("testdb")
    }


def own(path, folder):
    """Make a file, or a folder, of another program."""
    if folder:
        path.mkdir()
        path = path / "dear"
    path.write_text("mine")


SUFFIXES = ["npy", "npz", "raw", "csv", "h5", "zarr"]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_part_of_another_program_is_left_alone(call, url, here, suffix, folder):
    own(here / f"out.{suffix}.part", folder)
    before = tree(here)
    error = call("export", f"{url}#x", f"out.{suffix}", code=1).stderr
    assert f"out.{suffix}.part exists, and is not of an export" in error
    assert "move it elsewhere" in error
    assert tree(here) == before


@pytest.mark.parametrize(
    "text", ["[1]", '{"foo": 1}', '{"source": {}, "tid": 5, "done": "x", "position": 0}', "{", "\0"]
)
@pytest.mark.parametrize("part", [False, True])
def test_a_state_of_another_program_is_left_alone(call, url, here, text, part):
    (here / "out.npy.part.json").write_text(text)
    if part:
        (here / "out.npy.part").write_text("mine")
    before = tree(here)
    error = call("export", f"{url}#x", "out.npy", code=1).stderr
    assert "out.npy.part.json is not of an export, or is damaged: move it" in error
    assert tree(here) == before


def test_two_exports_of_one_file_at_a_time(call, url, here):
    """The second one would remove what the first one writes, and give its own part the name."""
    first = UnfinishedFile(str(here / "out.npy"))
    first.begin({"of": "the first"}, p64(1))
    (here / "out.npy.part").write_text("whole")
    before = tree(here)
    error = call("export", f"{url}#x", "out.npy", code=1).stderr
    assert "another export is writing out.npy.part: wait for its end" in error
    assert tree(here) == before
    for done in 0, 3:
        first.save(done, 0)
        second = UnfinishedFile(str(here / "out.npy"))
        with pytest.raises(Failure, match=r"another export is writing .*npy\.part: wait"):
            second.begin({"of": "the first"}, p64(1))
    late = UnfinishedFile(str(here / "out.npy"))
    first.finish()
    assert (here / "out.npy").read_text() == "whole"
    with pytest.raises(Failure, match=r"has written .*npy\.part meanwhile"):
        late.begin({"of": "the first"}, p64(1))
    assert [name for name in os.listdir(here) if name.startswith("out")] == ["out.npy"]


def test_a_folder_of_another_program_is_not_taken_for_one_put_aside(call, url, here):
    pytest.importorskip("zarr")
    own(here / "out.zarr.old~", True)
    before = tree(here)
    error = call("export", f"{url}#x", "out.zarr", code=1).stderr
    assert "out.zarr.old~ exists, and is not of an export" in error
    assert tree(here) == before
    (here / "out.zarr.old~" / "dear").unlink()
    (here / "out.zarr.old~").rmdir()
    call("export", f"{url}#x", "out.zarr")
    call("export", "--force", f"{url}#x", "out.zarr")
    assert [name for name in os.listdir(here) if name.startswith("out")] == ["out.zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_fails_leaves_nothing(call, url, here, monkeypatch, suffix):
    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(suffix, "numpy"))
    from wendelin.cli.arrays import ArraySource

    def fails(*_args):
        raise OSError(28, "No space left on device")

    before = tree(here)
    with monkeypatch.context() as m:
        m.setattr(ArraySource, "read", fails)
        m.setattr(ArraySource, "copy_to", fails)
        assert "No space left" in call("export", f"{url}#x", f"out.{suffix}", code=1).stderr
    assert tree(here) == before
    call("export", f"{url}#x", f"out.{suffix}")


def test_what_was_begun_stays_when_it_cannot_be_opened(call, url, here, monkeypatch):
    """Without the library, an interrupted export cannot go on, but is not lost."""
    pytest.importorskip("zarr")
    with database(url) as root:
        root["y"] = A = ZBigArray((2 << 20,), "i8", blksize=64 * 1024)
        transaction.commit()
        A[:] = 1
        transaction.commit()
    from wendelin.cli.arrays import ArraySource

    read = ArraySource.read

    def fails(self, start, stop):
        if start:
            raise OSError(28, "No space left on device")
        return read(self, start, stop)

    args = ("export", "--step", "4M", f"{url}#y", "out.zarr")
    with monkeypatch.context() as m:
        m.setattr(ArraySource, "read", fails)
        assert "the same command goes on" in call(*args, code=1).stderr
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "zarr", None)
        before = tree(here)
        assert "zarr is needed, but not installed" in call(*args, code=1).stderr
        assert tree(here) == before
    assert call(*args[:1], "--json", *args[1:]).json["resumed_at"] == 4 << 20


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--delimiter", ";", "{url}#x", "out.npy"], 2, "--delimiter is not for npy files"),
        (["--delimiter", ";", "{url}#x", "out.raw"], 2, "--delimiter is not for raw files"),
        (["--delimiter", "\n", "{url}#x", "out.csv"], 2, "'\\n' must be one character, not"),
        (["--delimiter", '"', "{url}#x", "out.csv"], 2, "must be one character, not"),
        (["--delimiter", "\udcff", "{url}#x", "out.csv"], 2, "must be one character, not"),
        (["--force", "{url}#x", "dir.npy"], 1, "dir.npy is a folder, and the export makes a file"),
        (["--force", "{url}#x", "file.zarr"], 1, "file.zarr is a file, and the export makes a"),
        (["{url}#x", "nowhere/x.npy"], 1, "nowhere: No such file"),
        (["{url}#x", "old.npz:b"], 1, "--force replaces it, with everything in old.npz"),
        *((["{url}#huge", f"out.{s}"], 1, f"has {1 << 70} bytes") for s in SUFFIXES[:-1]),
    ],
)
def test_a_wrong_export_is_one_line(call, url, here, args, code, message):
    own(here / "dir.npy", True)
    own(here / "file.zarr", False)
    np.savez(here / "old.npz", a=[1])
    before = tree(here)
    done = call("export", *(arg.format(url=url) for arg in args), code=code)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(here) == before


def test_a_delimiter_of_csv(call, url, here):
    call("export", "--delimiter", ";", f"{url}#x", "out.csv")
    assert json.loads(f"[{(here / 'out.csv').read_text().replace(chr(10), ',')[:-1]}]") == [
        *range(5)
    ]


@pytest.mark.parametrize("dtype", ["f8", [("µ", "i4"), ("n", "S3")]], ids=["1.0", "3.0"])
def test_elements_of_a_large_npy_begin_with_a_block(call, path, tmp_path, dtype):
    """So the kernel can let them share blocks of the database; NumPy reads the header."""
    values = np.zeros(LARGE // np.dtype(dtype).itemsize + 1, dtype)
    values.view("u1")[::1000] = 7
    with wendelin.open(path) as g:
        g["x"] = values
    call("export", f"{path}#x", tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy").view("u1"), values.view("u1"))
    assert os.path.getsize(tmp_path / "x.npy") == 4096 + values.nbytes
