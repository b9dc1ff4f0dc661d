"""What a database has, read by plain ZODB: the reference that ours is compared with.

It uses FileStorage, BTrees and pickles as ZODB and zodbpickle have them, and none of our readers.
What docs/formats.md says of blocks is written here again, in a few lines.
"""

import io
from hashlib import blake2b
from typing import NamedTuple

import zodbpickle
from BTrees.IOBTree import IOBTree, IOBucket
from BTrees.LOBTree import LOBTree, LOBucket
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64, u64
from zodbpickle import pickle as zpickle

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile.file_zodb import ZBigFile, ZBlk0, ZBlk1, ZData

CLASSES = (PersistentMapping, ZBigArray, ZBigFile, ZBlk0, ZBlk1, ZData)
CLASSES += (LOBTree, LOBucket, IOBTree, IOBucket)


class Ref(NamedTuple):
    """A reference to another object, in a state."""

    oid: bytes
    cls: object


class Wrong(Exception):  # noqa: N818  # what is read, not what we do
    """A database has what it must not have."""


class Broken:
    """Stands for a class that cannot be imported."""


# ---- records ----


class _Unpickler(zpickle.Unpickler):
    def find_class(self, module, name):
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return Broken  # as ZODB does

    def persistent_load(self, ref):
        oid, cls = ref if isinstance(ref, tuple) else (ref, None)
        if not isinstance(oid, bytes) or len(oid) != 8:
            raise Wrong(f"reference {ref!r}")
        return Ref(bytes(oid), cls)


def decode(data: bytes) -> tuple[object, object]:
    """Return (class, state) of a record, Refs in place of objects; a str of Python 2 is bytes."""
    unpickler = _Unpickler(io.BytesIO(data), encoding="bytes")
    cls = unpickler.load()
    return (cls[0] if isinstance(cls, tuple) else cls), unpickler.load()


def encode(cls: object, state: object) -> bytes:
    """Return the record of a class and a state with Refs."""
    file = io.BytesIO()
    pickler = zpickle.Pickler(file, 3)

    def persistent_id(obj):
        if type(obj) is not Ref:
            return None
        return (zodbpickle.binary(obj.oid), obj.cls) if obj.cls else zodbpickle.binary(obj.oid)

    pickler.persistent_id = persistent_id
    pickler.dump(cls)
    pickler.dump(state)
    return file.getvalue()


