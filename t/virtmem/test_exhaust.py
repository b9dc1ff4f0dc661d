"""Resources run out: an exception names the resource, and the database stays as it was.

Each test runs a program in a child process that has little of one resource: disk, file descriptors,
address space, mappings, page memory. The exception must name what is missing. The program must go
on, and commit when there is enough again.
"""

import os
import subprocess
import sys

import pytest
from support import TESTS
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child
from support.servers import ZeoServer
from support.smalldisk import NoDisk, small_disk
from support.storages import SMALL

from wendelin.lib.zodb import dbclose, dbopen

MIB = 1 << 20

pytestmark = [pytest.mark.slow, pytest.mark.only("fs"), pytest.mark.once]

#: each program begins with this: a committed array of 6 blocks, and checks
SETUP = """
import os, resource, sys
import numpy as np, transaction
from support.threads import pending
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.bigfile import BigFileError, BlockLoadError, DoomedError, PageMemoryError
from wendelin.bigfile import ram_reclaim
from wendelin.lib.zodb import dbopen, dbclose

url, fmt = sys.argv[1:3]
BLK = 65536
FIRST = (np.arange(6 * BLK) % 251 + 1).astype("u1")
root = dbopen(url)
root["A"] = A = ZBigArray((6 * BLK,), "u1", blksize=BLK, zblk_fmt=fmt)
root["n"] = 0
transaction.commit()
A[:] = FIRST
transaction.commit()

def limit(what, soft):
    resource.setrlimit(what, (soft, resource.getrlimit(what)[1]))

def is_as_before(n=0):
    transaction.abort()
    ram_reclaim()
    assert root["n"] == n
    assert np.array_equal(A[: 6 * BLK], FIRST)
    assert len(A) == 6 * BLK, A.shape

def works_again(n=0):
    is_as_before(n)
    A[0] = FIRST[0] = 77
    root["n"] = n + 1
    transaction.commit()
    is_as_before(n + 1)

def expect(act, *words, error=Exception):
    "Do what must raise something that names the want."
    try:
        act()
        pending()
    except error as e:
        said, cause = [], e
        while cause is not None:
            said.append(f"{type(cause).__name__}: {cause}")
            cause = cause.__cause__
        assert any(w in s for w in words for s in said), said
        return e
    raise AssertionError("no exception")
"""

END = """
dbclose(root)
root = dbopen(url)
assert np.array_equal(root["A"][:], FIRST)
dbclose(root)
"""


def program(code, url, fmt="ZBlk0", **kw):
    if url.startswith("file:"):
        url += SMALL if "?" not in url else SMALL.replace("?", "&")
    check_child(SETUP + code + END, url, fmt, **kw)


@pytest.fixture(params=["", "?align=false"], ids=["mapped", "copied"])
def url(request, tmp_path):
    return f"file://{tmp_path}/test.fs{request.param}"


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk", 2 * MIB) as folder:
            yield folder
    except NoDisk as e:
        pytest.skip(str(e))


# ---- disk ----

FULL = """
def too_much():
    root["n"] = 1
    A.append(np.random.default_rng(1).integers(1, 255, 40 * BLK, "u1"))
    transaction.commit()
for _ in range(3):
    expect(too_much, "No space left on device", error=OSError)
    is_as_before()
works_again()
"""


@pytest.mark.parametrize("options", ["", "?align=false"], ids=["mapped", "copied"])
def test_disk_full_in_a_commit(disk, fmt, options):
    program(FULL, f"file://{disk}/test.fs{options}", fmt)


def test_disk_full_in_a_savepoint(disk, tmp_path):
    program(
        """
for _ in range(3):
    A.append(np.ones(40 * BLK, "u1"))
    expect(transaction.savepoint, "No space left on device", error=OSError)
    is_as_before()
works_again()
""",
        f"file://{tmp_path}/test.fs",
        WENDELIN_CORE_SPOOL=str(disk),
    )


