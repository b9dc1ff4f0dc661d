import numpy as np
from numpy.typing import NDArray

from wendelin.bigfile.virtmem.handle import BigFileH

def overwrite(fileh: BigFileH, blk: int, data: bytes | NDArray[np.uint8]) -> int: ...
