"""Blocks in databases of the existing system and of early ones, and objects that are not blocks."""

import io
import pickle
import shutil
import sys
from contextlib import closing
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import transaction
from BTrees.IOBTree import IOBTree
from BTrees.LOBTree import LOBTree
from hypothesis import given
from hypothesis import strategies as st
from persistent import Persistent
from support import DATA
from support.clients import zeros
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.utils import get_pickle_metadata, load_current, z64
from zodbpickle import binary
from zodbpickle.pickle import Pickler

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError
from wendelin.bigfile.file_zodb import ZBlk0, ZBlk1
from wendelin.bigfile.virtmem.buffer import differing, end_of, filled
from wendelin.bigfile.zodb.handle import ZBigFileH
from wendelin.lib.storage.record import Ref, bytes_state, class_of, state_of
from wendelin.lib.zodb import dbclose, dbopen

BLK = 4096  # block size of most arrays here [bytes]


@pytest.fixture
def A(root):
    return zeros(root)


def test_records_are_as_the_existing_system_has_them(root):
    A = zeros(root, "ZBlk0")
    A[BLK] = 1
    transaction.commit()
    storage = root._p_jar.db().storage

    def record(obj):
        return get_pickle_metadata(load_current(storage, obj._p_oid)[0])

    assert record(A) == ("wendelin.bigarray.array_zodb", "ZBigArray")
    assert record(A.zfile) == ("wendelin.bigfile.file_zodb", "ZBigFile")
    assert record(A.zfile.blktab) == ("BTrees.LOBTree", "LOBTree")
    assert record(A.zfile.blktab[1]) == ("wendelin.bigfile.file_zodb", "ZBlk0")
    attributes, slots = A.__getstate__()
    assert attributes.pop("_zblk_fmt") == "ZBlk0"  # ours, if the format is given
    assert attributes == {
        "_dtype": np.dtype("u1"),
        "_shape": (20 * BLK,),
        "_order": "C",
        "_stridev": (1,),
    }
    assert slots == {"zfile": A.zfile}
    assert A.zfile.__getstate__() == (BLK, A.zfile.blktab)
    assert type(A.zfile.blktab) is LOBTree


