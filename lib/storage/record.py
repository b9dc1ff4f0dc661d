"""Records of ZODB, read without a Connection.

A record is two pickles: the class of the object, then its state. A fault, which comes in any
thread at any moment, reads blocks and the block table from records. So it neither disturbs the
Connection, which is not thread-safe, nor leaves objects in its cache. And a state that is only
bytes, as most data is, is found in the record without a copy.

Nothing that a record names is imported or called: classes are names here. The fast unpickler in C
reads nodes of tables, if the record has only harmless opcodes. A reader of ours (inert) reads all
other records, also those of applications.

Checksums
---------
A record whose state is bytes may have a checksum of them. It is at the beginning of a pad, a value
that every reader throws away: 6 bytes of magic, and 8 of XXH3-64, the highest first. It is computed
from the memory that is stored, and stays with the record wherever that goes. bytes_state() compares
it; all readers of such records here call that. A record without a checksum is valid.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import xxhash
from zodbpickle import pickle as zpickle

from wendelin.lib.storage.inert import Global, InertError, Object, Reader, printable, shown

__all__ = [
    "BETWEEN",
    "BINBYTES",
    "CHECKSUM",
    "CHECKSUM_MAGIC",
    "LONGEST_END",
    "POP",
    "STOP",
    "ChecksumError",
    "Elsewhere",
    "NoClassError",
    "Payload",
    "Read",
    "RecordError",
    "Ref",
    "as_bytes",
    "bytes_state",
    "check",
    "class_of",
    "digest_in",
    "digest_of",
    "find_in_any",
    "find_payload",
    "inert_of",
    "is_bytes",
    "is_end",
    "state_at",
    "state_of",
]


class RecordError(Exception):
    """A record is damaged, or of another kind than expected."""


class NoClassError(RecordError):
    """A record begins with something else than a class: no Connection has written it."""


class ChecksumError(RecordError):
    """The bytes of a record do not match their checksum."""

    def __init__(self, what: str = "its bytes") -> None:
        super().__init__(f"{what} do not match the checksum that was stored with them (XXH3-64)")


class Ref(NamedTuple):
    """A reference to another persistent object."""

    oid: bytes
    cls: str  # "module.name", "" if the reference does not have it


# ---- pickles ----


class _Unpickler(zpickle.Unpickler):  # type: ignore[misc]  # no type hints
    def find_class(self, module: str, name: str) -> object:
        return Global(f"{module}.{name}")

    def persistent_load(self, ref: Any) -> Ref:
        # the form that ZODB.serialize writes most
        if type(ref) is tuple and len(ref) == 2 and type(ref[1]) is Global:
            oid = ref[0]
            if type(oid) is bytes and len(oid) == 8:
                return Ref(oid, ref[1].name)
        return _reference(ref)


class Elsewhere(NamedTuple):
    """A reference that is not followed: it is weak, or into another database."""

    what: str


def _reference(ref: Any) -> Ref:
    """Return the Ref of a persistent reference, in any of the forms that ZODB.serialize writes."""
    if isinstance(ref, list) and len(ref) == 2 and isinstance(ref[1], tuple):
        kind, args = ref
        if kind in ("m", "n"):
            raise RecordError("a reference into another database")
        ref = args[0] if kind == "w" and args else None
    cls = ""
    if isinstance(ref, tuple) and len(ref) == 2:
        ref, cls = ref[0], _class_name(ref[1])
    oid = as_bytes(ref)
    if len(oid) != 8:
        raise RecordError(f"not a reference: {shown(oid)}")
    return Ref(oid, cls)


def _any_reference(ref: Any) -> Ref | Elsewhere:
    """Return the Ref, or Elsewhere, of a persistent reference in an application's object."""
    if isinstance(ref, list):
        return Elsewhere("a weak reference" if ref[:1] == ["w"] else "of another database")
    return _reference(ref)