def test_disk_full_in_a_pack(disk):
    program(
        """
FIRST = FIRST[::-1].copy()
A[:] = FIRST
transaction.commit()
filler = open(os.path.dirname(url[7:]) + "/filler", "wb", buffering=0)
try:
    while True: filler.write(bytes(4096))
except OSError: pass
db = root._p_jar.db()
expect(db.pack, "No space left on device", error=OSError)
is_as_before()
os.truncate(filler.name, 0)
db.pack()
works_again()
""",
        f"file://{disk}/test.fs",
    )


def test_file_too_large_in_a_commit(url):
    """A limit on the size of files, like a quota. It holds for page memory too, which is a file."""
    program(
        """
def too_much():
    root["n"] = 1
    A.append(np.random.default_rng(1).integers(1, 255, 40 * BLK, "u1"))
    limit(resource.RLIMIT_FSIZE, 1 << 20)
    try: transaction.commit()
    finally: limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
for _ in range(3):
    expect(too_much, "File too large", error=OSError)
    is_as_before()
works_again()
""",
        url,
        "auto",
    )


@pytest.fixture
def server(disk):
    section = "<alignedfilestorage {n}>\n  path {path}\n</alignedfilestorage>\n"
    server = ZeoServer(disk, section=section)
    server.start()
    yield server
    server.stop()


@pytest.mark.database
@pytest.mark.only("zeo")
@pytest.mark.formats
def test_disk_full_at_a_server(server, fmt):
    program(
        FULL.replace("error=OSError", "error=ServerException").replace(
            "def too", "from ZEO.Exceptions import ServerException\ndef too"
        ),
        server.url,
        fmt,
    )
    root = dbopen(server.url)
    assert root["n"] == 1
    dbclose(root)


# ---- file descriptors ----


def test_no_file_descriptors(url):
    program(
        """
limit(resource.RLIMIT_NOFILE, 256)
del A; ram_reclaim(); root._p_jar.cacheMinimize()
A = root["A"]
taken = []
def take():
    try:
        while True: taken.append(os.dup(0))
    except OSError: pass
def give():
    while taken: os.close(taken.pop())
take()
# a handle needs none, if others have opened its memory file
try:
    assert A[0] == FIRST[0]
    pending()
except OSError as e:
    assert "Too many open files" in str(e), e
give()
is_as_before()
# and so do loads, and commits, or they do not
del A; ram_reclaim(); root._p_jar.cacheMinimize()
A = root["A"]
a = A[:]
take()
for act in lambda: a[3 * BLK], lambda: A.read(slice(BLK, 2 * BLK)):
    try:
        act()
        pending()
    except BlockLoadError as e:
        assert "Too many open files" in str(e) and "disk failed" not in str(e), e
transaction.abort()
try:
    a[0] = a[-1] = 9
    root["n"] = 1
    transaction.commit()
    FIRST[0] = FIRST[-1] = 9
    n = 1
except (OSError, BigFileError) as e:
    assert "Too many open files" in str(e), e
    n = 0
give()
works_again(n)
""",
        url,
    )


# ---- address space ----


def test_no_address_space(url):
    program(
        """
with open("/proc/self/statm") as f: size = int(f.read().split()[0]) * 4096
limit(resource.RLIMIT_AS, size + (64 << 20))
A.resize(1 << 30)
expect(lambda: A[:], "do not fit into the address space", error=MemoryError)
expect(lambda: np.asarray(A), "do not fit into the address space", error=MemoryError)
part = A[1 << 29 : (1 << 29) + 5]
assert not part.any()
del part
is_as_before()
# what takes the rest, byte by byte
blocks = []
for size in 1 << 20, 4096, 512:
    try:
        while True: blocks.append(bytearray(size))
    except MemoryError: pass
try:
    for blk in range(6):
        assert A[blk * BLK] == FIRST[blk * BLK]
        pending()
except (MemoryError, BlockLoadError): pass
blocks.clear()
limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
works_again()
""",
        url,
    )


# ---- mappings ----


