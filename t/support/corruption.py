"""Damages databases, in ways that a random generator chooses, and makes small ones to be damaged.

In a file, it changes bits, lengths and pieces. Or it stores records that are well-formed, but have
wrong contents. It knows the formats of FileStorage and of records. corruption_trials.py knows what
a damage may lead to.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import transaction
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.FileStorage.format import DATA_HDR_LEN, TRANS_HDR_LEN
from ZODB.fsIndex import fsIndex
from ZODB.utils import p64

from support import DATA
from support.plain_zodb import CLASSES, Places, Ref, decode, encode
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fsindex import save_index, snapshot_of
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096

# ---- bases ----


def write_base(path: Path, fmt: str, align: bool) -> None:
    """Write a small database, in several transactions."""
    root = dbopen(f"file://{path}?align={align}&align_from={ALIGNMENT}")
    rng = np.random.default_rng(7)
    # blocks that can be aligned, and holes
    root["whole"] = A = ZBigArray((6 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
    # a table of several nodes; short blocks
    root["many"] = M = ZBigArray((130, BLK // 8), "f8", blksize=BLK, zblk_fmt=fmt)
    # a block of many chunks, or one that is not full
    root["large"] = L = ZBigArray((3, 40 * BLK), "u1", blksize=80 * BLK, zblk_fmt=fmt, order="F")
    root["x"] = "of another program"
    transaction.commit()
    A[: 4 * BLK] = rng.integers(1, 256, 4 * BLK, "u1")
    M[:, 3] = np.arange(130) + 0.5
    L[:, ::997] = 7
    transaction.commit()
    A[BLK : BLK + 9] = M[5, :9] = L[0, :9] = 3
    transaction.commit()
    A.resize((5 * BLK - 100,))
    A[-1] = 9
    transaction.commit()
    A[7] = 1
    transaction.commit()
    root._p_jar.db().undo(root._p_jar.db().undoLog(0, 1)[0]["id"])
    transaction.commit()
    dbclose(root)


def make_bases(folder: Path) -> None:
    """Make the databases of which damaged copies are made."""
    folder.mkdir(exist_ok=True)
    for fmt in "ZBlk0", "ZBlk1", "auto":
        write_base(folder / f"new-{fmt}.fs", fmt, True)
    write_base(folder / "new-copied.fs", "ZBlk0", False)
    for path in DATA.glob("*.fs"):
        shutil.copy(path, folder / f"kept-{path.name}")
    for path in folder.glob("kept-*.fs.index"):
        path.unlink()


class Base:
    """A database of which damaged copies are made, and what it has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw = path.read_bytes()
        index = Path(f"{path}.index")
        self.index = index.read_bytes() if index.exists() else None
        self.places = self._places()
        self.transactions: list[tuple[int, int]] = []  # [start, stop) of each
        self.spots = self._spots()

    def _places(self) -> Places:
        if "zblk-" in self.path.name:
            return {"zbigf": range(5)}
        if "new-" in self.path.name:
            return {"whole": range(6), "many": range(0, 131, 10), "large": range(3)}
        if "kept-0.13" in self.path.name:
            return {"A": range(2), "early": range(2)}
        if "kept-py" in self.path.name:
            return {"mixed": range(4), "a1_ZBlk0": range(1)}
        return {"mixed": range(9), "i4": range(2)}

    def _spots(self) -> list[tuple[int, int]]:
        """Return [start, stop) of what is structure in the file: headers, beginnings, ends."""
        spots = [(0, 4)]
        pos = 4
        while pos < len(self.raw):
            size = int.from_bytes(self.raw[pos + 8 : pos + 16], "big")
            spots.append((pos, pos + TRANS_HDR_LEN))
            texts = np.frombuffer(self.raw, ">u2", 3, pos + 17).sum()
            at, stop = pos + TRANS_HDR_LEN + int(texts), pos + size
            while at < stop:
                length = int.from_bytes(self.raw[at + 34 : at + DATA_HDR_LEN], "big") or 8
                data = at + DATA_HDR_LEN
                spots.append((at, data))
                spots.append((data, data + min(length, 120)))
                spots.append((max(data, data + length - 40), data + length))
                at = data + length
            spots.append((stop, stop + 8))
            self.transactions.append((pos, stop + 8))
            pos = stop + 8
        return spots

    def copy(self, path: Path, raw: bytes, index: bool) -> None:
        """Write a copy whose bytes are `raw`, with an index beside it or without one."""
        path.write_bytes(self.raw)
        for suffix in ".index", ".lock", ".tmp", ".old", ".tr0":
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        if index and self.index is not None:
            saved = fsIndex.load(f"{self.path}.index")
            tid = self.raw[self.transactions[-1][0] :][:8]
            with open(path, "rb") as file:  # an index of this file, not of the base
                save_index(
                    f"{path}.index", file.fileno(), snapshot_of(saved["index"]), saved["pos"], tid
                )
        path.write_bytes(raw)  # into the same inode, which the index is for


