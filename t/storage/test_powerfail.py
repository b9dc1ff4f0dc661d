"""Power failures: what had been committed is there, whatever of the rest has reached the disk.

100 states of disks (powerfail.py), or as many as WENDELIN_CORE_TEST_POWER says. Stock FileStorage
is put through the same: it shows what the models do to a storage.
"""

import os
import random
import shutil
from itertools import product
from pathlib import Path

import pytest
from support import powerfail
from support.powerfail_disk import MODELS, PAGE, Disk, Event, Unrecorded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

STATES = int(os.environ.get("WENDELIN_CORE_TEST_POWER", "100"))
SEED = int(os.environ.get("WENDELIN_CORE_TEST_SEED", "0"))

#: models in which a commit that has not returned may be there in part: one sync is for both its
#: records and its status
UNORDERED = {"size before data", "pages in any order", "sectors in any order", "anything unsynced"}


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    return powerfail.build_recorder(tmp_path_factory.mktemp("recorder"))


# ---- databases ----


@pytest.fixture(scope="module")
def aligned(recorder, tmp_path_factory):
    """Return the folder of a recording."""
    folder = tmp_path_factory.mktemp("aligned") / "work"
    return powerfail.record(recorder, folder, powerfail.SIDES[0], SEED)


def allowed(side, reader, model):
    """Return the outcomes that a state may have."""
    outcomes = {"right"}
    if model in UNORDERED and side.writer != "ordered":
        outcomes.add("torn")
    if reader == "stock":
        # It takes an unfinished transaction, or zeros, for the last transaction. It does not open
        # a file with some other rests at its end. So it is with its own files, too.
        outcomes.add("wrong last")
        if model in {*UNORDERED, "size after data"}:
            outcomes.add("unopenable")
    return outcomes


@pytest.mark.parametrize("side", powerfail.SIDES, ids=lambda side: side.name)
def test_what_was_committed_is_there(recorder, tmp_path, side):
    n = round(STATES * side.share)
    for i, start in enumerate(range(0, n, powerfail.STATES)):
        folder = powerfail.record(recorder, tmp_path / str(i), side, SEED + i)
        numbers = range(SEED + start, SEED + min(start + powerfail.STATES, n))
        tried = powerfail.try_in_child(folder, numbers, side.readers)
        tries = sum(n for (*_, outcome), n in tried.found.items() if outcome != "different")
        assert tries == len(numbers) * len(side.readers)
        print(*powerfail.lines_of(tried), sep="\n")
        if side.writer != "stock":
            bad = [
                w for w in tried.wrong if w["outcome"] not in allowed(side, w["reader"], w["model"])
            ]
            assert not bad, "\n".join([f"{len(bad)} in {folder}", *map(str, bad[:10])])


@pytest.mark.parametrize(
    ("without", "losing"),
    [
        ("sync", {"size before data", "pages in any order", "sectors in any order"}),
        ("names", {"names by the folder's sync"}),
    ],
)
def test_a_storage_that_does_not_sync_is_seen_losing(aligned, without, losing):
    """The work is the same, as if it had been recorded without some syncs."""
    tried = powerfail.try_in_child(aligned, range(SEED, SEED + 100), ["ours"], [without])
    lost = {w["model"] for w in tried.wrong if w["outcome"] in ("lost", "unopenable")}
    assert losing <= lost <= {*losing, "size after data", "anything unsynced"}


# ---- the models ----


def event(kind, *, a=0, data=b"", name="/f/x", to="", inode=1):
    return Event(kind, inode, a, 0, name, to, data)


def states(events, model, last=None):
    """Return what a disk may have: sets of (name, first bytes of its pages)."""
    disk = Disk("/f")
    for e in events:
        disk.do(e)
    found = set()
    for seed in range(300):
        state = disk.state(model, random.Random(seed), last)
        found.add(
            tuple((name, f.data[::PAGE].decode()) for name, f in state.items() if f is not None)
        )
    return {files[0][1] if len(files) == 1 else files for files in found}


def pages(text):
    return b"".join(c.encode() * PAGE for c in text)


OVERWRITTEN = [
    event("create"),
    event("names", name="/f"),
    event("write", data=pages("ab")),
    event("sync"),
    event("write", data=pages("A")),
    event("write", a=PAGE, data=pages("BC")),
]


