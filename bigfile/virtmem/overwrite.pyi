from typing_extensions import Buffer

from wendelin.bigfile.virtmem.handle import BigFileH

def overwrite(fileh: BigFileH, blk: int, data: Buffer) -> int: ...