# ---- damages of the file ----


def _spot(base: Base, rng: random.Random) -> int:
    """Return an offset to damage, mostly in the structure."""
    if rng.random() < 0.15:
        return rng.randrange(len(base.raw))
    return rng.randrange(*rng.choice(base.spots))


def _range(base: Base, rng: random.Random) -> tuple[int, int]:
    start = _spot(base, rng)
    return start, min(len(base.raw), start + rng.choice([1, 2, 8, 42, 100, 4096, 20000]))


def flip(base: Base, rng: random.Random) -> bytes:
    """Flip bits."""
    raw = bytearray(base.raw)
    for _ in range(rng.choice([1, 1, 2, 8])):
        raw[_spot(base, rng)] ^= 1 << rng.randrange(8)
    return bytes(raw)


def overwrite(base: Base, rng: random.Random) -> bytes:
    """Write over a piece: zeros, as disks do, bytes of 255, noise, or another piece."""
    start, stop = _range(base, rng)
    n = stop - start
    other = _spot(base, rng)
    piece = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n), base.raw[other : other + n]])
    return base.raw[:start] + piece + base.raw[start + len(piece) :]


def cut_end(base: Base, rng: random.Random) -> bytes:
    """Cut the end of the file."""
    return base.raw[: max(4, _spot(base, rng))]


def cut_out(base: Base, rng: random.Random) -> bytes:
    """Take a piece out."""
    start, stop = _range(base, rng)
    return base.raw[:start] + base.raw[stop:]


def insert(base: Base, rng: random.Random) -> bytes:
    """Insert a piece."""
    start, (first, last) = _spot(base, rng), _range(base, rng)
    piece = rng.choice([base.raw[first:last], rng.randbytes(last - first)])
    return base.raw[:start] + piece + base.raw[start:]


def swap(base: Base, rng: random.Random) -> bytes:
    """Exchange two pieces of structure: headers, beginnings or ends of records."""
    (a, b), (c, d) = sorted(rng.sample(base.spots, 2))
    b, c = min(b, c), max(b, c)
    raw = base.raw
    return raw[:a] + raw[c:d] + raw[b:c] + raw[a:b] + raw[d:]


