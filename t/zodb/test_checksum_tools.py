"""Checksums of blocks: packs compare them, and so do wendelin copy, export and verify."""

import os
import time
from pathlib import Path

import pytest
import transaction
from support.checksums import BLK, damage, fill
from support.servers import ZeoServer

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen


@pytest.mark.parametrize("later", [False, True])
def test_a_pack_refuses_what_does_not_match(path, small, later):
    """The damaged record is older than the pack time, or newer."""
    root = dbopen(small)
    root["x"] = 1
    transaction.commit()
    packtime = time.time() if later else None
    time.sleep(0.01)
    fill(root)
    A = root["A"]
    A[:BLK] = 9
    transaction.commit()
    dbclose(root)
    ((oid, tid),) = damage(path, [4]).values()
    root = dbopen(small)
    before = Path(path).read_bytes()
    with pytest.raises(OSError, match=f"nothing was packed: .*{oid.hex()}.*{tid.hex()}"):
        root._p_jar.db().pack(packtime)
    assert Path(path).read_bytes() == before
    assert not os.path.exists(path + ".pack")
    A = root["A"]
    A[BLK] = 1
    transaction.commit()
    A.zfile.blktab.pop(4)
    transaction.commit()
    root._p_jar.db().pack()
    assert A[BLK] == 1
    dbclose(root)


def test_a_copy_keeps_and_tells_what_does_not_match(call, path, tmp_path, small):
    root = dbopen(small)
    fill(root)
    dbclose(root)
    ((oid, tid),) = damage(path, [4]).values()
    target = tmp_path / "y.fs"
    done = call("copy", path, target, code=1)
    assert (
        f"0x{oid.hex()}, which transaction 0x{tid.hex()} wrote, was copied unchanged" in done.stderr
    )
    (bad,) = call("verify", "--json", target, code=1).json["bad"]
    assert (bad["oid"], bad["written"]["tid"], bad["block"]) == (oid.hex(), tid.hex(), 4)
    target = tmp_path / "z.fs"
    (found,) = call("copy", "--json", path, target, code=1).json["mismatches"]
    assert (found["oid"], found["written"]["tid"]) == (oid.hex(), tid.hex())


@pytest.mark.parametrize("command", ["export", "copy"])
def test_an_array_that_does_not_match_is_not_exported(call, path, tmp_path, small, command):
    root = dbopen(small)
    fill(root)
    dbclose(root)
    ((oid, tid),) = damage(path, [4]).values()
    target = tmp_path / "y.npy" if command == "export" else f"{tmp_path}/y.fs#A"
    done = call(command, f"{path}#A", target, code=1)
    assert "block 4 of " in done.stderr
    assert oid.hex() in done.stderr
    assert tid.hex() in done.stderr


def test_verify_says_how_many_blocks_have_a_checksum(call, path):
    root = dbopen(path)
    fill(root)
    root["old"] = A = ZBigArray((2 * BLK,), "u1", blksize=BLK, zblk_fmt="ZBlk1")
    transaction.commit()
    A[:] = 1
    transaction.commit()
    dbclose(root)
    text = "2 arrays, 22 blocks, 22 with a checksum: "
    assert call("verify", path).stdout == f"{text}all good\n"
    ((_, tid),) = damage(path, [4]).values()
    done = call("verify", path, code=1)
    assert done.stdout.endswith(f"{text}1 bad, of which 1 not as their checksums say\n")
    assert f"0x{tid.hex()}" in done.stdout
    found = call("verify", "--json", path, code=1).json
    assert (found["checksums"], found["mismatches"]) == (22, 1)


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.slow
def test_verify_finds_a_flipped_bit_in_each_of_1000_blocks(call, tmp_path, small, server):
    path = tmp_path / "x.fs"
    if server:
        zeo = ZeoServer(tmp_path, 1)
        zeo.start()
        path = tmp_path / "1.fs"
    url = f"{zeo.url}?storage=1" if server else path
    try:
        root = dbopen(url)
        fill(root, 1000)
        dbclose(root)
        if server:
            zeo.stop()
        damaged = damage(path, range(1000))
        if server:
            zeo.start()
        found = call("verify", "--json", url, code=1).json
    finally:
        if server:
            zeo.stop()
    assert found["checksums"] == found["mismatches"] == 1000
    assert {b["block"]: (b["oid"], b["written"]["tid"]) for b in found["bad"]} == {
        blk: (oid.hex(), tid.hex()) for blk, (oid, tid) in damaged.items()
    }
