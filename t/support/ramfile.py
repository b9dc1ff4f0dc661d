"""A BigFile whose blocks are in a dict, for tests of the layers above and below it."""

from wendelin.bigfile import BigFile


class RAMFile(BigFile):
    """Blocks are bytes in `blocks`; `loads` and `stores` have what was asked for, in order."""

    def __init__(self, blksize=4096):
        super().__init__(blksize)
        self.blocks = {}
        self.loads = []
        self.stores = []

    def loadblk(self, blk, buf):
        self.loads.append(blk)
        data = self.blocks.get(blk, b"")
        buf[: len(data)] = data

    def storeblk(self, blk, buf):
        self.stores.append(blk)
        self.blocks[blk] = bytes(buf)

    def truncate(self, blk):
        for key in [key for key in self.blocks if key >= blk]:
            del self.blocks[key]


class ReturningFile(RAMFile):
    """Its loader returns the block, as short as it is stored."""

    def loadblk(self, blk, buf):
        self.loads.append(blk)
        return self.blocks.get(blk, b"").rstrip(b"\0")
