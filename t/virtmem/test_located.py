"""Blocks that are known ahead: what a file says, what the pager believes of it, and how long.

The files say where their blocks are, without a database. Other tests reach the kernel's limit on
mappings.
"""

import os

import numpy as np
import pytest
from support.child import check_child

from wendelin.bigfile import BlockLoadError, ram_reclaim
from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.handle import WRITEOUT_MARKSTORED, WRITEOUT_STORE
from wendelin.bigfile.virtmem.located import epoch, set_located


class Ahead(BigFile):
    """A file that knows all of its blocks ahead."""

    def __init__(self, path, blksize=4096):
        super().__init__(blksize)
        self.fd = os.open(path, os.O_RDONLY)
        self.asked = []
        self.ahead = lambda start, stop: {
            blk: (self.fd, blk * blksize) for blk in range(start, min(stop, 64))
        }

    def __del__(self):
        os.close(self.fd)

    def mapblk(self, blk):
        self.asked.append(blk)
        return (self.fd, blk * self.blksize) if blk < 64 else HOLE

    def mapahead(self, start, stop):
        return self.ahead(start, stop)


@pytest.fixture
def numbered(tmp_path):
    """A file of 64 pages, each filled with its number."""
    path = tmp_path / "numbered"
    path.write_bytes(np.repeat(np.arange(64, dtype="u1"), 4096).tobytes())
    return str(path)


def view_of(file, n=64):
    handle = file.fileh_open()
    return handle, np.frombuffer(handle.mmap(0, n), "u1")


def test_each_look_ahead_is_longer(numbered):
    file = Ahead(numbered)
    _, a = view_of(file)
    assert (a.reshape(64, 4096) == np.arange(64)[:, None]).all()
    assert file.asked == [0, 4, 12, 28, 60]


def test_random_touches_soon_know_everything(numbered):
    file = Ahead(numbered)
    _, a = view_of(file)
    for blk in np.random.default_rng(1).permutation(64):
        assert a[blk * 4096] == blk
    assert len(file.asked) < 16


def test_what_is_invalidated_during_a_look_is_not_believed(numbered, tmp_path):
    file = Ahead(numbered)
    handle, a = view_of(file)
    other = tmp_path / "other"
    other.write_bytes(bytes([99]) * 64 * 4096)
    fd = os.open(other, os.O_RDONLY)

    def ahead(start, stop):
        found = {blk: (file.fd, blk * 4096) for blk in range(start, stop)}
        handle.invalidate_page(2)  # another client changed it during the look-up
        file.mapblk = lambda blk: (fd, blk * 4096)
        file.ahead = lambda start, stop: {}
        return found

    file.ahead = ahead
    assert a[0] == 0
    assert a[2 * 4096] == 99
    assert a[3 * 4096] == 99
    os.close(fd)


@pytest.mark.parametrize(
    "bad", [{1: (-1, 0)}, {1: (0, 5)}, {1: (0, 0, 4097)}, {"x": HOLE}, 5, {1: None}, {1: (0,)}]
)
def test_a_bad_look_ahead_does_not_harm(numbered, bad):
    file = Ahead(numbered)
    _, a = view_of(file)
    file.ahead = lambda start, stop: bad
    assert (a.reshape(64, 4096) == np.arange(64)[:, None]).all()


@pytest.mark.parametrize("bad", [(-1, 0), (0, 5), (0, 0, 4097), (0,), 5, (0, -4096)])
def test_a_bad_place_is_an_error(numbered, bad):
    file = Ahead(numbered)
    handle, _ = view_of(file)
    file.mapblk = lambda blk: bad
    with pytest.raises(BlockLoadError, match=r"mapblk|unpack|object of type"):
        handle.load(0, 1)


def test_unaligned_and_short_places_are_copied(numbered):
    file = Ahead(numbered)
    _, a = view_of(file, 4)
    file.ahead = lambda start, stop: {
        1: (file.fd, 4096 * 10 - 100, 4096),
        2: (file.fd, 4096 * 20 + 5, 7),
        3: (file.fd, 4096, 0),
    }
    assert a[0] == 0
    assert (a[4096:4196] == 9).all()
    assert (a[4196:8192] == 10).all()
    assert (a[8192:8199] == 20).all()
    assert not a[8199:].any()
    assert file.asked == [0]


