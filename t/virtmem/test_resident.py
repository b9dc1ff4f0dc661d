"""Page tables of areas: what the kernel counts as memory of the process, and loses nothing."""

import pytest
from support.child import check_child

BEGIN = """
import sys, threading, time
import numpy as np
from wendelin.bigarray import BigArray
from wendelin.bigfile.virtmem import resident
from wendelin.bigfile.virtmem.backend import BigFile

MIB = 1 << 20
f = open(sys.argv[1], "rb")

class Mapped(BigFile):
    def mapblk(self, blk): return f.fileno(), 0

class Copied(BigFile):
    def loadblk(self, blk, buf): np.frombuffer(buf, "u1")[:] = blk + 1
    def storeblk(self, blk, buf): self.stored = bytes(buf)

def opened(cls, size=320 * MIB):
    return BigArray((size,), "u1", cls(2 * MIB).fileh_open())
"""


@pytest.fixture
def block(tmp_path):
    path = tmp_path / "block"
    path.write_bytes(b"\1" * (2 << 20))
    return str(path)


def test_nothing_is_lost_with_page_tables(block):
    check_child(
        BEGIN
        + """
    before = resident.shared()
    A, B, sparse = opened(Mapped), opened(Copied, 8 * MIB), opened(Mapped, 64 * MIB)
    a, b = A[:], B[:]
    assert int(a.sum(dtype="i8")) == len(a)
    b[3] = 77
    loaded = B.load(slice(4 * MIB, 5 * MIB))
    assert int(loaded.view[5]) == 3
    assert resident.shared() - before > 300 * MIB
    resident.drop_tables()
    assert resident.shared() - before < 40 * MIB, (resident.shared(), before)
    assert (b[2], b[3], b[6 * MIB]) == (1, 77, 4)       # changed, and page memory
    assert bytes(loaded.view[:5]) == b"\\3" * 5
    assert int(a[::4096].sum(dtype="i8")) == len(a) // 4096
    del a, b, loaded, A, B
    resident.drop_tables()
    """,
        block,
    )


def test_a_view_that_is_read_does_not_stay_resident(block):
    """No thread comes to the pager meanwhile: all pages are shown."""
    check_child(
        BEGIN
        + """
    resident.watch(64 * MIB)
    resident.watch(64 * MIB)
    assert sum(t.name == resident.WATCHER for t in threading.enumerate()) == 1
    before = resident.shared()
    a = opened(Mapped)[:]
    total, begun = 0, time.monotonic()
    for at in range(0, len(a), MIB):
        total += int(a[at : at + MIB].sum(dtype="i8"))
    assert total == len(a)
    while resident.shared() - before > 65 * MIB:
        assert time.monotonic() - begun < 30
        time.sleep(0.01)
    """,
        block,
        WENDELIN_CORE_READY="100",
    )


def test_a_child_of_fork_keeps_its_memory(block):
    """Other memory may be where its parent had areas."""
    check_child(
        BEGIN
        + """
    import os
    a = opened(Mapped)[:]
    assert a[5] == 1
    pid = os.fork()
    if not pid:
        own = np.full(400 * MIB, 7, "u1")
        resident.drop_tables()
        os._exit(0 if int(own[::4096].sum()) == 7 * len(own) // 4096 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    """,
        block,
    )