def test_each_model_has_what_it_promises_and_all_of_it():
    zero = "\0"
    anything = {"".join(p)[:size] for p in product("aA", "bB", [zero, "C"]) for size in (2, 3)}
    assert states(OVERWRITTEN, "in order") == {"ABC"}
    assert states(OVERWRITTEN, "pages in any order") == anything
    assert states(OVERWRITTEN, "size before data") == {f"ab{zero}", f"Ab{zero}", "ABC"}
    assert states(OVERWRITTEN, "size after data") == {s for s in anything if zero not in s}
    assert states(OVERWRITTEN, "names by any sync") == {"ABC"}
    assert states([*OVERWRITTEN, event("sync")], "anything unsynced") == {"ABC"}


def test_the_last_write_is_torn():
    last = event("write", a=PAGE, data=pages("DE"))
    assert states(OVERWRITTEN, "torn at 4096", last) == {"ADC"}
    torn = states(OVERWRITTEN, "torn at 512", last)
    assert torn == {"ADC", "ADE"}


def test_what_was_cut_comes_back_only_where_it_was_cut():
    cut = [*OVERWRITTEN[:4], event("size", a=100), event("size", a=2 * PAGE)]
    assert states(cut, "pages in any order") == {"a", "ab", "a\0"}
    disk = Disk("/f")
    for e in cut:
        disk.do(e)
    tails = set()
    for seed in range(100):
        data = disk.state("pages in any order", random.Random(seed), None)["x"].data
        assert len(data) in (100, 2 * PAGE)
        tails.add(data[100:101])
    assert tails == {b"", b"a", b"\0"}


RENAMED = [
    event("create"),
    event("write", data=pages("a")),
    event("sync"),
    event("names", name="/f"),
    event("create", name="/f/new", inode=2),
    event("write", data=pages("b"), name="/f/new", inode=2),
    event("sync", name="/f/new", inode=2),
    event("rename", name="/f/new", to="/f/x", inode=2),
    event("create", name="/f/z", inode=3),
]
OLD, BOTH, DONE = "a", (("new", "b"), ("x", "a")), "b"


def test_names_are_there_by_a_sync_only():
    done = (("x", "b"), ("z", ""))
    assert states(RENAMED, "in order") == {done}
    assert states(RENAMED, "names by any sync") == {BOTH, DONE, done}
    assert states(RENAMED, "names by the folder's sync") == {OLD, BOTH, DONE, done}
    assert states(RENAMED, "anything unsynced") == {
        OLD, BOTH, DONE, done, (("x", "a"), ("z", "")), (("new", "b"), ("x", "a"), ("z", "")),
    }  # fmt: skip
    assert states([*RENAMED, event("names", name="/f")], "anything unsynced") == {done}


def test_a_folder_that_is_not_there_has_nothing():
    made = [event("mkdir", name="/f/d", inode=5), event("create", name="/f/d/x")]
    assert states([*made, event("names", name="/f/d")], "names by the folder's sync") == {(), ""}
    moved = [*made, event("rename", name="/f/d", to="/f/e", inode=5)]
    assert states(moved, "in order") == {""}
    disk = Disk("/f")
    for e in moved:
        disk.do(e)
    assert list(disk.checksums()) == ["e", "e/x"]


# ---- the recorder ----

_BEGIN = """
import ctypes, mmap, os, sys
from pathlib import Path
from support.powerfail_mark import mark_files
folder = Path(sys.argv[1])
path = str(folder / "x")
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.write(fd, b"x" * 10000)
"""


def recording(recorder, tmp_path, code):
    folder = tmp_path / "work"
    end = "\nmark_files(folder)"
    powerfail.recorded(recorder, folder, ["-c", _BEGIN + code + end, str(folder / "db")])
    return powerfail.Recording(folder)


