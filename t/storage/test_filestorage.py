"""AlignedFileStorage: records whose bytes lie aligned in Data.fs, and nothing else changed."""

import errno
import os
import pickle
import struct
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import transaction
import ZODB.config
from BTrees.LOBTree import LOBTree
from support import zodb_suite
from support.fsbytes import Bytes, current, data_of, located, write
from support.pagecache import cached_pages, evict, skip_if_unknown
from support.smalldisk import NoDisk, overlay
from ZODB.blob import Blob
from ZODB.Connection import TransactionMetaData
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.FileStorage.format import DATA_HDR
from ZODB.utils import p64, u64, z64

from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.storage.fsrecord import load_small
from wendelin.lib.storage.pad import aligned, without_pad
from wendelin.lib.storage.record import bytes_state, find_payload
from wendelin.lib.zodb import dbclose, dbopen, zstor_2zurl

MIB = 1 << 20


def joined(record, at):
    return b"".join(aligned(record, at, lambda n: 1 if n < 65536 or n % 4096 else 4096))


# ---- what is aligned ----


def test_bytes_lie_aligned_and_are_located(path):
    values = [data_of(i, pages) for i, pages in enumerate([16, 17, 512, 16])]
    db, root = write(path, *values)
    for i, value in enumerate(values):
        assert located(db.storage, root[i]) == value
    db.close()


@pytest.mark.parametrize(
    "value", [b"", b"x", b"x" * 15 * ALIGNMENT, b"x" * (16 * ALIGNMENT - 1), b"x" * 65537]
)
def test_what_is_small_or_not_whole_pages_is_as_in_filestorage(path, tmp_path, value):
    db, root = write(path, value)
    assert located(db.storage, root[0]) is None
    oid = root[0]._p_oid
    record, _ = db.storage.load(oid)
    db.close()
    db, root = write(str(tmp_path / "stock.fs"), value, storage=StockFileStorage)
    assert db.storage.load(root[0]._p_oid)[0] == record
    db.close()


@pytest.mark.parametrize("smallest", [ALIGNMENT, 3 * ALIGNMENT])
def test_align_from_chooses_the_sizes_that_are_aligned(path, tmp_path, smallest):
    """It does so for commits, copies into the file, and packs, before the pack time and after."""
    values = [data_of(i, pages) for i, pages in enumerate([1, 2, 3, 4, 20])]
    expected = [value if len(value) >= smallest else None for value in values]
    chosen = partial(AlignedFileStorage, align_from=smallest)

    def found(storage, root):
        return [located(storage, root[i]) for i in range(len(values))]

    db, root = write(path, *values, storage=chosen)
    assert found(db.storage, root) == expected
    before = time.time()
    root[0].data = values[0]
    root[0]._p_changed = True
    transaction.commit()
    db.pack(before)
    assert found(db.storage, root) == expected
    db.pack()
    assert found(db.storage, root) == expected
    with closing(chosen(f"{tmp_path}/copy.fs")) as copy:
        copy.copyTransactionsFrom(db.storage)
        assert found(copy, root) == expected
    db.close()


def test_less_than_a_page_is_not_aligned(path):
    with pytest.raises(ValueError, match=rf"align_from is 512: it must be {ALIGNMENT} or more"):
        AlignedFileStorage(path, align_from=512)
    assert not os.path.exists(path)


def test_stock_filestorage_reads_and_writes_it(path):
    values = [data_of(i) for i in range(3)]
    db, _ = write(path, *values)
    db.close()
    db = DB(StockFileStorage(path))
    root = db.open().root()
    assert [root[i].data for i in range(3)] == values
    root[3] = Bytes(data_of(3))
    transaction.commit()
    db.close()
    db = DB(AlignedFileStorage(path))
    root = db.open().root()
    assert [located(db.storage, root[i]) for i in range(3)] == values
    assert root[3].data.endswith(b" 3")
    db.close()


def test_a_record_unpickles_with_the_pickle_of_python(path):
    db, root = write(path, data_of(1))
    record, _ = db.storage.load(root[0]._p_oid)
    db.close()
    found = find_payload(record)
    assert found.op > found.begin  # there is a pad
    assert pickle.loads(record) is Bytes
    assert pickle.loads(record[found.begin - 2 :]) == bytes_state(record)


