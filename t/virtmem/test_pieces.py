"""Blocks that lie in several pieces of a file: mapped or copied, changed, dropped, and refused."""

import os
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.child import check_child

from wendelin.bigfile import BlockLoadError, ram_reclaim
from wendelin.bigfile.virtmem.abilities import FilePieces
from wendelin.bigfile.virtmem.backend import HOLE, BigFile
from wendelin.bigfile.virtmem.handle import ram_stat
from wendelin.bigfile.virtmem.located import epoch, set_located
from wendelin.lib.storage.record import digest_of

OS = os.sysconf("SC_PAGESIZE")
BLK = 8 * OS
NBLK = 4


class Pieces(BigFile):
    """A file whose blocks are where `where` says; another block is a hole."""

    def __init__(self, fd, where):
        super().__init__(BLK)
        self.fd, self.where = fd, where
        self.stored = {}

    def mapblk(self, blk):
        return FilePieces(self.fd, self.where[blk]) if blk in self.where else HOLE

    def storeblk(self, blk, buf):
        self.stored[blk] = bytes(buf)


@pytest.fixture(scope="module")
def bytes_of_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "file"
    data = np.random.default_rng(1).integers(1, 256, 64 * OS, "u1")
    path.write_bytes(data.tobytes())
    fd = os.open(path, os.O_RDONLY)
    yield fd, data
    os.close(fd)


def expected(data, pieces):
    block = np.zeros(BLK, "u1")
    for start, offset, size, _ in pieces:
        block[start : start + size] = data[offset : offset + size]
    return block


@st.composite
def blocks(draw):
    """A block: its pieces, at multiples of the OS page or at any offset, with digests or not."""
    unit = draw(st.sampled_from([OS, OS, 1]))
    cuts = draw(st.lists(st.integers(0, BLK // unit), min_size=2, max_size=10, unique=True))
    cuts = sorted(cut * unit for cut in cuts)
    pieces = []
    for start, stop in pairwise(cuts):
        if draw(st.booleans()):
            offset = draw(st.integers(0, 56 * OS // unit)) * unit
            pieces.append((start, offset, stop - start, draw(st.booleans())))
    return pieces


@settings(deadline=None, max_examples=40)
@given(
    found=st.lists(blocks().filter(len), min_size=NBLK, max_size=NBLK),
    steps=st.lists(
        st.tuples(st.sampled_from("rwldxp"), st.integers(0, NBLK * BLK - 1)), max_size=12
    ),
)
def test_blocks_in_pieces_are_as_an_ndarray(bytes_of_file, found, steps):
    fd, data = bytes_of_file
    where = {
        blk: [(s, o, n, digest_of([data[o : o + n]]) if check else None) for s, o, n, check in p]
        for blk, p in enumerate(found)
    }
    stored = np.concatenate([expected(data, where[blk]) for blk in range(NBLK)])
    file = Pieces(fd, where)
    handle = file.fileh_open()
    now = stored.copy()
    view = np.frombuffer(handle.mmap(0, NBLK), "u1")
    for step, at in steps:
        if step == "r":
            assert view[at] == now[at]
        elif step == "w":
            view[at] = now[at] = (int(now[at]) + 1) % 256
        elif step == "l":
            set_located(
                handle,
                {blk: FilePieces(fd, where[blk]) for blk in range(at // BLK, NBLK)},
                epoch(handle),
            )
        elif step == "d":
            handle.dirty_discard()
            now = stored.copy()
        elif step == "x" and not handle.isdirty():
            handle.invalidate_page(at // BLK)
        elif step == "p":
            ram_reclaim()
    assert (view == now).all()


def maps(fd):
    path = os.readlink(f"/proc/self/fd/{fd}")
    with open("/proc/self/maps") as f:
        return sum(path in line for line in f)


def test_pieces_are_mapped_and_not_copied(bytes_of_file):
    fd, data = bytes_of_file
    where = {0: [(OS * i, OS * (20 - 2 * i), OS, None) for i in (0, 1, 3, 6)]}
    before = ram_stat()[1]
    file = Pieces(fd, where)
    handle = file.fileh_open()
    view = np.frombuffer(handle.mmap(0, 1), "u1")
    assert (view == expected(data, where[0])).all()
    assert maps(fd) == 4
    assert ram_stat()[1] == before
    view[OS * 2] = 7  # in a gap: the block is copied, once
    assert maps(fd) == 0
    want = expected(data, where[0])
    want[OS * 2] = 7
    assert (view == want).all()


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 0, 0, None)],
        [(0, 0, BLK + 1, None)],
        [(OS, 0, OS, None), (0, OS, OS, None)],
        [(0, 0, OS + 1, None), (OS, OS, OS, None)],
        [(BLK, 0, OS, None)],
        [(0, -OS, OS, None)],
        [(0, 0, OS)],
    ],
)
def test_bad_pieces_are_an_error(bytes_of_file, pieces):
    handle = Pieces(bytes_of_file[0], {0: pieces}).fileh_open()
    with pytest.raises(BlockLoadError, match=r"mapblk|unpack"):
        handle.load(0, 1)


def test_a_piece_that_does_not_match_its_digest(bytes_of_file):
    fd, data = bytes_of_file
    good = digest_of([data[:5]])
    handle = Pieces(fd, {0: [(0, 0, 5, good), (5, 1, 5, good)]}).fileh_open()
    with pytest.raises(BlockLoadError):
        handle.load(0, 1)


@pytest.mark.parametrize("taken", [0, 40000])
def test_more_pieces_than_the_kernel_has_mappings(taken):
    check_child(
        """
    import mmap, os, sys, tempfile
    import numpy as np
    from wendelin.bigfile.virtmem.abilities import FilePieces
    from wendelin.bigfile.virtmem.backend import BigFile

    OS = os.sysconf("SC_PAGESIZE")
    N = 8192
    # mappings that the program has itself
    taken = [mmap.mmap(-1, OS, prot=1 + i % 2) for i in range(int(sys.argv[1]))]
    with tempfile.TemporaryFile() as f:
        f.write(np.repeat(np.arange(1, 9, dtype="u1"), OS).tobytes())
        f.flush()

        class File(BigFile):
            def mapblk(self, blk):
                return FilePieces(f.fileno(), [(OS * i, OS * (7 - i), OS, None) for i in range(8)])

        handle = File(8 * OS).fileh_open()
        view = np.frombuffer(handle.mmap(0, N), "u1").reshape(N, 8, OS)
        for _ in range(2):
            for i in range(N):
                assert view[i, i % 8, 0] == 8 - i % 8
        assert (view[::97, :, 0] == np.arange(8, 0, -1)).all()
    """,
        str(taken),
        timeout=120,
    )