def _class_name(cls: object) -> str:
    if isinstance(cls, Global):
        return cls.name
    if isinstance(cls, tuple) and cls:
        # (class, args), or in old databases ((module, name), args); or (module, name), written by a
        # server that resolved a conflict without having the class
        head = cls[0]
        names = head if isinstance(head, tuple) else cls
        if len(names) == 2 and all(isinstance(name, str | bytes) for name in names):
            return printable(".".join(map(_text, names)))
        if isinstance(head, Global):
            return head.name
    raise NoClassError(f"a record without a class: {shown(cls)}")


def _text(name: str | bytes) -> str:
    """Return a name, maybe one of Python 2."""
    return name.decode("ascii", "replace") if isinstance(name, bytes) else name


def as_bytes(state: object) -> bytes:
    """Return a state that should be bytes: as Python 3 has it, or as Python 2 wrote it.

    Raises
    ------
    RecordError
        It is not bytes.
    """
    if isinstance(state, bytes):
        return bytes(state)
    if isinstance(state, str):
        # A str of Python 2 that a Connection unpickled with errors="bytes", and that was ASCII.
        try:
            return state.encode("ascii")
        except UnicodeEncodeError:
            pass
    raise RecordError(f"bytes were expected, not {type(state).__name__}")


_SMALL = 64 << 10  # the unpickler in C reads smaller records [bytes]

#: The opcodes of nodes of BTrees, and of ZBlk1: classes, references, integers, short text, tuples.
#: None of them calls anything, hashes a value, or takes more memory than its size says. (In C, a
#: place far behind all others in the memo takes the memory of all of them.)
_TEXT = b"|".join(b"\\x%02x\\0\\0\\0.{%d}" % (n, n) for n in range(129))
_PLAIN = re.compile(
    rb"(?s)(?:q.|C\x08.{8}|h.|\x86|Q|[(t.N)\x85\x87\x88\x89]|K.|M..|J.{4}|r..\0\0|j.{4}"
    rb"|\x8a(?:\x01.|\x02..|\x03...|\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
    rb"|U\x08.{8}|c[\w.]+\n\w+\n|\x80[\x01-\x03]|X(?:" + _TEXT + rb"))*+"
)


def _is_plain(record: bytes) -> bool:
    return len(record) <= _SMALL and _PLAIN.fullmatch(record) is not None


def _load(record: bytes, pickles: int) -> Any:
    """Return the value of the last of the first `pickles` pickles; they share their memo."""
    if _is_plain(record):
        unpickler = _Unpickler(io.BytesIO(record), encoding="bytes", errors="strict")
        try:
            for _ in range(pickles):
                value = unpickler.load()
            return value
        except RecordError:
            raise
        except Exception as e:
            raise RecordError(f"damaged record: {type(e).__name__}: {e}") from e
    reader = Reader(record, _reference, "bytes")
    try:
        for _ in range(pickles):
            value = reader.load()
    except InertError as e:
        raise RecordError(f"damaged record: {e}") from e
    if isinstance(value, Object):
        raise RecordError(f"a record calls {value.cls}: only plain states are read here")
    return value


def _end_of_pickle(record: bytes) -> int:
    """Return where the first pickle of a record ends."""
    try:
        for opcode, _, pos in pickletools.genops(record):
            if opcode.name == "STOP":
                return int(pos or 0) + 1
    except Exception as e:
        raise RecordError(f"damaged record: {e}") from e
    raise RecordError("damaged record: no end")


# ---- records ----

#: First pickles that were seen -> class: there is one for each class and writer.
_heads: OrderedDict[bytes, str] = OrderedDict()
_HEADS = 64
_LONGEST = 4096  # [bytes]


def _head(record: memoryview | bytes) -> tuple[int, str]:
    """Return (where the state begins, name of the class)."""
    for head, name in list(_heads.items()):
        if record[: len(head)] == head:
            return len(head), name
    first = bytes(record[:_LONGEST])
    end = _end_of_pickle(first)
    head = first[:end]
    name = _class_name(_load(head, 1))
    _heads[head] = name
    while len(_heads) > _HEADS:
        _heads.popitem(last=False)
    return end, name


