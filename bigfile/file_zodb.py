"""The names that databases and programs use for a file in ZODB and its blocks.

ZBigFile is in zodb.file, its handle in zodb.handle, the formats of blocks in zodb.formats.
"""

from __future__ import annotations

from wendelin.bigfile.zodb.file import ZBigFile
from wendelin.bigfile.zodb.formats import ZBlk0, ZBlk1, ZData
from wendelin.bigfile.zodb.handle import ZBigFileH

__all__ = ["ZBigFile", "ZBigFileH", "ZBlk", "ZBlk0", "ZBlk1", "ZData"]

ZBlk = ZBlk0  # the name in early databases
