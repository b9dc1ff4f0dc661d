"""Hostile databases: pickles that call functions, in every place where a pickle can be.

There are also pickles that must be refused. All pickles are written byte by byte, not by ZODB.
"""

import pickle
import struct

from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64, z64

MAPPING = "persistent.mapping PersistentMapping"
THING = "clidata Thing"
ARRAY = "wendelin.bigarray.array_zodb ZBigArray"
FILE = "wendelin.bigfile.file_zodb ZBigFile"
TABLE, BUCKET = "BTrees.LOBTree LOBTree", "BTrees.LOBTree LOBucket"
CHUNKS, CHUNK_BUCKET = "BTrees.IOBTree IOBTree", "BTrees.IOBTree IOBucket"
TREE, TREE_BUCKET = "BTrees.OOBTree OOBTree", "BTrees.OOBTree OOBucket"
BLOCK0, BLOCK1 = "wendelin.bigfile.file_zodb ZBlk0", "wendelin.bigfile.file_zodb ZBlk1"
CHUNK = "wendelin.bigfile.file_zodb ZData"

# ---- pieces of pickles: each leaves one value on the stack ----


def cls(name):
    """Return a piece that is a class: "module name"."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def plain(value):
    """Return a piece that is a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tuple_of(*pieces):
    return b"(" + b"".join(pieces) + b"t"


def dict_of(*pieces):
    return b"}(" + b"".join(pieces) + b"u"


def ref(oid, name):
    """Return a piece that is a reference."""
    return tuple_of(b"C\x08" + oid, cls(name)) + b"Q"


def record(name, state):
    """Return a record. Its class is given as "module name", or as a piece."""
    head = cls(name) if isinstance(name, str) else name
    return b"\x80\x03" + head + b".\x80\x03" + state + b"."


def calls(canary):
    """Return {name: piece}; each piece makes the file `canary` when it is loaded."""
    command = text(f"touch {canary}")
    source = text(f"open({str(canary)!r}, 'w')")
    return {
        "reduce": cls("os system") + b"(" + command + b"tR",
        "posix": cls("posix system") + command + b"\x85R",
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + cls("os system") + command + b"o",
        "newobj": cls("subprocess Popen") + tuple_of(plain(["touch", str(canary)])) + b"R",
        "newobj-by-name": cls("copyreg __newobj__")
        + tuple_of(cls("subprocess Popen"), plain(["touch", str(canary)]))
        + b"R",
        "stack-global": text("os") + text("system") + b"\x93" + command + b"\x85R",
        "eval": cls("builtins eval") + source + b"\x85R",
        "eval-of-python2": cls("__builtin__ eval") + source + b"\x85R",
        "build": cls("clidata Thing") + b")\x81" + dict_of(text("a"), cls("os system") + command
        + b"\x85R") + b"b",
        "module": cls("canary_module anything"),
    }  # fmt: skip


# ---- databases ----


class Writer:
    """Writes records into a new file, in one transaction.

    Parameters
    ----------
    path : path
    extension : bytes
        Of the transaction: a pickle of what programs note with it.
    """

    def __init__(self, path, extension=b""):
        self._storage = FileStorage(str(path))
        self._txn = TransactionMetaData("", "", extension)
        self._storage.tpc_begin(self._txn)
        self._last = 0
        self._root = []

    def new(self):
        """Return an oid."""
        self._last += 1
        return p64(self._last)

    def put(self, data, oid=None):
        """Write a record; return its oid."""
        oid = oid or self.new()
        self._storage.store(oid, z64, data, "", self._txn)
        return oid

    def name(self, name, piece):
        """Put a piece into the root, under a name."""
        self._root += [text(name), piece]

    def close(self, root=None):
        """Write the root, and finish the transaction."""
        state = dict_of(text("data"), dict_of(*self._root))
        self.put(root or record(MAPPING, state), z64)
        self._storage.tpc_vote(self._txn)
        self._storage.tpc_finish(self._txn)
        self._storage.close()

    def array(self, file=None, n=4, cls=ARRAY, **attributes):
        """Write an array of n blocks of 4 KiB; attributes are pieces."""
        own = {
            "_dtype": plain(__import__("numpy").dtype("u1")),
            "_shape": plain((n * 4096,)),
            "_order": text("C"),
            "_stridev": plain((1,)),
        } | attributes
        first = dict_of(*(piece for k, v in own.items() for piece in (text(k), v)))
        file = self.file() if file is None else file
        return self.put(record(cls, tuple_of(first, dict_of(text("zfile"), ref(file, FILE)))))

    def file(self, table=None, blksize=None):
        table = self.table() if table is None else table
        size = plain(4096) if blksize is None else blksize
        return self.put(record(FILE, tuple_of(size, ref(table, TABLE))))

    def table(self, *pieces, of=TABLE):
        """Write a tree of one bucket; pieces: k0, v0, ..."""
        return self.put(record(of, tuple_of(tuple_of(tuple_of(tuple_of(*pieces))))))