def class_of(record: memoryview | bytes) -> str:
    """Return "module.name" of the object's class."""
    return _head(record)[1]


def state_at(record: bytes) -> int:
    """Return where the state begins, behind the class."""
    return _head(record)[0]


def state_of(record: bytes) -> Any:
    """Return the state: plain values, Refs in place of objects; a Python 2 str is bytes."""
    return _load(record, 2)


def inert_of(record: bytes) -> tuple[str, Any]:
    """Return the class of an object, and its state as inert reads it.

    Raises
    ------
    NoClassError
        The record has no class.
    RecordError
        The record is damaged.
    """
    reader = Reader(record, _any_reference)
    try:
        return _class_name(reader.load()), reader.load()
    except InertError as e:
        raise RecordError(f"damaged record: {e}") from e


# opcodes of byte strings -> size of the length that follows
_BYTES_OPS = {ord("B"): 4, ord("C"): 1, 0x8E: 8, ord("T"): 4, ord("U"): 1}
BINBYTES, POP, STOP = b"B", b"0", b"."
BETWEEN = 6  # between a pad that was written here and the payload: POP, BINBYTES, length [bytes]


class Payload(NamedTuple):
    """Where the bytes are in a record whose state is one piece of bytes.

    The state is `[PROTO] [FRAME] [BINBYTES pad POP] BYTES [memo] STOP`. A reader that unpickles the
    record throws the pad away; it only moves the payload to an offset.
    """

    state: int  # where the state begins, behind the class
    begin: int  # of the pad, if there is one
    op: int  # the opcode of the payload
    start: int  # [start, stop): the payload
    stop: int
    framed: bool  # a pad cannot be put there
    digest: bytes | None  # XXH3-64 of the payload, as it was stored; None: there is no checksum
    opcode: bytes  # of the payload

    @property
    def between(self) -> bytes:
        """What is between a pad and the payload: POP, and the opcode with its length."""
        length = (self.stop - self.start).to_bytes(self.start - self.op - 1, "little")
        return POP + self.opcode + length


#: (start, size) -> bytes of a record; fewer, or none, if they are not there
Read = Callable[[int, int], bytes]


def find_payload(
    record: memoryview | bytes, size: int | None = None, read: Read | None = None
) -> Payload | None:
    """Return where the bytes are; None if the state is not one piece of bytes.

    Parameters
    ----------
    record : bytes-like
        A record, or the beginning of one, up to the payload.
    size : int, optional
        Size of the whole record [bytes], if it is longer. Then the caller must check the bytes
        behind the payload: is_end().
    read : Read, optional
        `record` may end in a long pad; this reads BETWEEN bytes behind it.
    """
    state, begin, framed = _begin(record)
    op, end = begin, len(record)
    digest = None
    opcode = bytes(record[op : op + 1])
    found = _bytes_at(record, op)
    if found is not None:
        start, stop = found
        behind = bytes(record[stop : stop + 10])  # POP, and an opcode with the longest length
        if read is not None and size is not None and end < stop + BETWEEN < size:
            behind = read(stop, BETWEEN)
        if behind[:1] == POP:
            digest = _digest_at(record, start, stop)
            op, opcode = stop + 1, behind[1:2]
            found = _bytes_at(behind, 1, stop)
    if found is None:
        return None
    start, stop = found
    # behind it are the memo, if any, and the end; else the state is more complicated
    if size is None:
        tail = bytes(record[stop : stop + 7])
        if stop + len(tail) != end or not is_end(tail):
            return None
    elif not stop < size <= stop + LONGEST_END:
        return None
    return Payload(state, begin, op, start, stop, framed, digest, opcode)


