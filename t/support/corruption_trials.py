"""Tries databases that are damaged as a seed says.

    python t/support corruption-trials FOLDER START STOP

For each seed, a copy of a small database (FOLDER/bases) is damaged (corruption.py), then opened,
read, changed and committed. Each read must give one of these:

- an exception;
- what was there before the damage;
- what plain ZODB reads, too (plain_zodb.py, in a process of its own): a payload can be damaged so
  that nobody can notice it;
- if the end of the file was cut, as after a power failure: what plain ZODB reads without that end.

An end that is cut must be kept beside the file, and must not have a transaction that is intact.

A process tries many seeds, and first prints each one. So the seed of a crash, or a hang, is known.
"""

import faulthandler
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import transaction
from ZODB import DB

from support import plain_zodb
from support.corruption import Base, damage
from support.plain_zodb import Places, Snapshot, digest, tried
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BlockLoadError
from wendelin.bigfile.file_zodb import ZBigFile
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.storage.fsalign import ALIGNMENT
from wendelin.lib.zodb import dbclose

SECONDS = 30  # for a seed, on a loaded machine


# ---- what ours has ----


class Defect(Exception):  # noqa: N818  # in ours
    """A damage had an outcome that it must not have."""


def _look(root, name):
    """Return (blksize, shape, dtype, order) of an array; of a file, the first only."""
    obj = root[name]
    if isinstance(obj, ZBigFile):
        return (obj.blksize,)
    if not isinstance(obj, ZBigArray):
        raise TypeError(name)
    return obj.zfile.blksize, obj.shape, str(obj.dtype), obj._order


def _handle(root, name):
    obj = root[name]
    return obj._fileh() if isinstance(obj, ZBigArray) else obj.fileh_open()


def blocks(root, name, blks, touch: bool) -> Snapshot:
    """Return digests of blocks of an array; they are touched in a view, or loaded before that."""
    handle = tried(_handle, root, name)
    if isinstance(handle, Exception):
        return dict.fromkeys(((name, blk) for blk in blks), handle)
    result: Snapshot = {}
    for blk in blks:
        result[name, blk] = found = tried(_touched if touch else _read, handle, blk)
        if not isinstance(found, BlockLoadError) and isinstance(found, Exception):
            raise Defect(f"{name}, block {blk}: no BlockLoadError, but {found!r}") from found
        if isinstance(found, BlockLoadError) and (found.blk != blk or found.__cause__ is None):
            raise Defect(f"{name}, block {blk}: {found!r} is of another block, or has no cause")
    return result


def _pending():
    """Let an asynchronous exception be raised: Python does that where a function is entered."""


def _touched(handle, blk):
    result = digest(np.asarray(handle.mmap(blk, 1)))
    _pending()
    return result


def _read(handle, blk):
    handle.load(blk, 1)
    return _touched(handle, blk)


def _open(path, align):
    return DB(AlignedFileStorage(str(path), align=align, align_from=ALIGNMENT)).open().root()


def ours(path, places: Places, touch: bool, align: bool) -> Snapshot:
    """Return what a file has, as we read it."""
    result: Snapshot = {}
    root = tried(_open, path, align)
    if isinstance(root, Exception):
        result["open"] = root
        return result
    try:
        for name, blks in places.items():
            result[name] = tried(_look, root, name)
            if isinstance(result[name], Exception):
                result.update(dict.fromkeys(((name, blk) for blk in blks), result[name]))
            else:
                result.update(blocks(root, name, blks, touch))
            transaction.abort()
    finally:
        transaction.abort()
        dbclose(root)
    return result


def _same(a, b):
    return isinstance(a, Exception) == isinstance(b, Exception) and (
        isinstance(a, Exception) or a == b
    )


def check(mine: Snapshot, *others: Snapshot) -> None:
    """Raise Defect if a value that was read is neither an exception, nor what another one has."""
    for what, found in mine.items():
        if isinstance(found, Exception):
            continue
        if not any(what in other and _same(found, other[what]) for other in others):
            has = [other.get(what, other.get("open")) for other in others]
            raise Defect(f"{what} is {found!r}, and others have {has!r}")


def change(path, places: Places, rng: random.Random, align: bool, before: Snapshot) -> bool:
    """Change a damaged database and commit; say whether that worked.

    After it, all that could be read before must be as before, or as it was changed.
    """
    root = tried(_open, path, align)
    if isinstance(root, Exception):
        return False
    expected, done = dict(before), False
    try:
        name = rng.choice(sorted(places))
        for blk in rng.sample(list(places[name]), min(2, len(places[name]))):
            if isinstance(before.get((name, blk)), Exception):
                continue
            a = np.asarray(_handle(root, name).mmap(blk, 1))
            a[rng.choice([0, 5, len(a) - 1])] ^= 255
            a[: rng.choice([1, len(a)])] |= 1
            _pending()
            expected[name, blk] = digest(a)
        root["y"] = 1
        transaction.commit()
        done = True
    except Exception:
        expected = dict(before)
    finally:
        transaction.abort()
        dbclose(root)
    after = ours(path, places, False, align)
    # where an exception was before, everything is right
    for what, was in expected.items():
        if not isinstance(was, Exception) and not _same(after.get(what), was):
            how = "after a commit" if done else "after a commit that failed"
            raise Defect(f"{what} is {after.get(what)!r} {how}, and was {was!r}")
    return done