def test_a_known_block_that_cannot_be_read(numbered):
    file = Ahead(numbered)
    handle, a = view_of(file, 4)
    file.ahead = lambda start, stop: {1: (file.fd, 64 * 4096 - 10, 4096)}
    assert a[0] == 0
    with pytest.raises(BlockLoadError, match="Input/output error"):
        handle.load(1, 1)
    assert not handle.failed
    with pytest.raises(BlockLoadError, match="disk failed, or the file was cut"):
        a[4096]
        for _ in range(1000):
            pass
    assert len(handle.failed) == 1
    handle.dirty_discard()
    handle.invalidate_page(1)
    assert a[4096] == 1


def test_a_place_that_was_invalidated_and_closed_during_the_load_is_asked_for_again(numbered):
    file = Ahead(numbered)
    handle, a = view_of(file, 4)
    file.ahead = lambda start, stop: {}
    closed = os.open(numbered, os.O_RDONLY)
    os.close(closed)
    places = [(closed, 4096 * 5, 4096), (file.fd, 4096 * 7, 4096)]

    def mapblk(blk):
        if len(places) == 2:
            handle.invalidate_page(blk)
        return places.pop(0)

    file.mapblk = mapblk
    assert a[1] == 7
    assert not handle.failed
    assert not places


class Stored(Ahead):
    """A file that writes stored blocks to another file, and can be truncated."""

    def __init__(self, path):
        super().__init__(path)
        self.other = os.open(path + ".stored", os.O_RDWR | os.O_CREAT)
        self.stored = set()

    def __del__(self):
        super().__del__()
        os.close(self.other)

    def storeblk(self, blk, buf):
        os.pwrite(self.other, buf, blk * self.blksize)
        self.stored.add(blk)

    def mapblk(self, blk):
        return (self.other if blk in self.stored else self.fd, blk * self.blksize)

    def truncate(self, blk):
        pass


def test_a_stored_page_is_not_where_it_was(numbered):
    file = Stored(numbered)
    handle, a = view_of(file)
    file.ahead = lambda start, stop: {}
    a[5 * 4096]
    set_located(handle, {6: (file.fd, 6 * 4096 + 1, 4096 - 1)}, epoch(handle))  # copied
    a[5 * 4096 : 7 * 4096] = 99
    handle.dirty_writeout(WRITEOUT_STORE | WRITEOUT_MARKSTORED)
    ram_reclaim()
    assert (a[5 * 4096 : 7 * 4096] == 99).all()


def test_a_write_by_another_view_after_it_was_stored_is_a_change(numbered):
    handle, a = view_of(Stored(numbered))
    b = np.frombuffer(handle.mmap(0, 64), "u1")
    a[0] = 1
    handle.dirty_writeout(WRITEOUT_STORE)
    assert not handle.isdirty()
    assert b[0] == 1  # b shows the page read-only: the next write faults
    b[0] = 2
    assert handle.isdirty()
    handle.dirty_writeout(WRITEOUT_MARKSTORED)
    assert handle.dirty_blocks() == [0]


def test_what_is_past_the_end_is_not_known_ahead(numbered):
    handle, a = view_of(Stored(numbered))
    handle.truncate(2)
    a[0]  # the pager looks ahead at [0, 4)
    assert not a[2 * 4096 :].any()
    handle.dirty_discard()
    assert a[3 * 4096] == 3