def length(base: Base, rng: random.Random) -> bytes:
    """Change a number of a header, or of a pickle, by a little or by much."""
    at = rng.choice(base.spots)[0] + rng.choice([0, 8, 16, 24, 34, 17, 19, 21, 42])
    n = int.from_bytes(base.raw[at : at + 8], "big")
    n = rng.choice([n + 1, n - 1, n + 8, 2 * n, n // 2, 0, rng.getrandbits(64), n ^ (1 << 63)])
    raw = bytearray(base.raw)
    raw[at : at + 8] = p64(n % (1 << 64))
    return bytes(raw[: len(base.raw)])


IN_FILE = (flip, flip, overwrite, cut_end, cut_out, insert, swap, length)


# ---- damages of records: well-formed, with wrong contents ----


def _junk(rng: random.Random, old: object, oids: list[bytes]) -> object:
    """Return a wrong value for the place of an old one."""
    if type(old) is int and rng.random() < 0.7:
        near = [old + 1, old - 1, 2 * old, -old, old // 2, old + BLK, 0]
        return rng.choice([*near, 2**31, 2**63, 2**64 + 1, -1])
    if isinstance(old, bytes) and rng.random() < 0.7:
        longer = [old + b"1", old + bytes(BLK), old * 2, b"1" * (len(old) + 300 * BLK)]
        return rng.choice([*longer, old[: len(old) // 2], b"", old.rstrip(b"\0")])
    if isinstance(old, np.dtype) and rng.random() < 0.7:
        names = ["O", "u1", ">f8", "S0", "M8[s]", [("a", "O")], [("x", "f4"), ("y", "i2")]]
        return np.dtype(rng.choice(names))
    refs = [Ref(rng.choice(oids), rng.choice(CLASSES)), Ref(rng.choice(oids), None)]
    refs.append(Ref(b"\0\0\0\0\0\1\2\3", rng.choice(CLASSES)))
    values = [None, True, 0, 1, -1, 2**70, 3.5, "text", "\xff", b"", b"\xff" * 9, (), (1,), [], {}]
    return rng.choice([*values, *refs, *refs, ((old,),), [old], np.dtype("f4"), float("nan")])


def _change(rng: random.Random, state: object, oids: list[bytes]) -> object:
    """Return a state in which something is wrong."""
    inside = (list if isinstance(state, list) else tuple) if type(state) in (tuple, list) else None
    if inside and state and rng.random() < 0.9:
        items = list(state)
        i, j = rng.randrange(len(items)), rng.randrange(len(items))
        kind = rng.random()
        if kind < 0.1:
            del items[i]
        elif kind < 0.2:
            items.insert(j, items[i])
        elif kind < 0.4:
            items[i], items[j] = items[j], items[i]
        elif kind < 0.5:
            items[i] = items[j]
        else:
            items[i] = _change(rng, items[i], oids)
        return inside(items)
    if type(state) is dict and state and rng.random() < 0.9:
        items = dict(state)
        key = rng.choice(sorted(items, key=repr))
        if rng.random() < 0.1:
            del items[key]
        else:
            items[key] = _change(rng, items[key], oids)
        return items
    return _junk(rng, state, oids)


def in_records(base: Base, rng: random.Random, path: Path) -> None:
    """Store wrong records, with a plain FileStorage."""
    base.copy(path, b"FS30" + base.raw[4:], True)
    fs = FileStorage(str(path))
    oids = [oid for oid, _ in fs._index.items()]
    # most objects are blocks or chunks: of the large ones, only some are taken
    small = [oid for oid in oids if len(fs.load(oid)[0]) < 3000 or rng.random() < 0.2]
    txn = TransactionMetaData()
    fs.tpc_begin(txn)
    for oid in rng.sample(small, rng.choice([1, 1, 2])):
        data, serial = fs.load(oid)
        cls, state = decode(data)
        kind = rng.random()
        if kind < 0.06:
            fs.deleteObject(oid, serial, txn)
            continue
        if kind < 0.2:
            data = fs.load(rng.choice(small))[0]
        elif kind < 0.3:
            data = encode(rng.choice(CLASSES), state)
        else:
            data = encode(cls, _change(rng, state, oids))
        fs.store(oid, serial, data, "", txn)
    fs.tpc_vote(txn)
    fs.tpc_finish(txn)
    fs.close()


def damage(base: Base, rng: random.Random, path: Path) -> str:
    """Write a damaged copy; return how it is damaged."""
    if rng.random() < 0.4:
        in_records(base, rng, path)
        return "in_records"
    act = rng.choice(IN_FILE)
    base.copy(path, act(base, rng), rng.random() < 0.6)
    return act.__name__
