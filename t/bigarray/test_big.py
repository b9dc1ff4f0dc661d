"""Arrays larger than memory: in a memory cgroup, and of 64 TiB."""

import os
import subprocess
import sys

import pytest
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child

pytestmark = [pytest.mark.once, pytest.mark.slow]

MIB = 1 << 20


def run_limited(code, procs, cwd):
    """Run code in a process of the cgroup; return its CompletedProcess."""
    enter = f"import os; open({str(procs)!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run(
        [sys.executable, "-P", "-c", enter + code],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "WENDELIN_CORE_RAM"},
        capture_output=True,
        text=True,
        timeout=280,
    )


OURS = """
import numpy as np, transaction
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.memlimit import ram_limit
from wendelin.lib.zodb import dbopen, dbclose
assert ram_limit() == 256 << 20, ram_limit()
root = dbopen("x.fs")
root["A"] = A = ZBigArray((0,), "f8")
transaction.commit()
n = (32 << 20) // 8
for i in range(64):
    A.append(np.full(n, i, "f8"))
    transaction.commit()
dbclose(root)
root = dbopen("x.fs")
a = root["A"][:]
assert a.nbytes == 2 << 30
assert np.mean(a) == 31.5
assert np.sum(a) == 31.5 * 64 * n
dbclose(root)
print("done")
"""

NUMPY = """
import numpy as np
n = (32 << 20) // 8
a = np.empty(64 * n)
for i in range(64):
    a[i * n : (i + 1) * n] = i
print("done", np.mean(a))
"""


def test_a_cgroup_of_512_mib(tmp_path):
    """The kernel kills a program with an ndarray, but not one with a ZBigArray."""
    try:
        with memory_cgroup(512 * MIB) as procs:
            done = run_limited(NUMPY, procs, tmp_path)
            assert done.returncode == -9, (done.returncode, done.stdout)
            done = run_limited(OURS, procs, tmp_path)
            assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    except NoCgroup as e:
        pytest.skip(str(e))


def test_64_tib(tmp_path):
    check_child(
        """
        import os, sys
        import numpy as np, transaction
        from wendelin.bigarray.array_zodb import ZBigArray
        from wendelin.lib.zodb import dbopen, dbclose
        os.chdir(sys.argv[1])
        MIB = 1 << 20
        BLK = 2 * MIB
        def rss():
            with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096
        root = dbopen("x.fs")
        root["A"] = A = ZBigArray((0,), "f8")
        transaction.commit()
        A[0:0]; A._fileh()
        # creating, mapping and touching: nothing but the blocks
        before = rss()
        root["A"] = A = ZBigArray(((64 << 40) // 8,), "f8")
        transaction.commit()
        a = A[:]
        assert a.nbytes == 64 << 40
        assert (a[0], a[-1], a[len(a) // 2]) == (0, 0, 0)
        assert rss() - before < MIB, (rss() - before) / MIB
        a[0] = 1
        a[-1] = 2
        assert rss() - before < 2 * BLK + MIB, (rss() - before) / MIB
        transaction.commit()
        dbclose(root)
        del a, A
        root = dbopen("x.fs")
        A = root["A"]
        assert (A[0], A[-1]) == (1, 2)
        assert os.path.getsize("x.fs") < 3 * BLK
        # a sum over 64 GiB of hole: page tables, 0.2 %, aside
        a = A[(1 << 40) // 8 : ((1 << 40) + (64 << 30)) // 8]
        def tables():
            with open("/proc/self/status") as f:
                return int(f.read().split("VmPTE:")[1].split()[0]) << 10
        before, before_tables = rss(), tables()
        assert np.sum(a) == 0
        assert rss() - before < 16 * MIB, (rss() - before) / MIB
        assert tables() - before_tables < 0.0021 * (64 << 30)
        dbclose(root)
        """,
        str(tmp_path),
        timeout=240,
    )
