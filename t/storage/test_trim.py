"""Trim: room of old revisions comes back in place, and no reader gets zeros for them."""

import errno
import os
import signal
import time
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ReadOnlyError, UndoError
from ZODB.serialize import referencesf

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError
from wendelin.lib.storage import fstrim
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsholds import Holds, free_before
from wendelin.lib.storage.fsreach import LARGE
from wendelin.lib.storage.trimmed import PACKED_AWAY, TrimmedError
from wendelin.lib.zodb import dbclose, dbopen

BLK = 1 << 17  # [bytes]
N = 8  # blocks


def data_of(seed):
    return np.full(N * BLK, seed, "u1")


@contextmanager
def opened(path):
    with closing(DB(AlignedFileStorage(path))) as db:
        yield db
        transaction.abort()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "1.fs")


def write(path, seeds=(1, 2, 3), fmt="ZBlk0"):
    """Write an array once with each seed; return the tids of these commits."""
    root = dbopen(path)
    tids = []
    for seed in seeds:
        if "A" not in root:
            root["A"] = ZBigArray((N * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
            transaction.commit()
        root["A"][:] = data_of(seed)
        transaction.commit()
        tids.append(root._p_jar.db().storage.lastTransaction())
    dbclose(root)
    return tids


def blocks_of(path):
    """Return how much room a file takes [bytes]."""
    return os.stat(path).st_blocks * 512


@contextmanager
def at(db, tid):
    """Give the array in a past state."""
    conn = db.open(at=tid, transaction_manager=transaction.TransactionManager())
    yield conn.root().get("A")
    conn.close()


def check(db, tid, seed):
    """Check the array in a past state; a seed of None: a read says that it was trimmed."""
    with at(db, tid) as A:
        if seed is None:
            with pytest.raises(BlockLoadError, match="was trimmed") as e:
                A.read()
            assert isinstance(e.value.__cause__, TrimmedError)
            del e  # its frames have a view
        else:
            assert (A.read() == seed).all()


def present(db):
    """Return what the array has now."""
    with db.transaction() as conn:
        return conn.root()["A"].read()


def test_room_comes_back_and_the_present_stays(path):
    tids = write(path)
    before = blocks_of(path)
    size = os.path.getsize(path)
    with opened(path) as db:
        found = db.storage.trim()
        assert found.revisions == 2 * N
        assert found.freed >= 2 * N * (BLK - 2 * 4096)
        assert blocks_of(path) <= before - found.freed + (64 << 10)
        assert os.path.getsize(path) == size
        assert (present(db) == 3).all()
        for tid in tids[:2]:
            check(db, tid, None)
        assert db.storage.trim().revisions == 0
    with opened(path) as db:  # by the index that was saved
        assert db.storage.used_index
        assert (present(db) == 3).all()


@pytest.mark.parametrize("by", ["tid", "time"])
def test_states_from_a_moment_on_are_kept(path, by):
    tids = write(path, (1, 2, 3, 4))
    with opened(path) as db:
        when = p_after(tids[1])
        found = db.storage.trim(when if by == "tid" else fstrim.TimeStamp(when).timeTime() + 1e-4)
        assert found.revisions == N
        check(db, tids[0], None)
        for seed, tid in zip((2, 3, 4), tids[1:], strict=True):
            check(db, tid, seed)


def p_after(tid):
    return (int.from_bytes(tid, "big") + 1).to_bytes(8, "big")


def test_as_many_revisions_as_asked_for_are_kept(path):
    tids = write(path, (1, 2, 3, 4))
    with opened(path) as db:
        assert db.storage.trim(keep=2).revisions == 2 * N
        for seed, tid in zip((3, 4), tids[2:], strict=True):
            check(db, tid, seed)
        for tid in tids[:2]:
            check(db, tid, None)
        with pytest.raises(ValueError, match="keep is 0"):
            db.storage.trim(keep=0)


def test_what_nothing_refers_to_is_trimmed(path):
    write(path, (1,))
    with opened(path) as db:
        with db.transaction() as conn:
            del conn.root()["A"]
        assert db.storage.trim().revisions == N


def test_what_is_referred_to_again_is_not_trimmed(path):
    """A pack as of a time at which nothing referred to it would drop it."""
    write(path, (1,))
    with opened(path) as db:
        with db.transaction() as conn:
            A = conn.root().pop("A")
            conn.transaction_manager.commit()
            gone = db.storage.lastTransaction()
            conn.root()["A"] = A
        assert db.storage.trim(p_after(gone)).revisions == 0
        assert (present(db) == 1).all()


def test_what_an_undo_brought_back_is_not_trimmed(path):
    write(path, (1, 2))
    with opened(path) as db:
        db.undo(db.undoInfo(0, 1)[0]["id"])
        transaction.commit()
        assert db.storage.trim().revisions == N
        assert (present(db) == 1).all()


def test_an_undo_cannot_bring_back_what_was_trimmed(path):
    write(path, (1, 2))
    with opened(path) as db:
        undo = db.undoInfo(0, 1)[0]["id"]
        db.storage.trim()
        assert not db.undoInfo(0, 20)
        db.undo(undo)
        with pytest.raises(UndoError):
            transaction.commit()
        transaction.abort()
        assert (present(db) == 2).all()


@pytest.mark.parametrize("fmt", ["ZBlk0", "auto"])
def test_views_of_open_connections_do_not_read_zeros(path, fmt):
    write(path, (1,), fmt)
    with opened(path) as db:
        tm = transaction.TransactionManager()
        a = db.open(tm).root()["A"][:]
        mapped, cold = a[: 4 * BLK], a[4 * BLK :]
        assert (mapped == 1).all()
        with db.transaction() as conn:
            conn.root()["A"][:] = 2
        with db.transaction() as conn:
            conn.root()["A"][:] = 3
        found = db.storage.trim()
        assert found.revisions == 0  # all states from that of the view on are kept
        assert (mapped == 1).all()
        assert (cold == 1).all()
        tm.begin()
        assert (a == 3).all()
        assert db.storage.trim().revisions == 2 * N
        assert (a == 3).all()
        tm.abort()


def test_views_of_other_processes_do_not_read_zeros(path):
    """Two storages in one process are like two processes: a lock belongs to an open file."""
    (tid,) = write(path, (1,))
    with opened(path) as db:
        reader = dbopen(path, read_only=True)
        a = reader["A"][:]
        assert (a[:BLK] == 1).all()
        with db.transaction() as conn:
            conn.root()["A"][:] = 2
        assert db.storage.trim().revisions == 0
        assert (a == 1).all()
        transaction.begin()
        assert (a == 2).all()
        assert db.storage.trim().revisions == N
        dbclose(reader)
        del a
        check(db, tid, None)


def test_a_past_state_that_is_looked_at_is_kept(path):
    tids = write(path)
    with opened(path) as db:
        with at(db, tids[1]) as A:
            a = A[:]
            assert db.storage.trim().revisions == N
            assert (a == 2).all()
        assert db.storage.trim().revisions == 0  # the Connection is closed, the view is not
        assert (a == 2).all()
        del a, A
        check(db, tids[1], 2)
        assert db.storage.trim().revisions == N
        check(db, tids[1], None)


def test_a_child_of_a_fork_does_not_let_go_of_what_its_parent_holds(path):
    write(path, (1,))
    with opened(path) as db:
        tm = transaction.TransactionManager()
        a = db.open(tm).root()["A"][:]
        assert (a == 1).all()
        with db.transaction() as conn:
            conn.root()["A"][:] = 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads
            pid = os.fork()
        if pid == 0:
            holds = db.storage._holds
            for state in list(holds._states):
                holds.released(state)
            os._exit(0)
        os.waitpid(pid, 0)
        assert db.storage.trim().revisions == 0
        assert (a == 1).all()
        tm.abort()


def test_an_interrupt_while_a_trim_runs_leaves_what_is_held_as_it_was(path):
    Path(path).touch()
    states = [n.to_bytes(8, "big") for n in (5, 9, 12)]

    def interrupt(*args):
        raise InterruptedError

    def wait(act):
        with open(path, "r+b") as trims, pytest.raises(InterruptedError):
            assert free_before(trims.fileno(), states[0]) == states[0]
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            act()

    def free():
        with open(path, "r+b") as other:
            return free_before(other.fileno(), states[2])

    before = signal.signal(signal.SIGALRM, interrupt)
    holds = Holds()
    try:
        with open(path, "rb") as file:
            hold = holds.hold(file.fileno(), states[1])
            early = (3).to_bytes(8, "big")
            wait(lambda: holds.hold(file.fileno(), early))
            assert free() == states[1]
            wait(lambda: hold.move(early))
            assert free() == states[1]
            hold.move(states[2])
            assert free() == states[2]
            hold.release()
            assert not holds.is_open
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_file_that_cannot_be_held_is_held_by_the_next_transaction(path, caplog):
    """There may be no descriptor left when a packed file takes the place of the file."""
    write(path, (1,))
    with opened(path) as db:
        storage = db.storage
        conn = db.open()
        assert (conn.root()["A"][:] == 1).all()
        storage._holds.renew(1 << 20)
        assert "cannot be held" in caplog.text
        conn.sync()
        with db.transaction() as other:
            other.root()["A"][:] = 2
        assert storage.trim().revisions == 0
        conn.close()


def test_a_file_system_that_cannot_punch_is_named_and_nothing_changes(path, monkeypatch):
    write(path)
    before = Path(path).read_bytes()

    def refuse(*args):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fstrim, "_punch", refuse)
    with opened(path) as db:
        with pytest.raises(OSError, match="cannot punch holes"):
            db.storage.trim()
        assert not db.storage.packing
    assert Path(path).read_bytes() == before


def test_a_trim_that_was_ended_before_the_holes_is_finished_by_the_next(path, monkeypatch):
    tids = write(path)

    def end(fd, start, stop):
        if stop <= os.path.getsize(path):
            raise KeyboardInterrupt

    with opened(path) as db:
        punch = fstrim._punch
        monkeypatch.setattr(fstrim, "_punch", end)
        with pytest.raises(KeyboardInterrupt):
            db.storage.trim()
        monkeypatch.setattr(fstrim, "_punch", punch)
        check(db, tids[0], None)
        found = db.storage.trim()
        assert (found.revisions, found.freed > N * BLK) == (0, True)
        assert (present(db) == 3).all()


def test_heads_are_synced_before_holes_are_made(path, monkeypatch):
    write(path)
    done = []
    with opened(path) as db:
        for module, name in (os, "pwrite"), (os, "fdatasync"), (fstrim, "_punch"):
            real = getattr(module, name)

            def noted(*args, name=name, real=real):
                done.append(name)
                return real(*args)

            monkeypatch.setattr(module, name, noted)
        db.storage.trim()
        monkeypatch.undo()
    expected = ["_punch", "pwrite", "fdatasync", *["pwrite"] * 2 * N, "fdatasync"]
    assert done == [*expected, *["_punch"] * 2 * N, "fdatasync"]


def test_payloads_are_not_read(path, monkeypatch):
    write(path)
    asked = []

    def refs(record):
        asked.append(len(record))
        return referencesf(record)

    with closing(AlignedFileStorage(path)) as storage:
        fstrim.trim(storage, None, 1, refs)
    assert max(asked) < LARGE


def test_only_a_writer_trims(path):
    write(path)
    with (
        closing(AlignedFileStorage(path, read_only=True)) as storage,
        pytest.raises(ReadOnlyError),
    ):
        storage.trim()


def test_stock_storage_opens_iterates_and_packs_a_trimmed_file(path):
    write(path)
    with opened(path) as db:
        db.storage.trim()
    Path(f"{path}.index").unlink()
    with closing(FileStorage(path)) as storage:
        classes = set()
        with closing(storage.iterator()) as transactions:
            for txn in transactions:
                for record in txn:
                    module, name = fstrim_class(record.data)
                    classes.add(f"{module}.{name}")
        assert PACKED_AWAY in classes
    with closing(DB(FileStorage(path))) as db:
        assert (present(db) == 3).all()
        transaction.abort()
        db.pack()
        assert (present(db) == 3).all()
        transaction.abort()
        assert db.storage.getSize() < 1.2 * N * BLK


def fstrim_class(record):
    from ZODB.utils import get_pickle_metadata

    return get_pickle_metadata(record)


steps = st.lists(
    st.sampled_from(["write", "part", "delete", "undo", "trim", "keep", "pack"]),
    min_size=3,
    max_size=10,
)


@given(steps, st.integers(0, 3))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_history_is_as_stock_storage_reads_it(tmp_path_factory, steps, back):
    """What is kept reads as what was written; the rest says that it was trimmed."""
    path = str(tmp_path_factory.mktemp("trim") / "1.fs")
    write(path, (1,), "auto")
    value = 1
    states = {}
    with opened(path) as db:
        for step in steps:
            value += 1
            with db.transaction() as conn:
                root = conn.root()
                if step == "write" and "A" in root:
                    root["A"][:] = value
                elif step == "part" and "A" in root:
                    root["A"][BLK : BLK + 9] = value
                elif step == "delete":
                    root.pop("A", None)
                    root["gone"] = value
                elif "A" not in root:
                    root["A"] = ZBigArray((N * BLK,), "u1", blksize=BLK)
            if step == "undo" and (undoable := db.undoInfo(0, 1)):
                db.undo(undoable[0]["id"])
                try:
                    transaction.commit()
                except UndoError:
                    transaction.abort()
            with db.transaction() as conn:
                A = conn.root().get("A")
                last = db.storage.lastTransaction()
                states[last] = None if A is None else A.read().tobytes()
            tids = sorted(states)
            if step in ("trim", "keep"):
                tid = tids[-1 - min(back, len(tids) - 1)]
                keeps = db.storage.trim(p_after(tid), 2 if step == "keep" else 1).before
                kept = {t: state for t, state in states.items() if p_after(t) >= keeps}
                for t, state in kept.items():
                    with at(db, t) as A:
                        assert (None if A is None else A.read().tobytes()) == state
                states = kept
            elif step == "pack":
                db.pack(time.time() + 1)
                states = {last: states[last]}
        current = states[max(states)]
    with closing(DB(FileStorage(path))) as db:
        A = db.open().root().get("A")
        assert (None if A is None else A[:].tobytes()) == current
        transaction.abort()
