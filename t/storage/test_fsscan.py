"""lib/storage/fsscan.py: a file opens at its last whole transaction, whatever is behind it."""

import os
import random
from pathlib import Path

import pytest
from support.child import check_child
from support.fsbytes import commit, write
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage as StockFileStorage
from ZODB.FileStorage.FileStorage import CorruptedTransactionError, FileStorageFormatError
from ZODB.utils import p64, z64

from wendelin.lib.storage import fsscan
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsscan import FIRST, UNFINISHED, scan

STORAGES = [AlignedFileStorage, StockFileStorage]

#: states that are tried at random; more by an environment variable
STATES = int(os.environ.get("WENDELIN_CORE_TEST_ENDS", "400"))


class Written:
    """A file, and where each of its transactions ends."""

    def __init__(self, path, storage=AlignedFileStorage):
        self.path = path
        opened = storage(path)
        self.ends, self.tids = [FIRST], [z64]
        for i in range(4):
            records = [(number, bytes([65 + i]) * (700 * number + 1)) for number in (1, 2, 1 + i)]
            records.append((9, b"\x80\x03cm\nC\nq\x01.\x80\x03B" + p64(1 << 40) + p64(50) * 9000))
            self.tids.append(commit(opened, *records))
            self.ends.append(opened.getSize())
        opened.close()
        os.unlink(f"{path}.index")
        self.raw = Path(path).read_bytes()

    def scanned(self, data):
        """Return where a scan of these bytes ends, and the tid."""
        Path(self.path).write_bytes(data)
        with open(self.path, "rb") as file:
            return tuple(scan(file.fileno(), self.path, {}, FIRST, z64))


@pytest.fixture(params=STORAGES)
def written(path, request):
    return Written(path, request.param)


def unfinished(written):
    """Return what is at the end of a file while a transaction is written."""
    return written.tids[-1] + UNFINISHED.to_bytes(8, "big") + b"c" + bytes(6)


def tails(written, rng):
    """Yield (what, bytes): ends that are not whole transactions."""
    start = written.ends[-2]
    last = written.raw[start:]  # as if its commit had not returned
    voted = last[:16] + b"c" + last[17:]
    for size in 1, 7, 8, 22, 23, 24, 42, 100, 511, 4096, 5000, 1 << 20:
        yield "zeros", bytes(size)
        yield "noise", rng.randbytes(size)
    for number in 0, 8, 23, 31, 50, 4096, 1 << 40, 1 << 62, 1 << 63, start, len(last):
        yield "lengths", p64(number) * 700
    yield "voted for", voted
    yield "voted for, and an abort of more", voted + rng.randbytes(10000)
    yield "unfinished", unfinished(written) + last[23:]
    yield "another file", written.raw[FIRST:]
    yield "transactions of this file", written.raw[FIRST:start]
    yield "the same twice", written.raw[written.ends[1] : start] * 2
    for sector in 512, 4096:
        for _ in range(6):
            yield "cut", last[: rng.randrange(len(last))]
            yield "sectors of zeros", torn(last, start, sector, bytes, rng)
            yield "sectors voted for", torn(voted, start, sector, rng.randbytes, rng)


def torn(data, start, sector, other, rng):
    """Return data of which the sector with the first length, and others, are not on disk."""
    result = bytearray(data)
    for at in range(-(start % sector), len(data), sector):
        if at <= 8 or rng.random() < 0.3:
            first, end = max(at, 0), min(at + sector, len(data))
            result[first:end] = other(end - first)
    return bytes(result)


def test_an_end_that_is_not_whole_is_not_taken(written):
    rng = random.Random(os.environ.get("WENDELIN_CORE_TEST_SEED", "1"))
    start = written.ends[-2]
    for what, tail in tails(written, rng):
        found = written.scanned(written.raw[:start] + tail)
        assert found == (start, written.tids[-2]), what


