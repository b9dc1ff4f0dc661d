"""wendelin mount: arrays as .npy files, read by other programs; and how it ends.

The program mounts in a process of its own, which is killed at the end. Readers of the files have a
time limit: a file system that hangs would hang the tests.
"""

import os
import signal
import subprocess
import time
from ctypes.util import find_library

import numpy as np
import pytest
import transaction
from scipy import sparse
from support.child import check_child
from support.cli import PROGRAM, wendelin

from wendelin import Group, open

pytestmark = [pytest.mark.database, pytest.mark.slow, pytest.mark.once]

SECONDS = 60


@pytest.fixture(autouse=True)
def fuse():
    """Skip where FUSE cannot work; in CI, with the packages, it has to."""
    if find_library("fuse3") is None:
        pytest.skip("libfuse is not installed")
    pytest.importorskip("mfusepy")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        assert "CI" not in os.environ, "/dev/fuse cannot be used, and CI is set"
        pytest.skip("/dev/fuse cannot be used here")


def until(condition, what):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def unmounted(folder):
    with os.fdopen(os.open("/proc/self/mounts", os.O_RDONLY)) as mounts:
        return all(line.split()[1] != str(folder) for line in mounts)


@pytest.fixture
def mounted(tmp_path):
    """Return a function that mounts a database, and returns (folder, process)."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    started = []

    def start(url, *options):
        process = subprocess.Popen([PROGRAM, "mount", *options, url, str(folder)])
        started.append(process)
        until(lambda: not unmounted(folder) or process.poll() is not None, "not mounted")
        assert process.poll() is None, "the program has ended"
        return folder, process

    yield start
    for process in started:
        process.kill()
        process.wait(SECONDS)
    until(lambda: unmounted(folder), "still mounted")


def values(n, dtype="f8"):
    return np.arange(n).astype(dtype)


READS = """
    import os, shutil, socket, subprocess, sys, threading
    import numpy as np
    folder, out = sys.argv[1:]
    at = lambda name: f"{folder}/{name}"
    names = sorted(os.listdir(folder))
    assert names == ["F.npy", "S", "a_b.npy", "chunks.npy", "run", "x.npy"], names
    x = np.load(at("x.npy"), mmap_mode="r")
    assert x.dtype == "f8" and np.array_equal(x, np.arange(50_000).astype("f8"))
    assert not np.load(at("run/deep/holes.npy"), mmap_mode="r").any()
    assert np.array_equal(np.load(at("F.npy")), np.arange(6000).reshape(60, 100))
    assert np.load(at("F.npy"), mmap_mode="r").flags.f_contiguous
    assert np.array_equal(np.load(at("chunks.npy")), np.arange(30_000).astype("i4"))
    assert np.load(at("run/t.npy"))["t"].tolist() == list(range(100))
    assert np.load(at("a_b.npy")).shape == ()
    assert sorted(os.listdir(at("S"))) == ["data.npy", "indices.npy", "indptr.npy"]
    assert np.load(at("S/indptr.npy")).tolist() == list(range(11))
    subprocess.run(["cp", at("x.npy"), out], check=True)
    assert open(out, "rb").read() == open(at("x.npy"), "rb").read()
    size = os.path.getsize(at("x.npy"))
    ours, theirs = socket.socketpair()
    got = []
    def receive():
        while data := theirs.recv(1 << 16):
            got.append(data)
    thread = threading.Thread(target=receive)
    thread.start()
    with open(at("x.npy"), "rb") as file:
        sent = 0
        while sent < size:
            sent += os.sendfile(ours.fileno(), file.fileno(), sent, size - sent)
    ours.close()
    thread.join()
    assert b"".join(got) == open(out, "rb").read()
    for change in (lambda: open(at("x.npy"), "r+b"), lambda: open(at("new"), "w"),
                   lambda: os.unlink(at("x.npy")), lambda: os.mkdir(at("d"))):
        try:
            change()
        except OSError as e:
            assert e.errno in (30, 13, 38), e
        else:
            raise AssertionError("it was changed")
    for name in "none.npy", "x.npy/y", "run/none":
        assert not os.path.exists(at(name))
"""


def test_any_program_reads(testdb, mounted, tmp_path):
    root = testdb.open()
    g = Group(root)
    g.create_array("x", data=values(50_000), blksize=4096)
    g.create_array("F", data=values(6000, "i8").reshape(60, 100), order="F", blksize=4096)
    g.create_array("chunks", data=values(30_000, "i4"), blksize=1 << 16, zblk_fmt="ZBlk1")
    g.create_array("run/deep/holes", (100_000,), "u1")
    t = np.zeros(100, [("t", "i8"), ("v", "f4")])
    t["t"] = range(100)
    g["run/t"] = t
    g.obj["a/b"] = g.create_array("c", data=5.0)
    del g["c"]
    g["S"] = sparse.eye_array(10, format="csr")
    transaction.commit()
    folder, process = mounted(testdb.url)
    g["x"][:] = 0
    g["new"] = t
    transaction.commit()
    check_child(READS, str(folder), str(tmp_path / "copy"), timeout=SECONDS)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert unmounted(folder)
    assert os.listdir(folder) == []


def small(path):
    with open(path) as g:
        g["g/x"] = values(10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_unmounts_when_it_is_ended(tmp_path, mounted, number):
    path = str(tmp_path / "x.fs")
    small(path)
    folder, process = mounted(f"{path}#g")
    assert os.listdir(folder) == ["x.npy"]
    process.send_signal(number)
    process.wait(SECONDS)
    until(lambda: unmounted(folder), "still mounted")
    assert os.listdir(folder) == []


def test_a_damaged_block_is_an_error(tmp_path, mounted):
    path = tmp_path / "x.fs"
    with open(str(path)) as g:
        g.create_array("x", data=values(1 << 15), blksize=1 << 16)
    data = path.read_bytes()
    at = data.index(values(1 << 15).tobytes()[1 << 17 : (1 << 17) + 64])
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    folder, _ = mounted(str(path))
    check = """
        import sys
        with open(sys.argv[1], "rb", 0) as file:
            assert len(file.read(100_000)) == 100_000
            file.seek(1 << 17)
            try:
                file.read(1 << 17)
            except OSError as e:
                assert e.errno == 5
            else:
                raise AssertionError("it was read")
    """
    check_child(check, str(folder / "x.npy"), timeout=SECONDS)


def test_at_a_moment(tmp_path, mounted):
    path = str(tmp_path / "x.fs")
    with open(path) as g:
        g["x"] = values(10)
        g.tag("before")
    with open(path) as g:
        g["x"][:] = 0
    folder, _ = mounted(path, "--at", "before")
    check = "import sys, numpy as np; assert np.load(sys.argv[1]).tolist() == list(range(10))"
    check_child(check, str(folder / "x.npy"), timeout=SECONDS)


def test_mounts_that_are_refused(tmp_path):
    path = str(tmp_path / "x.fs")
    small(path)
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "file").touch()
    assert "is not empty" in wendelin("mount", path, folder, code=1).stderr
    assert "No such file" in wendelin("mount", path, tmp_path / "none", code=1).stderr
    (folder / "file").unlink()
    assert "is not a group" in wendelin("mount", f"{path}#g/x", folder, code=1).stderr