@pytest.mark.slow
def test_mappings_stay_within_the_kernels_limit(tmp_path):
    """More mapped blocks than a process may have mappings: the oldest are given back."""
    blocks = 40_000  # the pager takes half of the mappings that the kernel allows, 65,530
    path = tmp_path / "many"
    with open(path, "wb") as f:
        for i in range(blocks):  # every second page, so that the kernel merges no mappings
            f.seek(i * 8192)
            f.write(i.to_bytes(8, "little"))
        f.truncate(blocks * 8192)
    check_child(
        """
        import os, sys, numpy as np
        from wendelin.bigfile.virtmem.backend import BigFile
        path, blocks = sys.argv[1], int(sys.argv[2])

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def mapblk(self, blk): return self.fd, blk * 8192
            def mapahead(self, start, stop):
                return {b: (self.fd, b * 8192) for b in range(start, min(stop, blocks))}

        handle = File(4096).fileh_open()
        a = np.frombuffer(handle.mmap(0, blocks), "u8")[::512]
        count = lambda: open("/proc/self/maps").read().count(path)
        limit = int(open("/proc/sys/vm/max_map_count").read()) // 2
        assert limit + 1024 < blocks, limit
        assert (a == np.arange(blocks)).all()
        assert limit // 2 < count() <= limit + 1024, count()
        assert (a[::-1] == np.arange(blocks)[::-1]).all()
        order = np.random.default_rng(1).permutation(blocks)[:10_000]
        assert (a[order] == order).all()
        assert count() <= limit + 1024, count()
        # what was read last is still there, and what was read first is not
        handle2 = File(4096).fileh_open()
        b = np.frombuffer(handle2.mmap(0, blocks), "u8")[::512]
        assert (b == np.arange(blocks)).all()
        """,
        str(path),
        str(blocks),
    )


def test_a_child_has_no_mapping_of_ours(numbered):
    """It maps no page that is or was shown, and no buffer that a storer keeps."""
    check_child(
        """
        import os, sys, warnings, numpy as np
        from wendelin.bigfile.virtmem.backend import HOLE, BigFile
        from wendelin.bigfile.virtmem.handle import ram_reclaim
        from wendelin.bigfile.virtmem.writeout import page_buffer
        warnings.simplefilter("ignore")     # of fork() in a process with threads
        path, = sys.argv[1:]

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def loadblk(self, blk, buf): buf[:] = b"x" * 4096
            def mapblk(self, blk):
                return [None, HOLE, (self.fd, 0), (self.fd, 7, 4096)][blk % 4]

        handle = File(4096).fileh_open()
        a = np.frombuffer(handle.mmap(0, 16), "u1")
        a.sum()
        a[: 8 * 4096 : 4096] = 1            # all kinds of them are written to
        kept = page_buffer(handle, 0)
        ram_reclaim()                       # and others are taken away
        a[12 * 4096]
        handle.invalidate_page(14)          # FILE -> NONE
        handle.invalidate_page(13)          # ZERO -> NONE
        def ours():
            lines = open("/proc/self/maps").read().splitlines()
            return [m for m in lines if "memfd:wendelin.core" in m or path in m]
        assert ours()
        if os.fork() == 0:
            os._exit(len(ours()))
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        """,
        numbered,
    )


def test_the_program_itself_uses_up_the_kernels_mappings(numbered):
    """The pager gives back its own mappings also when mmap() fails with ENOMEM."""
    check_child(
        """
        import ctypes, mmap, os, sys, numpy as np
        from wendelin.bigfile.virtmem.backend import BigFile
        path, = sys.argv[1:]

        class File(BigFile):
            fd = os.open(path, os.O_RDONLY)
            def mapblk(self, blk): return self.fd, blk % 64 * 4096

        handle = File(4096).fileh_open()
        blocks = 4096
        a = np.frombuffer(handle.mmap(0, blocks), "u1")[::4096]
        order = np.random.default_rng(1).permutation(blocks)
        assert (a[order] == order % 64).all()

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        limit = int(open("/proc/sys/vm/max_map_count").read())
        filler = mmap.mmap(-1, limit * 2 * 4096, prot=0, flags=mmap.MAP_PRIVATE)
        at = np.frombuffer(filler, "u1").ctypes.data
        n = 0
        while libc.mprotect(at + n * 8192, 4096, mmap.PROT_READ) == 0:
            n += 1
        assert ctypes.get_errno() == 12 and n > 1000, n
        handle2 = File(4096).fileh_open()
        libc.mprotect(at, 8192 * 16, mmap.PROT_READ)    # room for an area, and its handle
        b = np.frombuffer(handle2.mmap(0, blocks), "u1")[::4096]
        assert (b[order] == order % 64).all()
        assert (a == np.arange(blocks) % 64).all()
        assert not handle.failed and not handle2.failed
        """,
        numbered,
    )