def test_random_ends(written):
    """An end is any mixture of sectors: of the last transaction, of an abort, and zeros."""
    rng = random.Random(os.environ.get("WENDELIN_CORE_TEST_SEED", "2"))
    start, whole = written.ends[-2], 0
    last = written.raw[start:]
    for _ in range(STATES):
        sector = rng.choice([512, 4096])
        aborted = unfinished(written) + rng.randbytes(rng.randrange(2 * len(last)))
        size = max(len(last), len(aborted)) if rng.random() < 0.5 else len(last)
        layers = [s.ljust(size, b"\0")[:size] for s in (last, aborted, bytes(size))]
        share = rng.random()
        tail = bytearray()
        for at in range(-(start % sector), size, sector):
            layer = layers[0] if rng.random() < share else rng.choice(layers)
            tail += layer[max(at, 0) : at + sector]
        pos, tid = written.scanned(written.raw[:start] + bytes(tail))
        if pos != start:  # by chance, all that a scan checks of the last transaction was there
            assert (pos, tid) == (written.ends[-1], written.tids[-1])
            whole += 1
        else:
            assert tid == written.tids[-2]
    assert 0 < whole < STATES


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("tail", ["zeros", "noise", "lengths", "voted for", "sectors of zeros"])
def test_a_file_with_a_broken_end_opens_reads_and_writes(path, tail, index, read_only):
    written = Written(path)
    if index:
        AlignedFileStorage(path).close()
    kinds = dict(tails(written, random.Random(3)))
    cut = bytes(5000) if tail == "zeros" else kinds[tail]
    end = written.ends[-1]
    Path(path).write_bytes(written.raw + cut)
    storage = AlignedFileStorage(path, read_only=read_only)
    assert storage._used_index == index
    assert storage.lastTransaction() == written.tids[-1]
    assert storage.getSize() == end
    assert [txn.tid for txn in storage.iterator()] == written.tids[1:]
    assert [tid for tid, _ in storage.lastInvalidations(2)] == written.tids[-2:]
    assert storage.load(p64(4))[0] == b"D" * 2801
    storage.sync()
    assert storage.lastTransaction() == written.tids[-1]
    if not read_only:
        assert os.path.getsize(path) == end
        commit(storage, (4, b"more"))
        assert storage.load(p64(4))[0] == b"more"
    else:
        assert os.path.getsize(path) == end + len(cut)
    storage.close()
    kept = path + ".tr0"
    assert os.path.exists(kept) == (tail != "zeros" and not read_only)
    if os.path.exists(kept):
        assert Path(kept).read_bytes() == cut
    if not read_only:
        for storage in STORAGES:
            opened = storage(path)
            assert opened.load(p64(4))[0] == b"more"
            opened.close()


def test_what_is_kept_is_on_disk_before_the_file_is_cut(path, monkeypatch):
    written = Written(path)
    Path(path).write_bytes(written.raw + b"x" * 5000)
    done = []
    for name in "fsync", "ftruncate":
        call = getattr(os, name)

        def noted(fd, *args, name=name, call=call):
            done.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
            return call(fd, *args)

        monkeypatch.setattr(os, name, noted)
    AlignedFileStorage(path).close()
    monkeypatch.undo()
    name, folder = os.path.basename(path), os.path.basename(os.path.dirname(path))
    assert done[:3] == [("fsync", f"{name}.tr0"), ("fsync", folder), ("ftruncate", name)]


def test_a_database_reads_at_once(path):
    db, root = write(path)
    root["n"] = 1
    root._p_jar.transaction_manager.commit()
    db.close()
    with open(path, "ab") as file:
        file.write(bytes(5000))
    db = DB(AlignedFileStorage(path))
    with db.transaction() as conn:
        assert conn.root()["n"] == 1
        conn.root()["n"] = 2
    db.close()


DAMAGES = {
    "the first length": (8, p64(12345678)),
    "a length that is too small": (8, p64(5)),
    "a status": (16, b"c"),
    "a status that is not ASCII": (16, b"\xff"),
    "the user's length": (18, b"\xff"),
    "zeros": (0, bytes(512)),
    "the position in a record": (23 + 24, b"\xff"),
    "the length of a record": (23 + 34, b"\x01"),
}


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("end", ["whole", "torn"])
def test_damage_in_the_middle_is_not_cut(written, damage, read_only, end):
    """A cut would lose what was committed after it."""
    at, value = DAMAGES[damage]
    at += written.ends[1]
    raw = written.raw[:at] + value + written.raw[at + len(value) :]
    if end == "torn":
        raw += bytes(3000) + random.Random(1).randbytes(3000)
    Path(written.path).write_bytes(raw)
    before = sorted(os.listdir(Path(written.path).parent))
    with pytest.raises(CorruptedTransactionError, match=f"damaged at {written.ends[1]}"):
        AlignedFileStorage(written.path, read_only=read_only)
    assert Path(written.path).read_bytes() == raw
    after = {name for name in os.listdir(Path(written.path).parent) if ".tr" in name}
    assert not after.difference(before)


def moved(raw, ends):
    return raw[:20] + bytes(100) + raw[20:]


def without_the_first_page(raw, ends):
    """Return a file with zeros in the place of its first transactions, and at its end."""
    return raw[:4] + bytes(ends[2] - 4) + raw[ends[2] :] + bytes(3000)


def two_that_follow_one_another(raw, ends):
    """Return a file with two broken first transactions of right lengths, and a torn end."""
    for end in ends[:2]:
        at = end + 23 + 24
        raw = raw[:at] + b"\xff" + raw[at + 1 :]
    return raw + bytes(3000)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", [moved, without_the_first_page, two_that_follow_one_another])
def test_a_damaged_beginning_makes_no_empty_database(written, damage, read_only):
    raw = damage(written.raw, written.ends)
    Path(written.path).write_bytes(raw)
    with pytest.raises(CorruptedTransactionError, match=f"damaged at {FIRST}: .* follows at"):
        AlignedFileStorage(written.path, read_only=read_only)
    assert Path(written.path).read_bytes() == raw
    assert not os.path.exists(f"{written.path}.tr0")


