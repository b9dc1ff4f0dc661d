"""Which bytes of a value zarr asks for, as a slice. This module needs zarr, and knows only that."""

from __future__ import annotations

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)

__all__ = ["byte_slice"]

_NOTHING = slice(1 << 62, None)


def byte_slice(request: ByteRequest | None) -> slice | None:
    """Return which bytes are asked for; None: all of them.

    Raises
    ------
    TypeError
        It is not a request.
    """
    match request:
        case None:
            return None
        case RangeByteRequest():
            return slice(request.start, request.end)
        case OffsetByteRequest():
            return slice(request.offset, None)
        case SuffixByteRequest():
            return slice(-request.suffix, None) if request.suffix else _NOTHING
    raise TypeError(f"Unexpected byte_range, got {request}.")