@pytest.mark.parametrize("at", [0, 1, 4, 2**40 + 4090, 2**40 + 4091, *range(4096 - 90, 4096)])
def test_any_place_can_be_padded(at):
    record = b"\x80\x03cm\nC\nq\x01.\x80\x03B" + (65536).to_bytes(4, "little")
    record += bytes(range(256)) * 256 + b"q\x02."
    padded = joined(record, at)
    found = find_payload(padded)
    assert (at + found.start) % 4096 == 0
    assert padded[found.start : found.stop] == bytes(range(256)) * 256
    assert without_pad(padded) == record
    assert joined(without_pad(padded), at) == padded
    assert len(padded) - len(record) <= 4096 + 5


@pytest.mark.parametrize("record", [b"", b"junk" * 40000, b"\x80\x03" + b"N" * 70000])
def test_what_is_not_a_pickle_is_stored_as_it_is(record):
    assert joined(record, 5) == record
    assert without_pad(record) == record


def test_nothing_is_aligned_if_it_is_switched_off(path):
    db = DB(AlignedFileStorage(path, align=False))
    root = db.open().root()
    root[0] = Bytes(data_of(0))
    transaction.commit()
    record, _ = db.storage.load(root[0]._p_oid)
    assert without_pad(record) == record
    assert located(db.storage, root[0]) is None
    assert os.path.exists(path + ".tmp")
    db.close()


# ---- revisions ----


def test_locate_sees_the_revision_that_is_asked_for(path):
    db, root = write(path, data_of(0))
    tids = [db.storage.lastTransaction()]
    for i in 1, 2:
        root[0].data = data_of(i)
        root[0]._p_changed = True
        transaction.commit()
        tids.append(db.storage.lastTransaction())
    for i, tid in enumerate(tids):
        assert located(db.storage, root[0], p64(u64(tid) + 1)).endswith(f"{i}".encode())
    assert located(db.storage, root[0], tids[0]) is None  # before the object was there
    assert db.storage.locate([p64(999)], current(db.storage)) == [None]
    db.close()


def test_what_is_loaded_is_what_filestorage_loads(path, monkeypatch):
    """A small record is read by one system call."""
    db, root = write(path, *(data_of(i) for i in range(2)))
    tids = [db.storage.lastTransaction()]
    for i in range(3):
        root["small"] = i
        root[0].data = b"x" * (3000 * i)
        root[0]._p_changed = True
        transaction.commit()
        tids.append(db.storage.lastTransaction())
    db.undo(db.undoInfo()[0]["id"])
    transaction.commit()
    tids.append(db.storage.lastTransaction())
    storage, seen = db.storage, set()
    for oid in (root._p_oid, root[0]._p_oid, root[1]._p_oid):
        for tid in (*tids, current(storage)):
            found = storage.loadBefore(oid, tid)
            assert found == StockFileStorage.loadBefore(storage, oid, tid)
            seen.add(found and (len(found[0]) > 4000, found[2] is None))
    assert seen == {None, (True, True), (True, False), (False, True), (False, False)}
    for oid in p64(999), b"short":
        with pytest.raises((KeyError, TypeError)):
            storage.loadBefore(oid, current(storage))
    monkeypatch.delattr(StockFileStorage, "loadBefore")
    root["small"] = 3
    transaction.commit()
    assert storage.loadBefore(root._p_oid, current(storage))[2] is None
    db.close()