@pytest.mark.parametrize("how", ["a record", "cut"])
def test_a_large_first_transaction_that_is_damaged(path, how):
    """Its records were on disk before its status: a power failure cannot leave it so."""
    storage = AlignedFileStorage(path)
    commit(storage, (1, bytes(fsscan.LARGE)))
    storage.close()
    os.unlink(f"{path}.index")
    if how == "cut":
        os.truncate(path, 1 << 20)
    else:
        with open(path, "r+b") as file:
            file.seek(FIRST + 23 + 24)
            file.write(b"\xff")
    size = os.path.getsize(path)
    with pytest.raises(CorruptedTransactionError, match=f"damaged at {FIRST}: .*committed"):
        AlignedFileStorage(path)
    assert os.path.getsize(path) == size


def test_a_first_transaction_that_was_being_written(path):
    """A file opens with whatever a power failure has left of it."""
    storage = AlignedFileStorage(path)
    data = b"".join(p64(number) for number in (0, 23, 50, 4096, 1 << 40)) * 1000 + bytes(9000)
    commit(storage, *[(number, data) for number in range(3)])
    storage.close()
    os.unlink(f"{path}.index")
    raw, rng = Path(path).read_bytes(), random.Random(1)
    header = raw[FIRST : FIRST + 23]
    unfinished = header[:8] + UNFINISHED.to_bytes(8, "big") + b"c" + header[17:]
    layers = [unfinished, header[:16] + b"c" + header[17:], header]
    for begin in layers:
        last = raw[:FIRST] + begin + raw[FIRST + 23 :]
        torn_ends = [torn(last[FIRST:], FIRST, n, bytes, rng) for n in (512, 4096) * 10]
        for end in [last[FIRST : rng.randrange(FIRST, len(raw))] for _ in range(20)] + torn_ends:
            if raw[FIRST:] == end or (begin is header and begin not in end[:23]):
                continue
            Path(path).write_bytes(raw[:FIRST] + end)
            storage = AlignedFileStorage(path)
            assert (len(storage), storage.getSize()) == (0, FIRST)
            storage.close()
            os.unlink(f"{path}.index")


def test_a_writer_finishes_while_the_end_is_looked_at(written, monkeypatch):
    """A reader sees a transaction without its status, and then the next one."""
    whole, seen = fsscan._whole, []

    def before_the_status(read, size, pos, **how):
        if pos == written.ends[1] and not seen:
            seen.append(pos)
            return None
        return whole(read, size, pos, **how)

    monkeypatch.setattr(fsscan, "_whole", before_the_status)
    assert written.scanned(written.raw) == (written.ends[-1], written.tids[-1])
    assert seen


@pytest.mark.parametrize("begin", [b"", b"FS", bytes(2), bytes(4)])
def test_a_file_whose_beginning_was_not_finished(path, begin):
    Path(path).write_bytes(begin)
    storage = AlignedFileStorage(path, read_only=True)
    assert len(storage) == 0
    storage.close()
    storage = AlignedFileStorage(path)
    tid = commit(storage, (1, b"x"))
    storage.close()
    storage = StockFileStorage(path)
    assert storage.lastTransaction() == tid
    storage.close()


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"FS30"[::-1], bytes(5), b"x"])
def test_what_is_another_file_stays_as_it_is(path, begin):
    Path(path).write_bytes(begin)
    for read_only in False, True:
        with pytest.raises(FileStorageFormatError):
            AlignedFileStorage(path, read_only=read_only)
    assert Path(path).read_bytes() == begin
    Path(path).write_bytes(b"")
    AlignedFileStorage(path).close()  # no lock was left


def test_no_room_to_keep_what_is_cut(path):
    written = Written(path)
    raw = written.raw + random.Random(1).randbytes(200_000)
    Path(path).write_bytes(raw)
    code = f"""
        import resource, signal
        from ZODB.POSException import StorageSystemError
        from wendelin.lib.storage.filestorage import AlignedFileStorage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
        try:
            AlignedFileStorage({path!r})
        except StorageSystemError as e:
            print(e)
    """
    said = check_child(code)
    assert f"truncate -s {written.ends[-1]} {path}" in said
    assert Path(path).read_bytes() == raw
    assert not os.path.exists(path + ".tr0")


def test_time_travel(path):
    """The last transaction is the last one that is seen, even if the index goes further."""
    written = Written(path)
    AlignedFileStorage(path).close()
    for i, tid in enumerate(written.tids[1:], 1):
        storage = AlignedFileStorage(path, read_only=True, stop=tid)
        assert storage.lastTransaction() == written.tids[i - 1]
        assert storage.getSize() == written.ends[i - 1]
        assert len(list(storage.iterator())) == i - 1
        storage.close()
