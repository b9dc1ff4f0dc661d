"""Arrays over files mapped in memory, which look like ndarrays and whose views are ndarrays."""

from wendelin.bigarray.array import BigArray

__all__ = ["BigArray"]