@pytest.mark.parametrize(
    "name", ["py37-0.13-1", "py310-2.0a4-1", "3.0-ZBlk0", "3.0-ZBlk1", "3.0-auto"]
)
@pytest.mark.parametrize("fmt", ["ZBlk0", "ZBlk1", "auto"])
def test_databases_are_read_and_changed(name, fmt, tmp_path, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_ZBLK_FMT", fmt)
    path = shutil.copy(DATA / f"{name}.fs", tmp_path)
    root = dbopen(path)
    with np.load(DATA / f"{name}.npz") as expected:
        for n in expected.files:
            a = root[n][:]
            assert a.dtype == expected[n].dtype
            assert a.tobytes("A") == expected[n].tobytes("A")
            assert np.array_equal(a, expected[n])
            # and they can be changed
            flat = a.reshape(-1, order=root[n]._order)
            flat[0] = flat[-1]
    transaction.commit()
    dbclose(root)
    root = dbopen(path)
    with np.load(DATA / f"{name}.npz") as expected:
        for n in expected.files:
            e = expected[n].reshape(-1, order=root[n]._order).copy()
            e[0] = e[-1]
            assert root[n][:].tobytes("A") == e.tobytes()
    dbclose(root)


def chunks(A):
    """Return {block: {offset: bytes}} of an array in ZBlk1."""
    for zblk in A.zfile.blktab.values():
        assert type(zblk) is ZBlk1
        assert type(zblk.chunktab) is IOBTree
    return {
        blk: {start: bytes(chunk.__getstate__()) for start, chunk in zblk.chunktab.items()}
        for blk, zblk in A.zfile.blktab.items()
    }


@pytest.mark.parametrize("name", ["py37-0.13-1", "py310-2.0a4-1"])
def test_chunks_are_as_the_existing_system_has_them(name, tmp_path):
    root = dbopen(shutil.copy(DATA / f"{name}.fs", tmp_path))
    theirs = [n for n in root if n.endswith("_ZBlk1")]
    assert len(theirs) == 5
    for n in theirs:
        A = root[n]
        root["B"] = B = ZBigArray(A.shape, A.dtype, A._order, A.zfile.blksize, zblk_fmt="ZBlk1")
        transaction.commit()
        B[:] = A[:]
        transaction.commit()
        assert chunks(B) == chunks(A)
    dbclose(root)


@pytest.mark.parametrize("name", ["py2_pickle1", "py2_pickle2", "py2_pickle3", "py3_pickle3"])
@pytest.mark.parametrize("align", [True, False])
def test_early_databases_are_read(name, align, tmp_path):
    path = shutil.copy(DATA / f"zblk-{name}.fs", tmp_path)
    before = Path(path).read_bytes()
    blksize = 2 << 20
    block1, block3 = np.zeros(blksize, "u1"), np.zeros(blksize, "u1")
    block1[: 16 << 10] = np.arange(4 << 10, dtype=">u4").view("u1")
    block3[: 128 << 10] = np.arange(32 << 10, dtype=">u4").view("u1")
    block3[-128 << 10 :] = block3[: 128 << 10][::-1]

    root = dbopen(f"file://{path}?read_only=1&align={align}")
    fileh = root["zbigf"].fileh_open()
    view = np.asarray(fileh.mmap(0, 6)).reshape(6, blksize)
    for blk, expected in {0: 0, 1: block1, 2: 0, 3: block3, 5: 0}.items():
        assert np.array_equal(view[blk], np.broadcast_to(expected, blksize)), blk
    dbclose(root)
    assert Path(path).read_bytes() == before

    # to find references ZODB would unpickle blocks, and fail at those of Python 2
    root = dbopen(f"file://{path}?align={align}&pack_gc=0")
    view = np.asarray(root["zbigf"].fileh_open().mmap(0, 6)).reshape(6, blksize)
    view[3, 7] = view[1, 7] = view[0, 7] = 1
    transaction.commit()
    block3[7] = block1[7] = 1
    storage = root._p_jar.db().storage
    assert len(list(storage.iterator())) >= 2
    root._p_jar.db().pack()
    root._p_jar.sync()
    assert np.array_equal(view[1], block1)
    assert np.array_equal(view[3], block3)
    dbclose(root)


def index_of_python2(path):
    """Return the index of a file as ZODB on Python 2 saves it: keys and buckets are str."""

    def text(data):
        size = len(data)
        return b"U" + bytes([size]) + data if size < 256 else b"T" + pack("<i", size) + data

    with closing(FileStorage(path, read_only=True)) as fs:
        index, pos = fs._index, fs._pos
    parts = [b"J" + pack("<i", pos) + b"."]
    for prefix, bucket in index._data.items():
        parts.append(text(prefix) + text(bucket.toString()) + b"\x86.")
    return b"".join([*parts, b"N."])


@pytest.mark.parametrize("align", [True, False])
def test_the_first_commit_to_a_database_of_python2_says_so(align, tmp_path, caplog):
    path = Path(shutil.copy(DATA / "zblk-py2_pickle2.fs", tmp_path))
    copy = tmp_path / "copy.fs"
    copy.write_bytes(b"FS30" + path.read_bytes()[4:])  # so that FileStorage can read it here
    Path(f"{path}.index").write_bytes(index_of_python2(str(copy)))
    root = dbopen(f"file://{path}?align={align}")
    root["zbigf"].fileh_open()
    assert "Traceback" not in caplog.text
    assert not any(record.exc_info for record in caplog.records)
    root["x"] = 1
    transaction.abort()
    storage = root._p_jar.db().storage
    for phase in "begin", "vote":
        txn = TransactionMetaData()
        storage.tpc_begin(txn)
        storage.store(storage.new_oid(), z64, pickle.dumps(("a", "B")) + pickle.dumps(1), "", txn)
        if phase == "vote":
            storage.tpc_vote(txn)
        storage.tpc_abort(txn)
        assert path.read_bytes()[:4] == b"FS21"  # without a commit the file stays
    assert "Python 2" not in caplog.text
    for i in range(2):
        root["x"] = i
        transaction.commit()
        assert path.read_bytes()[:4] == b"FS30"
    said = [r.getMessage() for r in caplog.records if "Python 2" in r.getMessage()]
    assert len(said) == 1
    assert str(path) in said[0]
    assert "from now on Python 2 cannot open it" in said[0]
    dbclose(root)


def test_an_unknown_format_is_refused_by_name(root, A, monkeypatch):
    monkeypatch.setenv("WENDELIN_CORE_ZBLK_FMT", "ZBlk9")
    A[0] = 1
    with pytest.raises(ValueError, match=r"'ZBlk9'.*ZBlk0"):
        transaction.commit()
    transaction.abort()
    assert A[0] == 0


def test_a_foreign_object_in_the_block_table_is_refused_by_name(root, A):
    from persistent.mapping import PersistentMapping

    A.zfile.blktab[3] = PersistentMapping()
    transaction.commit()
    A._fileh().invalidate_page(3)
    A._fileh().file.table.drop()
    with pytest.raises(BlockLoadError, match=r"PersistentMapping.*not a block format") as e:
        A.read()
    assert e.value.blk == 3


class Foreign(Persistent):
    """An object that is not a block, though its state is bytes of the size of a block."""

    __module__ = "t_foreign"

    def __getstate__(self):
        return b"x" * BLK


def test_a_foreign_object_of_bytes_is_not_mapped(root, A, monkeypatch):
    monkeypatch.setitem(sys.modules, "t_foreign", sys.modules[__name__])
    A.zfile.blktab[3] = Foreign()
    transaction.commit()
    A._fileh().invalidate_page(3)
    A._fileh().file.table.drop()
    with pytest.raises(BlockLoadError, match=r"Foreign.*not a block format"):
        A.read()


def test_a_block_that_is_too_long_is_refused(root, A):
    A.zfile.blktab[0] = zblk = ZBlk0()
    root._p_jar.add(zblk)
    zblk._p_changed = True
    zblk._v_data = b"1" * (BLK + 1)
    transaction.commit()
    with pytest.raises(BlockLoadError, match=f"{BLK + 1} bytes, more than the block size"):
        A.read()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
@pytest.mark.parametrize("cls", [bytes, binary])
@pytest.mark.parametrize("protocol", range(4))
def test_states_of_bytes_as_pickle_writes_them(protocol, cls, size):
    data = cls(np.random.default_rng(size).bytes(size))
    for pickler in Pickler, pickle.Pickler, pickle._Pickler:
        file = io.BytesIO()
        pickler(file, protocol).dump((ZBlk0, None))
        if cls is bytes or pickler is Pickler:
            pickler(file, protocol).dump(data)
            record = file.getvalue()
            assert bytes(bytes_state(record)) == data
            assert class_of(record) == "wendelin.bigfile.file_zodb.ZBlk0"


@pytest.mark.parametrize("name", [("a.module", "Class"), (b"a.module", b"Class")])
def test_references_by_servers_that_have_not_got_the_class(name):
    """Such servers resolve conflicts of block tables: they write the names of the classes."""
    file = io.BytesIO()
    pickler = Pickler(file, 3)
    oid = b"\0" * 7 + b"\5"
    pickler.persistent_id = lambda obj: (binary(oid), name) if obj is pickler else None
    pickler.dump((LOBTree, None))
    pickler.dump(((((7, pickler),),),))
    expected = ((((7, Ref(oid, "a.module.Class")),),),)
    assert state_of(file.getvalue()) == expected


@given(
    start=st.integers(0, 9),
    data=st.binary(max_size=40),
    zeros=st.integers(0, 40),
    behind=st.binary(max_size=3),
)
def test_where_bytes_end(start, data, zeros, behind):
    """At any address, and whatever follows in memory."""
    buf = b"\1" * start + data + bytes(zeros) + behind
    part = memoryview(buf)[start : len(buf) - len(behind)]
    assert end_of(part) == len(bytes(part).rstrip(b"\0"))


@given(
    start=st.integers(0, 9),
    values=st.binary(max_size=200).map(lambda data: bytes(b & 1 for b in data)),
    flips=st.sets(st.integers(0, 199), max_size=3),
    size=st.integers(1, 40),
)
def test_which_chunks_are_filled_and_which_differ(start, values, flips, size):
    """At any address, with a last chunk that is shorter."""
    other = bytes(v ^ (i in flips) for i, v in enumerate(values))
    a = memoryview(b"\1" * start + values + b"\1")[start:-1]
    b = memoryview(b"\2" * (start + 1) + other)[start + 1 :]
    chunks = range(0, len(values), size)
    assert list(filled(a, size)) == [any(values[i : i + size]) for i in chunks]
    expected = [values[i : i + size] != other[i : i + size] for i in chunks]
    assert list(differing(a, b, size)) == expected
    with pytest.raises(ValueError, match="bytes are compared"):
        differing(a, b"1" * (len(a) + 1), size)


@pytest.mark.database
def test_a_commit_maps_the_page_of_a_small_array_once(root, monkeypatch):
    A = zeros(root, "auto")
    mapped = []
    monkeypatch.setattr(ZBigFileH, "page_buffer", mapped.append)
    A[5] = 1
    transaction.commit()
    assert mapped == []
    assert A[5] == 1
    monkeypatch.undo()
    A[:BLK] = 7
    transaction.commit()
    root._p_jar.cacheMinimize()
    assert np.all(A[:BLK] == 7)
    assert not A[BLK:].any()