def test_no_mappings(url):
    """The program itself uses up the vm.max_map_count mappings that a process may have."""
    program(
        """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
most = int(open("/proc/sys/vm/max_map_count").read())
filler = mmap.mmap(-1, most * 2 * 4096, prot=0, flags=mmap.MAP_PRIVATE)
at = np.frombuffer(filler, "u1").ctypes.data
ram_reclaim()
n = 0
while libc.mprotect(at + n * 8192, 4096, mmap.PROT_READ) == 0:
    n += 1
assert ctypes.get_errno() == 12 and n > 1000, n
def use():
    a = A[:]
    for blk in 1, 3, 5:     # pages that are not beside each other
        value = a[blk * BLK]
        pending()
        assert value == FIRST[blk * BLK]
        a[blk * BLK + 7] = 5
        pending()
    root["n"] = 1
    transaction.commit()
    return True
try:
    done = use()
    FIRST[7 + BLK :: 2 * BLK] = 5
except (MemoryError, BigFileError, OSError) as e:
    done = False
    # one of Python or NumPy, of what they allocate themselves, has other words, or none
    ours = isinstance(e, BigFileError) or not isinstance(e, MemoryError)
    said = "mapping" in str(e) or "address space" in str(e) or "Cannot allocate" in str(e)
    assert said or not ours, repr(e)
transaction.abort()
libc.mprotect(at, most * 2 * 4096, 0)
works_again(int(done))
""",
        url,
    )


# ---- page memory ----

TOO_MANY = """
def change_all():
    for i in range(0, len(A), 1 << 20): A[i : i + (1 << 20)] = 1
    pending()
    root["n"] = 1
for _ in range(3):
    A.resize(SIZE)
    e = expect(change_all, "commit in smaller steps", error=PageMemoryError)
    assert "uncommitted changes are in memory" in str(e), e
    expect(transaction.commit, "smaller steps", error=DoomedError)
    is_as_before()
works_again()
"""


def test_no_page_memory(url):
    program(
        TOO_MANY.replace("SIZE", "40 << 20"),
        url,
        "ZBlk1",
        WENDELIN_CORE_RAM="16M",
        WENDELIN_CORE_SPOOL="0",
    )


def test_no_page_memory_in_a_cgroup(tmp_path):
    """WENDELIN_CORE_RAM is not set. The pager keeps to the cgroup's limit: no process is killed."""
    code = SETUP + TOO_MANY.replace("SIZE", "400 << 20") + END
    try:
        with memory_cgroup(256 * MIB) as procs:
            enter = f"import os; open({str(procs)!r}, 'w').write(str(os.getpid()))\n"
            done = subprocess.run(
                [sys.executable, "-P", "-c", enter + code, f"{tmp_path}/test.fs", "ZBlk0"],
                env={k: v for k, v in os.environ.items() if k != "WENDELIN_CORE_RAM"}
                | {"WENDELIN_CORE_SPOOL": "0", "PYTHONPATH": str(TESTS)},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
    except NoCgroup as e:
        pytest.skip(str(e))


def test_disk_of_the_spool_full(url, disk):
    """Changes are larger than memory, and than the room for those that do not fit."""
    program(
        """
def too_much():
    for i in range(0, len(A), 1 << 20): A[i : i + (1 << 20)] = 1
    pending()
    root["n"] = 1
for _ in range(3):
    A.resize(40 << 20)
    e = expect(too_much, "No space left on device", error=PageMemoryError)
    assert "bytes are free" in str(e) and "WENDELIN_CORE_SPOOL" in str(e), e
    expect(transaction.commit, "No space left on device", error=DoomedError)
    is_as_before()
works_again()
""",
        url,
        WENDELIN_CORE_RAM="4M",
        WENDELIN_CORE_SPOOL=str(disk),
    )


def test_page_memory_may_not_grow(tmp_path):
    """A limit on the size of files. It holds for page memory, which is a file to the kernel."""
    program(
        """
limit(resource.RLIMIT_FSIZE, 100)
def change(): A[:] = 1
expect(change, "File too large", error=PageMemoryError)
expect(transaction.commit, "File too large", error=DoomedError)
is_as_before()
B = ZBigArray((5,), "u1")
root._p_jar.add(B)
expect(lambda: B[:], "ulimit -f", error=OSError)
limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
del B
works_again()
""",
        f"file://{tmp_path}/test.fs",
    )