@pytest.mark.parametrize("first", [AlignedFileStorage, StockFileStorage])
def test_locate_waits_for_the_disk_if_asked_to(path, monkeypatch, first):
    """A touch waits for what is not in the kernel's cache; looking ahead leaves it out."""
    db, root = write(path, *(data_of(i) for i in range(4)), storage=first)
    db.close()
    db = DB(AlignedFileStorage(path))
    root = db.open().root()
    oids = [root[i]._p_oid for i in range(4)]
    want = db.storage.locate(oids, current(db.storage))
    assert None not in want
    preadv, refused = os.preadv, []

    def cold(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT and len(refused) < 2:
            refused.append(offset)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return preadv(fd, buffers, offset, 0)

    want[0].file.nowait = os.RWF_NOWAIT  # wherever this runs
    monkeypatch.setattr(os, "preadv", cold)
    assert db.storage.locate(oids, current(db.storage)) == want
    assert not refused
    expected = [None, None, *want[2:]]
    want[0].file.likes = ()  # else all of them are read in C
    assert db.storage.locate(oids, current(db.storage), wait=False) == expected
    assert len(refused) == 2
    db.close()


@pytest.mark.parametrize("ahead", [False, True], ids=["touched", "ahead"])
@pytest.mark.parametrize("alike", [False, True])
def test_heads_that_were_not_in_the_page_cache_do_not_stay_there(path, ahead, alike):
    """The kernel reads what is around them in large folios then."""
    db, root = write(path, *(data_of(i, 64 if alike else 64 + i) for i in range(24)))
    oids = [root[i]._p_oid for i in range(24)]
    db.close()
    storage = AlignedFileStorage(path, read_only=True)
    evict([Path(path)])
    before = cached_pages(Path(path))
    if before.mean() > 0.1:
        pytest.skip("the file system keeps it in the page cache")
    found = {}
    deadline = time.monotonic() + 20
    while missing := [oid for oid in oids if found.get(oid) is None]:
        # the kernel reads some of them meanwhile
        places = storage.locate(missing, current(storage), wait=not ahead)
        found.update(zip(missing, places, strict=True))
        assert time.monotonic() < deadline
    assert (cached_pages(Path(path)) & ~before).sum() <= 2
    assert list(found.values()) == storage.locate(oids, current(storage))
    storage.close()


def test_an_index_that_is_made_anew_leaves_nothing_in_the_page_cache(path):
    """Of the parts of records that lie between large ones."""
    skip_if_unknown(Path(path).parent)
    db, _ = write(path, *(data_of(i, 64 + i) for i in range(24)))
    db.close()
    os.remove(f"{path}.index")
    evict([Path(path)])
    AlignedFileStorage(path, read_only=True).close()
    assert cached_pages(Path(path)).sum() <= 24  # at the beginning, and at the end


def test_a_node_of_a_block_table_does_not_stay_in_the_page_cache(path):
    """It lies between blocks; but it stays if they are there, too, and for the second time."""
    skip_if_unknown(Path(path).parent)
    db, root = write(path, data_of(0, 64))
    names = "behind", "table", "other", "alone"
    for name in names:
        root[name] = Bytes() if name == "other" else LOBTree()
    transaction.commit()
    # records are in the order of changes
    root[0].data, root[0]._p_changed = data_of(0, 64), True
    root["behind"][1] = None
    transaction.commit()
    root["table"][1] = None
    root["other"].data, root["other"]._p_changed = b"x" * 100, True
    transaction.commit()
    root["alone"][1] = None
    transaction.commit()
    root["more"] = Bytes(data_of(1, 64))
    transaction.commit()
    oids = {name: root[name]._p_oid for name in names}
    places = {name: db.storage.index[oid] // ALIGNMENT for name, oid in oids.items()}
    db.close()
    storage = AlignedFileStorage(path, read_only=True)

    def stays(name):
        storage.loadBefore(oids[name], current(storage))
        return bool(cached_pages(Path(path))[places[name]])

    Path(path).read_bytes()
    assert stays("table")
    for name in oids:
        evict([Path(path)])
        assert stays(name) == (name in ("other", "alone"))
    assert stays("table")
    storage.close()


@pytest.mark.parametrize("begin", [0, 4, 7, 65536, 65540, (1 << 63) + 1, (1 << 64) - 1])
def test_a_node_whose_transaction_begins_anywhere_is_read(tmp_path, begin):
    """In the first transaction, and as a damaged record may say."""
    pos, state = 65536, b"cBTrees.LOBTree\nLOBucket\n"
    header = struct.pack(DATA_HDR, p64(9), p64(5), 0, begin, 0, len(state))
    path = tmp_path / "x.fs"
    path.write_bytes(bytes(pos) + header + state)
    evict([path])
    with open(path, "rb") as file:
        assert load_small(file.fileno(), p64(9), pos, p64(6), set()) == (state, p64(5))


@pytest.mark.once
def test_heads_stay_on_a_file_system_that_cannot_tell_what_is_cached(tmp_path):
    """overlayfs: cachestat(2) finds nothing in the page cache of it, which is another file's."""
    try:
        with overlay(tmp_path / "over") as folder:
            skip_if_unknown(tmp_path)
            db, root = write(str(folder / "x.fs"), *(data_of(i, 64 + i) for i in range(8)))
            places = db.storage.locate([root[i]._p_oid for i in range(8)], current(db.storage))
            assert all(place.file.cold is None for place in places)
            heads = [place.offset // ALIGNMENT - 1 for place in places]
            assert cached_pages(folder / "x.fs")[heads].all()
            db.close()
            del places
    except NoDisk as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("size", [10, 10_000, 10 * MIB])
def test_nothing_of_a_transaction_that_is_aborted_is_read(path, size):
    """Not after others were committed in its place, by a client that has read meanwhile."""
    storage = AlignedFileStorage(path)
    oid = storage.new_oid()

    def store(value, serial):
        t = TransactionMetaData()
        storage.tpc_begin(t)
        storage.store(oid, serial, value * size, "", t)
        storage.tpc_vote(t)
        return t

    tid = storage.tpc_finish(store(b"a", z64))
    for value in b"b", b"c":
        t = store(b"x", tid)
        assert storage.load(oid)[0] != b"x" * size
        storage.tpc_abort(t)
        tid = storage.tpc_finish(store(value, tid))
        assert storage.load(oid) == (value * size, tid)
    storage.close()


def test_a_file_system_that_cannot_tell_what_waits(path, monkeypatch):
    """Then nothing is left out, even when looking ahead."""
    db, root = write(path, *(data_of(i) for i in range(4)))
    oids = [root[i]._p_oid for i in range(4)]
    preadv = os.preadv

    def tmpfs(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", tmpfs)
    assert None not in db.storage.locate(oids, current(db.storage), wait=False)
    db.close()


# ---- as other storages ----


def test_history_iteration_and_blobs(path, tmp_path):
    db = DB(AlignedFileStorage(path, blob_dir=str(tmp_path / "blobs")))
    root = db.open().root()
    root["b"] = Blob(b"blob")
    root[0] = Bytes(data_of(0))
    transaction.commit()
    root[0].data = data_of(1)
    root[0]._p_changed = True
    transaction.commit()
    assert len(db.storage.history(root[0]._p_oid, 10)) == 2
    stored = [r for t in db.storage.iterator() for r in t if r.oid == root[0]._p_oid]
    assert [bytes(bytes_state(r.data))[-1:] for r in stored] == [b"0", b"1"]
    with root["b"].open() as f:
        assert f.read() == b"blob"
    db.close()


def test_zconfig(tmp_path):
    db = ZODB.config.databaseFromString(f"""
        %import wendelin.lib
        <zodb>
            <alignedfilestorage>
                path {tmp_path}/a.fs
                quota 100mb
            </alignedfilestorage>
        </zodb>""")
    assert type(db.storage) is AlignedFileStorage
    assert db.storage.align
    assert db.storage._quota == 100 * MIB
    db.close()
    db = ZODB.config.databaseFromString(f"""
        %import wendelin.lib
        <zodb>
            <alignedfilestorage>
                path {tmp_path}/a.fs
                align false
                ordered true
                packer ZODB.FileStorage.FileStorage.FileStorage.packer
            </alignedfilestorage>
        </zodb>""")
    assert not db.storage.align
    assert db.storage.ordered
    assert db.storage.packer is StockFileStorage.packer
    db.close()


@pytest.mark.usefixtures("no_leaks")
def test_urls(tmp_path):
    for query, align in ("", True), ("?align=false", False), ("?align=true&read_only=true", True):
        root = dbopen(f"file://{tmp_path}/a.fs{query}")
        storage = root._p_jar.db().storage
        assert type(storage) is AlignedFileStorage
        assert storage.align is align
        assert storage.isReadOnly() is ("read_only" in query)
        dbclose(root)
    root = dbopen(f"file://{tmp_path}/a.fs?ordered=1")
    assert root._p_jar.db().storage.ordered
    assert zstor_2zurl(root._p_jar.db().storage) == f"file://{tmp_path}/a.fs?ordered=true"
    dbclose(root)
    for query in "ordered=perhaps", "align=perhaps", "quota=many", "aling=true":
        with pytest.raises(ValueError, match=query.split("=")[0]):
            dbopen(f"file://{tmp_path}/a.fs?{query}")


def test_the_file_was_moved_by_hand(path):
    db, root = write(path, value := data_of(0))
    os.rename(path, path + "2")
    Path(path).write_bytes(b"other")
    assert located(db.storage, root[0]) == value
    root[1] = Bytes(value := data_of(1))
    transaction.commit()
    assert located(db.storage, root[1]) == value
    db.close()


@pytest.mark.database
@pytest.mark.only("fscopy")  # it takes a minute, and this run has fewer other tests
def test_zodbs_own_tests(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", zodb_suite.__file__],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-10000:]
    assert int(done.stdout.split("RAN")[1]) > 400
