"""BigFile: a subclass gives the block size in __new__() or __init__(), as programs for 0.x do."""

import numpy as np
import pytest

from wendelin.bigfile.virtmem.backend import BigFile

BLK = 4096


def test_subclasses_as_they_were_written_for_0_x():
    class New(BigFile):
        """Its __new__() gives the block size; it does not define __init__()."""

        def __new__(cls, name, fill, **kw):
            self = BigFile.__new__(cls, BLK)
            self.fill = fill
            return self

        def loadblk(self, blk, buf):
            buf[:] = bytes([self.fill]) * len(buf)

    class Both(New):
        def __init__(self, name, fill, other):
            BigFile.__init__(self)
            self.name = name

        def __new__(cls, name, fill, other):
            return super().__new__(cls, name, fill)

    class Neither(New):
        def __new__(cls, blksize):
            self = super(New, cls).__new__(cls, blksize)
            self.fill = 7
            return self

    class Init(BigFile):
        """Its __init__() does not call BigFile's: BigFile.__new__() takes the block size."""

        def __init__(self, blksize, fill=7):
            self.fill = fill

        loadblk = New.loadblk

    files = [New(8192, 7), New("x", fill=7), New(4096 * 5, fill=7, more=1), Both("x", 7, 8)]
    files += [Neither(BLK), Neither(blksize=BLK), Init(BLK), Init(blksize=BLK)]
    for file in files:
        assert file.blksize == BLK
        assert np.frombuffer(file.fileh_open().mmap(0, 1), "u1")[5] == 7
    with pytest.raises(ValueError, match="blksize is 5"):
        Neither(5)
    with pytest.raises(TypeError, match="blksize must be an integer, not str"):
        Neither("x")
    assert BigFile.__new__(BigFile, BLK).blksize == BLK


def test_a_subclass_whose_first_argument_is_not_the_block_size():
    class File(BigFile):
        def __init__(self, *args):
            super().__init__(BLK)

    class New(BigFile):
        def __new__(cls, n):
            return super().__new__(cls)

        def __init__(self, n):
            super().__init__(n * BLK)

    for args in (), (2 * BLK,), (5,), ("x", 1), (None,):
        assert File(*args).blksize == BLK
    assert New(2).blksize == 2 * BLK
    with pytest.raises(ValueError, match="blksize is 0"):
        New(0)
    with pytest.raises(TypeError):
        BigFile()
    with pytest.raises(TypeError):
        BigFile(BLK, 5)