def test_all_that_changes_files_is_recorded(recorder, tmp_path):
    """And it is understood: the record says what the files are afterwards."""
    found = recording(
        recorder,
        tmp_path,
        """
os.writev(fd, [b"a" * 10, b"b" * 20])
os.pwrite(fd, b"c" * 5, 3)
os.pwritev(fd, [b"d", b"e" * 5000], 20000)
os.pwritev(fd, [b"i"] * 1200, 0) if os.sysconf("SC_IOV_MAX") >= 1200 else 0
os.posix_fallocate(fd, 0, 40000)
os.ftruncate(fd, 30000)
os.truncate(path, 29000)
out = os.open(str(folder / "out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(out, b"f" * 100)
os.sendfile(fd, os.open(path, os.O_RDONLY), 0, 5000)
os.close(out)
out = os.open(str(folder / "out"), os.O_WRONLY)
os.copy_file_range(fd, out, 7000, 100, 200)
os.sendfile(out, fd, 0, 3000)
libc = ctypes.CDLL(None)
libc.fallocate(fd, 3, ctypes.c_long(4096), ctypes.c_long(4096))
libc.fallocate(fd, 0x10, ctypes.c_long(28000), ctypes.c_long(8192))
libc.fallocate(fd, 1, ctypes.c_long(50000), ctypes.c_long(8192))
os.fsync(fd), os.fdatasync(out)
with open(folder / "y", "wb") as file:
    file.write(b"g" * 300000)
    file.seek(5)
    file.write(b"h")
open(folder / "y", "ab").write(b"more")
open(folder / "z", "wb").write(b"z")
open(folder / "z", "wb").write(b"w")
(folder / "d" / "e").mkdir(parents=True)
os.mkdir(str(folder / "d" / "g") + "/")
os.link(folder / "y", folder / "d" / "e" / "y")
os.rename(folder / "z", folder / "d" / "z")
(folder.parent / "came").write_bytes(b"from outside")
os.rename(folder.parent / "came", folder / "came")
os.replace(folder / "out", folder / "y")
os.rename(folder / "d", folder / "k")
os.chdir(folder)
os.rename("k/z", "k/zz")
os.unlink("k/zz")
in_k = os.open("k", os.O_RDONLY)
os.write(os.open("n", os.O_WRONLY | os.O_CREAT, dir_fd=in_k), b"n")
os.rmdir("g", dir_fd=in_k)
os.fsync(in_k)
libc.remove(b"k/none")
os.sync()
""",
    )
    kinds = {e.kind for e in found.events}
    assert {"create", "write", "size", "zeros", "sync", "names", "syncall", "link"} <= kinds
    (last,) = (mark["files"] for mark in found.marks.values())
    assert sorted(last) == ["came", "k", "k/e", "k/e/y", "k/n", "x", "y"]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("mmap.mmap(fd, 4096)[0] = 1", "mmap, shared and writable"),
        (
            "tmp = os.open(folder, os.O_RDWR | os.O_TMPFILE)\n"
            "os.write(tmp, b'gone after a power failure')\n"
            "libc.linkat(-100, b'/proc/self/fd/%d' % tmp, -100, path.encode() + b'l', 0x400)",
            "link, AT_SYMLINK_FOLLOW",
        ),
        ("os.symlink('x', folder / 'y')", "symlink"),
        ("os.rename(path, folder.parent / 'x')", "rename out of"),
        ("os.pwritev(fd, [b'a'], 0, os.RWF_DSYNC)", "pwritev2 with flags"),
        ("libc.fopen(path.encode(), b'r+')", "fopen"),
        (
            "libc.syscall(ctypes.c_long(77), fd, ctypes.c_long(50))",
            "something unknown has changed x",
        ),
        (
            "libc.syscall(ctypes.c_long(83), path.encode() + b'd', 0)",
            "something unknown has changed xd",
        ),
    ],
)
def test_what_is_not_known_is_not_passed_over(recorder, tmp_path, code, what):
    if "syscall" in code and os.uname().machine != "x86_64":
        pytest.skip("numbers of system calls of x86-64")
    with pytest.raises(Unrecorded, match=what):
        recording(recorder, tmp_path, f"libc = ctypes.CDLL(None)\n{code}")


def test_files_from_before_the_record_are_not_known(tmp_path):
    with pytest.raises(Unrecorded, match="of which nothing is known"):
        Disk("/f").do(event("write", data=b"x"))


def test_the_table_has_every_model_and_side():
    tried = {side.name: powerfail.Tried(powerfail.Counter(), []) for side in powerfail.SIDES}
    tried["aligned"].found["in order", "ours", "right"] = 7
    lines = list(powerfail.table(tried))
    assert len(lines) == 3 + len(MODELS)
    assert "7: right" in lines[3]
    assert Path(powerfail.__file__).exists()
