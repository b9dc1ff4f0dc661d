"""wendelin trim: of a file, and of a ZEO server."""

import gc
import os
import time

import numpy as np
import pytest
import transaction
from support.servers import HOST, ZeoServer

import wendelin
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError
from wendelin.lib.zodb import dbclose, dbopen

SIZE = 1 << 20  # of the array [bytes]


def write(url, seeds=(1, 2, 3)):
    """Write an array once with each seed; return the tids of these commits."""
    root = dbopen(url)
    root["A"] = A = ZBigArray((SIZE,), "u1", blksize=1 << 18)
    transaction.commit()
    tids = []
    for seed in seeds:
        A[:] = seed
        transaction.commit()
        tids.append(root._p_jar.db().lastTransaction().hex())
    dbclose(root)
    return tids


def room(path):
    return os.stat(path).st_blocks * 512


def value(url, at=None):
    with wendelin.open(url, at=at) as g:
        return np.unique(g["A"].read()).tolist()


def test_trim_of_a_file(call, tmp_path):
    path = str(tmp_path / "1.fs")
    first, second, third = write(path)
    before = room(path)
    done = call("trim", "--before", second, "--json", path).json
    assert done["revisions"] == 4
    assert done["freed"] > SIZE * 0.9
    assert room(path) < before - SIZE * 0.9
    assert value(path, second) == [2]
    with pytest.raises(BlockLoadError, match="was trimmed"):
        value(path, first)
    assert "was trimmed" in call("head", "--at", first, f"{path}#A", code=1).stderr
    # frames of exceptions, and of threads that read ahead, have views for a little longer
    for _ in range(100):
        gc.collect()
        told = call("trim", path).stdout
        if "4 revisions" in told:
            break
        time.sleep(0.05)
    assert "4 revisions" in told
    assert "0 revisions" in call("trim", "--keep", "2", path).stdout
    assert value(path, third) == value(path) == [3]
    assert "all good" in call("verify", path).stdout
    assert "--keep" in call("trim", "--keep", "0", path, code=2).stderr
    assert call("trim", f"{path}#A", code=2).stderr
    assert call("trim", "memory://", code=1).stderr


def test_a_trim_keeps_tags(call, tmp_path):
    path = str(tmp_path / "1.fs")
    _, second, _ = write(path)
    call("tag", path, "good", "--at", second)
    assert call("trim", "--json", path).json["revisions"] == 4
    assert value(path, "good") == [2]


ALIGNED = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"


@pytest.mark.parametrize("ours", [True, False])
def test_trim_of_a_server(call, tmp_path, ours):
    server = ZeoServer(tmp_path, section=ALIGNED) if ours else ZeoServer(tmp_path)
    server.start()
    try:
        url = f"zeo://{HOST}:{server.port}?storage=1"
        first, *_ = write(url)
        before = room(tmp_path / "1.fs")
        if ours:
            assert "by its server" in call("trim", url).stdout
            assert room(tmp_path / "1.fs") < before - SIZE * 1.8
            assert value(url) == [3]
            with pytest.raises(BlockLoadError, match="was trimmed"):
                value(url, first)
        else:
            assert "cannot trim" in call("trim", url, code=1).stderr
            assert room(tmp_path / "1.fs") == before
    finally:
        server.stop()
