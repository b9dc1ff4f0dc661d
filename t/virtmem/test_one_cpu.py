"""With one CPU, threads that read ahead do only what has to wait for the disk."""

import os

import pytest
import transaction
from support.child import check_child

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [pytest.mark.only("fs"), pytest.mark.once]

READS = """
import os, sys
import numpy as np
from wendelin.lib.zodb import dbopen
path, cpus, cached = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "cached"
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
with open(path, "rb") as f:
    os.fsync(f.fileno())
    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached:
        f.read()
root = dbopen(path)
assert np.sum(root["A"][:], dtype="i8") == 64 << 20
tasks = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(tasks.count("wendelin.core\\n"), flush=True)
os._exit(0)
"""


def test_page_tables_are_filled_ahead_by_another_cpu_only(tmp_path):
    path = str(tmp_path / "x.fs")
    root = dbopen(path)
    root["A"] = A = ZBigArray((64 << 20,), "i1", blksize=1 << 20)
    transaction.commit()
    A[:] = 1
    transaction.commit()
    dbclose(root)

    def threads(cpus, cached):
        return int(check_child(READS, path, str(cpus), cached, WENDELIN_CORE_READY="0"))

    others = threads(1, "cached")
    assert threads(1, "cold") > others
    if len(os.sched_getaffinity(0)) > 1:
        assert threads(2, "cached") > others
