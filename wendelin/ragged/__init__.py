"""Arrays of named pieces of different lengths, which several processes write at a time.

ragged    ZRagged: the pieces by key, and Writer, through which one process adds some
segment   the rows and the index of one writer

It knows arrays in a database and BTrees. The idea, and the example that the tests have, are of
bigarray's PointerArray (https://github.com/trungnt13/bigarray).
"""

from wendelin.ragged.ragged import Writer, ZRagged

__all__ = ["Writer", "ZRagged"]