# ---- the program ----


def plain_snapshot(path, places: Places) -> Snapshot | None:
    """Return what plain ZODB reads, in a fork; None if its BTrees have ended the fork."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = plain_zodb.snapshot(path, places).items()
            # not all exceptions can be pickled, and it only matters that there is one
            told = {k: Exception(repr(x)) if isinstance(x, Exception) else x for k, x in found}
            with open(writes, "wb") as file:
                pickle.dump(told, file)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writes)
    with open(reads, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT:
        return None
    if status != 0:
        raise Defect(f"plain ZODB ended with {status}")
    result: Snapshot = pickle.loads(data)
    return result


class Damaged:
    """Tries seeds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"damaged-{os.getpid()}.fs"
        self.plain = folder / f"plain-{os.getpid()}.fs"
        self.bases = [Base(p) for p in sorted((folder / "bases").glob("*.fs"))]
        self.new = [b for b in self.bases if "new-" in b.path.name]
        self.was: dict[Path, Snapshot] = {}

    def _was(self, base: Base) -> Snapshot:
        if base.path not in self.was:
            base.copy(self.plain, base.raw, False)
            self.was[base.path] = plain_zodb.snapshot(self.plain, base.places)
            if any(isinstance(x, Exception) for x in self.was[base.path].values()):
                raise Defect(f"{base.path} is damaged: {self.was[base.path]}")
        return self.was[base.path]

    def _without_end(self, base: Base, raw: bytes, end: bytes) -> Snapshot:
        """Check that an end was cut rightly; return what plain ZODB reads of the rest."""
        cut = len(raw) - len(end)
        if self.path.read_bytes() + end != raw:
            raise Defect(f"what was cut at {cut} is not what is kept")
        for start, stop in base.transactions:
            if start >= cut and raw[start:stop] == base.raw[start:stop]:
                raise Defect(f"the transaction at {start} was cut, and is whole")
        Path(f"{self.plain}.index").unlink(missing_ok=True)
        self.plain.write_bytes(b"FS30" + raw[4:cut])
        return plain_snapshot(self.plain, base.places) or {}

    def run(self, seed: int) -> Counter:
        """Damage a database and try it; return what was seen."""
        rng = random.Random(seed)
        base = rng.choice(self.new if rng.random() < 0.85 else self.bases)
        was = self._was(base)
        align = rng.random() < 0.7
        how = damage(base, rng, self.path)
        index = Path(f"{self.path}.index")
        base.copy(self.plain, self.path.read_bytes(), False)
        if index.exists():
            shutil.copy(index, f"{self.plain}.index")
        plain = plain_snapshot(self.plain, base.places)
        raw = self.path.read_bytes()
        kept = Path(f"{self.path}.tr0")
        kept.unlink(missing_ok=True)
        mine = ours(self.path, base.places, rng.random() < 0.5, align)
        seen = Counter({how: 1})
        if plain is None:
            seen["plain ZODB crashed"] += 1
        elif kept.exists():
            seen["the end was cut"] += 1
            check(mine, was, plain, self._without_end(base, raw, kept.read_bytes()))
        else:
            try:
                check(mine, was, plain)
            except Defect:
                if not index.exists():
                    raise
                # Plain ZODB may believe an index that ours does not: then ours reads all the file.
                base.copy(self.plain, raw, False)
                check(mine, was, plain_snapshot(self.plain, base.places) or {})
        seen["opened"] += "open" not in mine
        failed = [x for x in mine.values() if isinstance(x, Exception)]
        seen["refused"] += bool(failed)
        seen["noticed by nobody"] += any(
            not isinstance(x, Exception) and x != was[k] for k, x in mine.items()
        )
        seen["committed"] += change(self.path, base.places, rng, align, mine)
        return seen


def main() -> None:
    folder, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if "ASAN_OPTIONS" not in os.environ:  # ASan needs terabytes
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    logging.getLogger().addHandler(logging.NullHandler())
    tries, seen, defects = Damaged(folder), Counter(), 0
    for seed in range(start, stop):
        print("seed", seed, flush=True)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            seen += tries.run(seed)
        except Exception:
            print(f"DEFECT of seed {seed}: {traceback.format_exc()}")
            defects += 1
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(seen))
    sys.exit(min(defects, 1))


if __name__ == "__main__":
    main()
