"""Arrays over files mapped in memory, which look like ndarrays and whose views are ndarrays."""

from wendelin.bigarray.array import BigArray
from wendelin.bigarray.arrayref import ArrayRef, InvalidArrayRef

__all__ = ["ArrayRef", "BigArray", "InvalidArrayRef"]
