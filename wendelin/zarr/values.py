"""Values of a Zarr group, read from records: any thread, no Connection, no more than is asked for.

Of a local file, the storage says where the bytes of a record lie. A range is read from there. A
large value is given out of a mapping of the file, not copied, after it was compared with its
checksum, once: what cannot be read is an exception then. A smaller one is read, and compared.

Of any other storage the record is loaded, and a value in parts (ZarrParts) part by part: only those
that a range is in.

It knows records. Which key has which value, it does not know. Locking: see Keys.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

from wendelin.lib.storage.fsrecord import Located
from wendelin.lib.storage.record import (
    ChecksumError,
    RecordError,
    Ref,
    bytes_state,
    class_of,
    digest_of,
    state_of,
)
from wendelin.lib.zodb import zconn_has_open, zconn_load_all, zconn_locate

__all__ = ["LARGE", "Data", "Values", "WouldWaitError"]

LARGE = 64 << 10  # what is given out of a mapping [bytes]
AT_ONCE = 2 << 20  # what is compared with its checksum in the thread of an event loop [bytes]
TOGETHER = 16  # parts that are asked for at once
MOST = 1 << 17  # places that are remembered

_VALUE, _PARTS = "wendelin.zarr.ZarrValue", "wendelin.zarr.ZarrParts"

Data = memoryview | bytes | bytearray


class WouldWaitError(Exception):
    """A disk, or another machine, has to be waited for."""


class Values:
    """Reads values.

    Parameters
    ----------
    conn : () -> Connection
        Of the state that is read.
    """

    def __init__(self, conn: Callable[[], Any]) -> None:
        self._conn = conn
        self._places: dict[bytes, Located | None] = {}  # oid -> where it lies; None: nowhere
        self._parts: dict[bytes, tuple[int, int, list[Ref]]] = {}  # of ZarrParts, never changed

    def follow(self, changed: set[bytes] | None) -> None:
        """Be told which objects the new state has changed; None: any may be."""
        places = self._places.copy()  # atomic under the GIL: readers add to it
        conn = self._conn()
        files = {id(p.file): p.file for p in places.values() if p is not None}
        packed = not all(zconn_has_open(conn, file) for file in files.values())
        if changed is None or packed or len(places) > MOST:
            places = {}
        for oid in changed or ():
            places.pop(oid, None)
        self._places = places
        if changed is None or len(self._parts) > MOST:
            self._parts = {}

    # ---- where they lie ----

    def _place(self, oid: bytes, wait: bool) -> Located | None:
        places = self._places
        if oid not in places:
            found = zconn_locate(self._conn(), [oid], wait=wait)[0]
            if found is None and not wait:
                raise WouldWaitError
            places[oid] = found
        return places[oid]

    def place(self, ref: Ref) -> Located | None:
        """Return where a value lies in a file; None: in none, or in parts."""
        return self._place(ref.oid, True) if ref.cls == _VALUE else None

    # ---- reading ----

    def read_now(self, ref: Ref, byte_range: slice | None) -> Data:
        """Return a value, or a range of its bytes, if nobody has to be waited for.

        Raises
        ------
        WouldWaitError
            It would take long.
        """
        if ref.cls == _PARTS and byte_range is not None and ref.oid in self._parts:
            return self._in_parts(ref, byte_range, wait=False)
        if ref.cls != _VALUE:
            raise WouldWaitError
        place = self._place(ref.oid, False)
        if place is None:
            raise WouldWaitError
        if byte_range is None and place.size >= LARGE and not place.matches():
            # to go on in another thread takes as long as to compare 1 MiB that is in memory
            if place.size > AT_ONCE:
                raise WouldWaitError
            try:
                place.check(place.file.nowait)
            except BlockingIOError:
                raise WouldWaitError from None
        return self._out_of(place, byte_range, place.file.nowait)

    def read(self, wanted: Sequence[tuple[Ref, slice | None]]) -> list[Data]:
        """Return values, or ranges of their bytes; what has to be asked for is asked for together.

        Raises
        ------
        RecordError
            One of them is damaged.
        Exception
            What the storage raised.
        """
        found: list[Data | None] = [None] * len(wanted)
        load: list[int] = []
        for i, (ref, byte_range) in enumerate(wanted):
            place = self.place(ref)
            if place is not None:
                found[i] = self._out_of(place, byte_range, 0)
            elif ref.cls == _PARTS:
                found[i] = self._in_parts(ref, byte_range, wait=True)
            else:
                load.append(i)
        records = zconn_load_all(self._conn(), [wanted[i][0].oid for i in load]) if load else []
        for i, record in zip(load, records, strict=True):
            ref, byte_range = wanted[i]
            if class_of(record) == _PARTS:
                found[i] = self._in_parts(Ref(ref.oid, _PARTS), byte_range, wait=True)
            else:
                data = bytes_state(record)
                found[i] = data if byte_range is None else data[byte_range]
        return [data for data in found if data is not None]

    def size(self, ref: Ref) -> int:
        """Return the size of a value [bytes]; see read()."""
        place = self.place(ref)
        if place is not None:
            return place.size
        if ref.cls == _PARTS:
            return self._table(ref)[0]
        return len(self.read([(ref, None)])[0])

    def _out_of(self, place: Located, byte_range: slice | None, flags: int) -> Data:
        if byte_range is not None:
            start, stop, _ = byte_range.indices(place.size)
            return _pread(place, start, max(0, stop - start), flags)
        if place.size >= LARGE:
            if not place.matches():
                place.check()
            return place.file.view(place.offset, place.size)
        data = _pread(place, 0, place.size, flags)
        if place.digest is not None and digest_of([memoryview(data)]) != place.digest:
            raise ChecksumError
        return data

    # ---- in parts ----

    def parts_of(self, ref: Ref) -> list[Ref]:
        """Return what a value in parts is made of; of another one, nothing."""
        return self._table(ref)[2] if ref.cls == _PARTS else []

    def _table(self, ref: Ref) -> tuple[int, int, list[Ref]]:
        known = self._parts.get(ref.oid)
        if known is None:
            state = state_of(zconn_load_all(self._conn(), [ref.oid])[0])
            known = self._parts[ref.oid] = self.parts_in(state)
        return known

    @staticmethod
    def parts_in(state: Any) -> tuple[int, int, list[Ref]]:
        """Return size, size of a part [bytes], and the parts, in the state of a ZarrParts.

        Raises
        ------
        RecordError
            It is not one.
        """
        try:
            size, part_size, refs = state
            bad = part_size <= 0 or size < 0 or len(refs) != -(-size // part_size)
            bad = bad or not all(isinstance(r, Ref) for r in refs)
        except (TypeError, ValueError):
            bad = True
        if bad:
            raise RecordError(f"a damaged ZarrParts: {state!r:.100}")
        return size, part_size, list(refs)

    def _in_parts(self, ref: Ref, byte_range: slice | None, *, wait: bool) -> Data:
        size, part_size, refs = self._table(ref)
        start, stop, _ = (byte_range or slice(None)).indices(size)
        if stop <= start:
            return b""
        first, last = start // part_size, (stop - 1) // part_size
        if first == last:
            one = slice(start - first * part_size, stop - first * part_size)
            if not wait:
                return self.read_now(refs[first], one)
            return self.read([(refs[first], one)])[0]
        if not wait:
            raise WouldWaitError
        data = bytearray(stop - start)
        for begin in range(first, last + 1, TOGETHER):
            some = range(begin, min(begin + TOGETHER, last + 1))
            pieces = self.read([(refs[i], None) for i in some])
            for i, piece in zip(some, pieces, strict=True):
                if len(piece) != min(part_size, size - i * part_size):
                    raise RecordError(f"a damaged ZarrParts: part {i} has {len(piece)} bytes")
                low, high = max(start, i * part_size), min(stop, (i + 1) * part_size)
                data[low - start : high - start] = piece[low - i * part_size : high - i * part_size]
        return memoryview(data).toreadonly()


def _pread(place: Located, start: int, size: int, flags: int) -> Data:
    """Read a range of what lies in a file.

    Raises
    ------
    WouldWaitError
        With RWF_NOWAIT: the disk would have to be waited for.
    """
    if size == 0:
        return b""
    if not flags:
        data = os.pread(place.file.fd, size, place.offset + start)
    else:
        buf = bytearray(size)
        try:
            n = os.preadv(place.file.fd, [buf], place.offset + start, flags)
        except BlockingIOError:
            n = 0
        if n < size:
            raise WouldWaitError
        return buf
    if len(data) < size:
        raise OSError(errno.EIO, "the file was cut")
    return data