class Storage:
    """A FileStorage, and its records, decoded."""

    def __init__(self, path) -> None:
        with open(path, "r+b") as file:
            if file.read(4) == b"FS21":  # of Python 2: the same format
                file.seek(0)
                file.write(b"FS30")
        self.fs = FileStorage(str(path))
        self.before = p64(u64(self.fs.lastTransaction()) + 1)  # what a Connection asks for
        self.decoded: dict[bytes, tuple[object, object]] = {}
        self.nodes: dict[bytes, object] = {}

    def close(self):
        self.fs.close()

    def load(self, oid):
        """Return (class, state)."""
        if oid not in self.decoded:
            found = self.fs.loadBefore(oid, self.before)
            if found is None:
                raise Wrong(f"no object {oid.hex()}")
            self.decoded[oid] = decode(found[0])
        return self.decoded[oid]

    def state(self, ref, cls):
        """Return the state of an object that must be of a class.

        As in a Connection, the class is that of the reference, if the reference has one.
        """
        if type(ref) is not Ref:
            raise Wrong(f"{ref!r} in the place of a {cls.__name__}")
        found, state = self.load(ref.oid)
        if (ref.cls or found) is not cls:
            raise Wrong(f"{found!r} in the place of a {cls.__name__}")
        return state

    def tree(self, ref, tree, bucket):
        """Return a BTree, all of it loaded, with Refs as values."""
        if type(ref) is not Ref:
            raise Wrong(f"{ref!r} in the place of a BTree")
        if ref.oid in self.nodes:
            return self.nodes[ref.oid]
        found, state = self.load(ref.oid)
        cls = ref.cls or found
        if cls not in (tree, bucket):
            raise Wrong(f"{cls!r} in a {tree.__name__}")
        node = self.nodes[ref.oid] = cls()

        def real(x):
            if type(x) is Ref:
                return self.tree(x, tree, bucket)
            return tuple(map(real, x)) if type(x) is tuple else x

        if type(state) is tuple and len(state) == 2 and type(state[1]) is not Ref:
            raise Wrong("BTrees crash here, as it has no type")
        if cls is tree and type(state) is tuple and len(state) == 2 and not state[0]:
            raise Wrong("BTrees crash here, as it has no children")
        if cls is tree and state is not None and len(state) == 2:
            children = [self.tree(c, tree, bucket) for c in state[0][0::2]]
            flat = [x for pair in zip(children, [*state[0][1::2], None], strict=True) for x in pair]
            state = (tuple(flat[:-1]), real(state[1]))
        elif cls is bucket and len(state) == 2:
            state = (state[0], real(state[1]))
        node.__setstate__(state)
        return node

    # ---- blocks ----

    def block(self, ref, blksize) -> bytes:
        """Return the bytes of a block, trailing zeros cut."""
        if type(ref) is not Ref:
            raise Wrong(f"{ref!r} in the place of a block")
        found, state = self.load(ref.oid)
        cls = ref.cls or found
        data = bytearray()
        if cls is ZBlk0:
            data += as_bytes(state)
        elif cls is ZBlk1:
            chunks = self.tree(state, IOBTree, IOBucket)
            if isinstance(chunks, IOBTree):
                chunks._check()  # at an empty bucket, BTrees end the process
            for start, chunk in chunks.items():
                piece = as_bytes(self.state(chunk, ZData))
                if start < len(data):
                    raise Wrong("chunks overlap")
                if start + len(piece) > blksize:
                    raise Wrong("a chunk ends past the block")
                data += bytes(start - len(data)) + piece
        else:
            raise Wrong(f"{cls!r} in the place of a block")
        if len(data) > blksize:
            raise Wrong(f"a block of {len(data)} bytes")
        return bytes(data).rstrip(b"\0")


def as_bytes(state) -> bytes:
    if not isinstance(state, bytes):
        raise Wrong(f"{type(state).__name__} in the place of bytes")
    return bytes(state)


# ---- snapshots ----

#: what is read -> what it is, or the exception that came instead
Snapshot = dict[object, object]
#: name of a file or array -> blocks of it that are looked at
Places = dict[str, range]


def digest(data) -> bytes:
    """Return a digest of a block, whatever its number of zeros at the end."""
    return blake2b(bytes(data).rstrip(b"\0"), digest_size=8).digest()


def tried(act, *args):
    try:
        return act(*args)
    except Exception as e:
        return e


def snapshot(path, places: Places) -> Snapshot:
    """Return what a file has."""
    result: Snapshot = {}
    storage = tried(Storage, path)
    if isinstance(storage, Exception):
        result["open"] = storage
        return result
    try:
        for name, blks in places.items():
            result[name] = tried(_meta, storage, name)
            for blk in blks:
                result[name, blk] = tried(_digest, storage, result[name], name, blk)
    finally:
        tried(storage.close)
    return result


def _root(storage, name):
    root = storage.state(Ref(b"\0" * 8, None), PersistentMapping)
    return _get(_get(root, "data"), name)


def _get(state, key):
    return state[key] if key in state else state[key.encode()]  # of Python 2


def _zfile(storage, name):
    obj = _root(storage, name)
    found, state = storage.load(obj.oid)
    if (obj.cls or found) is ZBigArray:
        return storage.state(state[1]["zfile"], ZBigFile), state[0]
    return storage.state(obj, ZBigFile), None


def _meta(storage, name):
    """Return (blksize, shape, dtype, order) of an array; of a file, the first only."""
    (blksize, _), array = _zfile(storage, name)
    if array is None:
        return (blksize,)
    shape, dtype, order = array["_shape"], array["_dtype"], array.get("_order", "C")
    return blksize, tuple(shape), str(dtype), order


def _digest(storage, meta, name, blk):
    if isinstance(meta, Exception):
        raise meta
    (blksize, blktab), _ = _zfile(storage, name)
    ref = storage.tree(blktab, LOBTree, LOBucket).get(blk)
    return digest(b"" if ref is None else storage.block(ref, blksize))
