"""Every kind of BigFile keeps the contract that the pager relies on."""

import os

import pytest
from support.conformance import BLK, BigFileTests, view
from support.ramfile import RAMFile, ReturningFile

from wendelin.bigfile.file_file import BigFile_File


class TestRAMFile(BigFileTests):
    """A loader that fills the buffer."""

    cls = RAMFile

    @pytest.fixture
    def make(self):
        def make(blksize, same=None):
            file = self.cls(blksize)
            if same is not None:
                file.blocks = same.blocks
            return file

        return make

    def raw_read(self, file, blk):
        return file.blocks[blk]

    def raw_write(self, file, blk, data):
        file.blocks[blk] = data


class TestReturningFile(TestRAMFile):
    """A loader that returns the block."""

    cls = ReturningFile


class TestBigFileFile(BigFileTests):
    """An ordinary file."""

    @pytest.fixture
    def make(self, tmp_path):
        return lambda blksize, same=None: BigFile_File(str(tmp_path / "x"), blksize)

    def raw_read(self, file, blk):
        with open(file._name, "rb") as f:
            f.seek(blk * file.blksize)
            return f.read(file.blksize)

    def raw_write(self, file, blk, data):
        with open(file._name, "r+b") as f:
            f.seek(blk * file.blksize)
            f.write(data)

    def test_descriptor(self, tmp_path, no_leaks):
        fd = os.open(tmp_path / "y", os.O_RDWR | os.O_CREAT)
        file = BigFile_File(fd, BLK)
        os.close(fd)
        a = view(file.fileh_open())
        a[0] = 1
        assert a[:2].tolist() == [1, 0]
        del a, file
        with pytest.raises(OSError, match="not a regular file"):
            BigFile_File("/dev/null", BLK)
        with pytest.raises(FileNotFoundError):
            BigFile_File(str(tmp_path / "no" / "x"), BLK)
