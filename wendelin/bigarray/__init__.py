"""Arrays over files mapped in memory. They look like ndarrays, and their views are ndarrays."""

from wendelin.bigarray.array import BigArray
from wendelin.bigarray.arrayref import ArrayRef, InvalidArrayRef

__all__ = ["ArrayRef", "BigArray", "InvalidArrayRef"]