def _begin(record: memoryview | bytes) -> tuple[int, int, bool]:
    """Return (where the state begins, where its first value begins, whether it is in a frame)."""
    state = pos = _head(record)[0]
    end = len(record)
    if end - pos > 2 and record[pos] == 0x80:
        pos += 2
    framed = end - pos > 9 and record[pos] == 0x95
    return state, pos + 9 if framed else pos, framed


CHECKSUM_MAGIC = b"wcXXH3"  # a checksum follows
CHECKSUM = len(CHECKSUM_MAGIC) + 8  # [bytes]


def digest_of(pieces: Iterable[memoryview | bytes]) -> bytes:
    """Return XXH3-64 of bytes, the highest byte first. Holds the GIL for no large piece."""
    state = xxhash.xxh3_64()  # before xxhash 4, xxh3_64_digest() does hold it
    for piece in pieces:
        state.update(piece)
    return state.digest()


def digest_in(pad: bytes) -> bytes | None:
    """Return the digest in a pad, or its first CHECKSUM bytes; None if there is none."""
    has = len(pad) >= CHECKSUM and pad.startswith(CHECKSUM_MAGIC)
    return pad[len(CHECKSUM_MAGIC) : CHECKSUM] if has else None


def _digest_at(record: memoryview | bytes, start: int, stop: int) -> bytes | None:
    return digest_in(bytes(record[start : min(stop, start + CHECKSUM)]))


LONGEST_END = 6  # of the bytes behind a payload [bytes]


def is_end(tail: bytes) -> bool:
    """Say whether bytes are the end of a record behind a payload: [memo] STOP."""
    memo = tail[:-1]
    return tail[-1:] == STOP and (
        memo in (b"", b"\x94") or (memo[:1], len(memo)) in ((b"q", 2), (b"r", 5))
    )


def _bytes_at(record: memoryview | bytes, pos: int, base: int = 0) -> tuple[int, int] | None:
    """Return base + [start, stop) of the byte string at pos; None if there is none."""
    if pos >= len(record):
        return None
    size = _BYTES_OPS.get(record[pos])
    if size is None:
        return None
    start = pos + 1 + size
    if start > len(record):
        return None
    start, length = start + base, int.from_bytes(record[pos + 1 : start], "little")
    return start, start + length


def bytes_state(record: bytes, found: Payload | None = None) -> memoryview | bytes:
    """Return a state that is bytes, without a copy if the record holds it in one piece.

    It is compared with its checksum, if there is one.

    Parameters
    ----------
    record : bytes
    found : Payload, optional
        The result of find_payload().

    Raises
    ------
    RecordError
        The state is not bytes.
    ChecksumError
        The bytes are not those that were stored.
    """
    found = found or find_payload(record)
    if found is not None:
        payload = memoryview(record)[found.start : found.stop]
        if found.digest is not None and digest_of([payload]) != found.digest:
            raise ChecksumError
        return payload
    state = state_of(record)
    first = _bytes_at(record, _begin(record)[1])
    if first is not None and _digest_at(record, *first) is not None:
        raise RecordError("damaged record: a checksum, and no piece of bytes after it")
    if not isinstance(state, bytes):  # a str of Python 2 is bytes, too
        raise RecordError(f"bytes were expected, not {type(state).__name__}")
    return bytes(state)


def is_bytes(record: bytes, found: Payload | None = None) -> bool:
    """Say whether a state is bytes, and pickled as bytes, not as a str of Python 2.

    A Connection cannot load such a str that is not ASCII. For `found` see bytes_state().
    """
    found = found or find_payload(record)
    return found is not None and found.opcode not in (b"T", b"U")


def find_in_any(record: bytes) -> Payload | None:
    """Return where the bytes are; None for data that is not a record: a storage takes any."""
    try:
        return find_payload(record)
    except RecordError:
        return None


def check(record: bytes) -> None:
    """Compare the bytes of a record with their checksum, if it has one.

    Raises
    ------
    ChecksumError
        They do not match.
    """
    found = find_in_any(record)
    if found is not None and found.digest is not None:
        bytes_state(record, found)
