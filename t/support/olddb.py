"""Databases as wendelin.core 0.13 writes and reads them: python t/support olddb (write|show) PATH

It uses plain ZODB, and stand-ins for the classes of 0.13. These have the same states, which are
described in docs/formats.md. The database that `write` makes is kept as t/data/0.13-attributes.fs.
`show` prints, as JSON, what a program with 0.13 finds in a database. It runs in a process that has
nothing of ours.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import transaction
import ZODB
from BTrees.LOBTree import LOBTree
from persistent import Persistent
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

BLK = 4096


# ---- stand-ins ----


class BigArray:
    """A base without slots, which gives a ZBigArray a __dict__ for attributes, besides its slot."""


class ZBigArray(BigArray, Persistent):
    __slots__ = ("zfile",)

    def __init__(self, shape, dtype, order="C"):
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._order = order
        self._stridev = np.empty(shape, dtype, order).strides
        self.zfile = ZBigFile()

    def put(self, values):
        raw = np.asarray(values, self._dtype).tobytes(getattr(self, "_order", "C"))
        for blk in range(-(-len(raw) // BLK)):
            self.zfile.blktab[blk] = ZBlk0(raw[blk * BLK :][:BLK].rstrip(b"\0"))

    def raw(self):
        result = bytearray(int(np.prod(self._shape)) * self._dtype.itemsize)
        for blk, zblk in self.zfile.blktab.items():
            zblk._p_activate()
            data = zblk._v_data[: max(0, len(result) - blk * BLK)]
            result[blk * BLK : blk * BLK + len(data)] = data
        return bytes(result)

    def __getitem__(self, idx):
        a = np.ndarray(self._shape, self._dtype, self.raw(), strides=self._stridev)
        return a[idx]


class ZBigFile(Persistent):
    def __init__(self):
        self.blksize, self.blktab = BLK, LOBTree()

    def __getstate__(self):
        return self.blksize, self.blktab

    def __setstate__(self, state):
        self.blksize, self.blktab = state


class ZBlk0(Persistent):
    def __init__(self, data):
        self._v_data = data

    def __getstate__(self):
        return self._v_data

    def __setstate__(self, state):
        self._v_data = state


class ArrayRef:
    """A reference to a view of a root array, whose bytes lie in one piece."""

    def __init__(self, root, offset, shape, strides, dtype, atype=np.ndarray):
        ends = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
        self.root = root
        self.lo = offset + sum(min(0, end) for end in ends)
        self.hi = offset + sum(max(0, end) for end in ends) + np.dtype(dtype).itemsize
        self.z0 = offset - self.lo
        self.shape, self.stridev, self.dtype, self.atype = shape, strides, np.dtype(dtype), atype

    def deref(self):
        root = self.root
        raw = root.raw() if isinstance(root, ZBigArray) else root.tobytes("A")
        part = raw[self.lo : self.hi]
        return np.ndarray(self.shape, self.dtype, part, self.z0, self.stridev).view(self.atype)


def install():
    """Put the stand-ins where 0.13 has its classes."""
    places = {
        "wendelin": (),
        "wendelin.bigarray": (BigArray, ArrayRef),
        "wendelin.bigarray.array_zodb": (ZBigArray,),
        "wendelin.bigfile": (),
        "wendelin.bigfile.file_zodb": (ZBigFile, ZBlk0),
    }
    for place, classes in places.items():
        module = sys.modules[place] = types.ModuleType(place)
        for cls in classes:
            cls.__module__ = place
            setattr(module, cls.__name__, cls)


# ---- the database ----

TABLE = np.arange(600, dtype="<f8").reshape(100, 6)


def write(path):
    import oldprogram

    db = ZODB.DB(FileStorage(path))
    root = db.open().root()
    root["notes"] = PersistentMapping(text="of somebody else")
    A = root["A"] = ZBigArray((100, 6), "<f8")
    A.unit, A.tags, A.notes = "mV", ["raw", {"rate": 250.0}], root["notes"]
    early = root["early"] = ZBigArray((2000,), ">i4")
    early.unit = "count"
    del early._order  # arrays of the first versions had none
    channel = root["channel"] = oldprogram.Channel((100, 6), "<f8", "F")
    channel.gain = 0.5
    slotted = root["slotted"] = oldprogram.Slotted((9,), "u1")
    slotted.unit, slotted.more = "V", 1
    slotted.tell("secret")
    versioned = root["versioned"] = oldprogram.Versioned((9,), "u1")
    versioned.history = "made", "changed"
    transaction.commit()
    A.put(TABLE)
    early.put(np.arange(2000))
    channel.put(TABLE)
    slotted.put(range(9))
    versioned.put(range(9))
    transaction.commit()
    memory = np.arange(20, dtype="<i2").reshape(4, 5)
    root["refs"] = {
        "rows": ArrayRef(A, 2 * 48, (5, 6), (48, 8), "<f8"),
        "backwards": ArrayRef(A, 90 * 48 + 16, (10, 2), (-96, 16), "<f8"),
        "column": ArrayRef(channel, 3 * 800, (100,), (8,), "<f8"),
        "bytes": ArrayRef(early, 8, (12,), (1,), "u1"),
        "of memory": ArrayRef(memory, 1 * 10 + 8, (3, 3), (10, -4), "<i2"),
        "matrix": ArrayRef(memory, 0, (2, 5), (10, 2), "<i2", np.matrix),
    }
    root["refs"]["rows"].comment = "an attribute"
    transaction.commit()
    db.close()


def show(path):
    import oldprogram

    db = ZODB.DB(FileStorage(path, read_only=True))
    root = db.open().root()
    found = {}
    for name, obj in root.items():
        if isinstance(obj, ZBigArray):
            obj._p_activate()
            about = {k: v for k, v in obj.__dict__.items() if k[0] != "_"}
            if isinstance(obj, oldprogram.Slotted):
                about |= {"unit": obj.unit, "secret": obj.told()}
            about = {k: v.data if isinstance(v, PersistentMapping) else v for k, v in about.items()}
            found[name] = [type(obj).__name__, about, obj[:].tolist()]
    refs = {}
    for name, ref in root["refs"].items():
        refs[name] = [ref.deref().tolist(), ref.atype.__name__, getattr(ref, "comment", None)]
    db.close()
    json.dump({"arrays": found, "refs": refs}, sys.stdout)


if __name__ == "__main__":
    install()
    what, path = sys.argv[1:]
    if what == "write":
        if Path(path).exists():
            sys.exit(f"{path} is there already, and is kept")
        write(path)
        for suffix in ".index", ".lock", ".tmp":
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    else:
        show(path)