def places(writer, piece):
    """Yield (name, reference to an object that has the piece) for each place where it can be."""
    put = writer.put

    def array(file, **attributes):
        return ref(writer.array(file, **attributes), ARRAY)

    def array_of_block(oid, name):
        return array(writer.file(writer.table(plain(0), ref(oid, name))))

    def mapping(*pieces):
        return ref(put(record(MAPPING, dict_of(text("data"), dict_of(*pieces)))), MAPPING)

    yield "class", ref(put(record(piece, b"}")), MAPPING)
    yield "class-arguments", ref(put(record(tuple_of(cls(THING), tuple_of(piece)), b"}")), THING)
    yield "state", ref(put(record(MAPPING, piece)), MAPPING)
    yield "data", ref(put(record(MAPPING, dict_of(text("data"), piece))), MAPPING)
    yield "key", mapping(piece, b"N")
    yield "value", mapping(text("x"), piece)
    yield "key-in-tuple", mapping(tuple_of(piece, piece), ref(writer.array(), ARRAY))
    yield "attribute", ref(put(record(THING, dict_of(text("x"), piece))), THING)
    yield "nested", mapping(text("x"), b"](" + dict_of(text("x"), piece) + b"e")
    yield "built", mapping(text("x"), cls(THING) + b")\x81" + piece + b"b")
    yield "itself", piece
    yield "reference", mapping(text("x"), piece + b"Q")
    yield "oid", mapping(text("x"), tuple_of(piece, cls(THING)) + b"Q")
    yield "class-of-reference", mapping(text("x"), tuple_of(b"C\x08" + p64(1), piece) + b"Q")
    yield "tree", ref(put(record(TREE, piece)), TREE)
    yield "tree-key", ref(writer.table(piece, b"N", of=TREE), TREE)
    yield "tree-value", ref(writer.table(text("x"), piece, of=TREE), TREE)
    bucket = put(record(TREE_BUCKET, piece))
    node = tuple_of(tuple_of(ref(bucket, TREE_BUCKET)), ref(bucket, TREE_BUCKET))
    yield "tree-bucket", ref(put(record(TREE, node)), TREE)
    yield "array", ref(put(record(ARRAY, piece)), ARRAY)
    for name in "_dtype", "_shape", "_order", "_zblk_fmt", "unit":
        yield f"array{name}", array(None, **{name: piece})
    yield "axis", array(None, _shape=tuple_of(piece))
    yield "file-state", array(put(record(FILE, piece)))
    yield "file-class", array(put(record(piece, b"N")))
    yield "blksize", array(writer.file(blksize=piece))
    yield "table", array(writer.file(put(record(TABLE, piece))))
    yield "table-class", array(writer.file(put(record(piece, b"N"))))
    yield "table-value", array(writer.file(writer.table(plain(0), piece)))
    yield "table-key", array(writer.file(writer.table(piece, ref(z64, BLOCK0))))
    for name, of in ("block0", BLOCK0), ("block1", BLOCK1):
        yield name, array_of_block(put(record(of, piece)), of)
    yield "block-class", array_of_block(put(record(piece, b"C\x01a")), BLOCK0)
    yield "block-of-no-class", array_of_block(put(record(piece, b"C\x01a")), "x y")
    chunks = put(record(CHUNKS, piece))
    yield "chunks", array_of_block(put(record(BLOCK1, ref(chunks, CHUNKS))), BLOCK1)
    for name, chunk in ("chunk", record(CHUNK, piece)), ("chunk-class", record(piece, b"C\x01a")):
        chunks = writer.table(plain(0), ref(put(chunk), CHUNK), of=CHUNKS)
        yield name, array_of_block(put(record(BLOCK1, ref(chunks, CHUNKS))), BLOCK1)


def write(path, canary, only=None, noted=True):
    """Write a database with each call in each place; return their names in the root.

    Parameters
    ----------
    path, canary : path
    only : str, optional
        The only one of calls() that is written.
    noted : bool
        The transaction's extension calls, too.
    """
    found = calls(canary)
    writer = Writer(path, b"\x80\x03" + found["reduce"] + b"." if noted else b"")
    names = []
    for how, piece in found.items():
        if only in (None, how):
            for where, value in places(writer, piece):
                names.append(f"{where}-{how}")
                writer.name(names[-1], value)
    writer.name("good", ref(writer.array(), ARRAY))
    writer.close()
    with open(f"{path}.index", "wb") as index:
        index.write(b"\x80\x03" + found["reduce"] + b".")
    return names


#: pickles that are refused
PICKLES = {
    "memo": b"K\x01r\xff\xff\xff\xff.",
    "memo-as-text": b"K\x01p999999999999999\n.",
    "long-bytes": b"\x8e" + b"\xff" * 7 + b"\x7f.",
    "long-number": b"\x8b\xff\xff\xff\x7f.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "encoded": b"\x80\x02X\xff\xff\x00\x00" + b"a" * 65535 + b"q\x00(" + b"c_codecs\nencode\nh\x00X"
    b"\x06\x00\x00\x00latin1\x86R" * 1000 + b"t.",
    "extension": b"\x82\x01.",
    "cut": b"\x80\x03(K\x01",
    "no-stack": b"0000.",
    "buffer": b"\x97.",
    "protocol": b"\x80\x09K\x01.",
    "unknown": b"\xff.",
    "foreign-state": b"}K\x01b.",
    "foreign-items": b"K\x01K\x01a.",
    "persistent": b"Pabc\n.",
    "mark": b"t.",
}
