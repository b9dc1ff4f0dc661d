"""A transaction that is larger than memory, in a memory cgroup."""

import os

import pytest
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child

pytestmark = [pytest.mark.slow, pytest.mark.formats, pytest.mark.only("fs", "zeo")]

MIB = 1 << 20
#: by hand: 2048, in a cgroup of 256
SIZE = int(os.environ.get("WENDELIN_CORE_TEST_TRANSACTION", "256"))
MEMORY = 256 if SIZE >= 1024 else 128

LARGER = """
import os, resource, sys
procs, url, size = sys.argv[1], sys.argv[2], int(sys.argv[3]) << 20
import numpy as np, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import ram_set_limit, stats
from wendelin.lib.memlimit import memory_limit
from wendelin.lib.zodb import dbclose, dbopen

with open(procs, "w") as f: f.write(str(os.getpid()))
ram_set_limit(memory_limit() // 2)
STEP = 1 << 19
root = dbopen(url)
root["A"] = A = ZBigArray((0,), np.int64)
root["B"] = ZBigArray((1,), np.int64)
transaction.commit()
root["B"][:] = 7
transaction.commit()

def fill(A, k, part=1):
    for i in range(0, len(A) // part, STEP):
        A[i : i + STEP] = np.arange(i, i + len(A[i : i + STEP])) * k

def check(A, k, part=1):
    for i in range(0, len(A) // part, STEP):
        a = A[i : i + STEP]
        assert np.array_equal(a, np.arange(i, i + len(a)) * k), i

n = size // 8
A.resize(n // 2)
fill(A, 3)
for i in range(n // 2, n, STEP):
    A.append(np.arange(i, i + STEP) * 3)    # the other half
assert len(A) == n and stats().spooled >= size // 2, stats()
check(A, 3)
saved = transaction.savepoint()
fill(A, 5, part=4)
root["B"][:] = 8
check(A, 5, part=4)
saved.rollback()
check(A, 3)
assert root["B"][0] == 7
transaction.abort()
assert len(A) == 0 and stats().spooled == 0
A.resize(n)
fill(A, 4)
transaction.commit()
assert stats().spooled == 0 and stats().dirty == 0
check(A, 4)
dbclose(root)
root = dbopen(url)
check(root["A"], 4)
assert root["B"][0] == 7
dbclose(root)
"""


def test_a_transaction_larger_than_memory(testdb):
    """Written, read, saved, rolled back, aborted, written again and committed."""
    try:
        with memory_cgroup(MEMORY * MIB) as procs:
            check_child(LARGER, str(procs), testdb.url, str(SIZE), timeout=600)
    except NoCgroup as e:
        pytest.skip(str(e))
