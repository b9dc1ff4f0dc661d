"""A view of more than the memory: each byte of its file is read once."""

import platform

import pytest
from support.cgroup import NoCgroup, memory_cgroup
from support.child import check_child
from support.pagecache import skip_if_unknown

PASS = """
import resource, sys
from pathlib import Path
Path(sys.argv[1]).write_text("0")       # before anything asks how much memory there is
import numpy as np
from wendelin.bigarray import BigArray
from wendelin.bigfile.virtmem.backend import BigFile

MIB = 1 << 20
STEP = 2 * MIB + 4096                   # as blocks lie in a Data.fs
f = open(sys.argv[2], "rb")

class Mapped(BigFile):
    def mapblk(self, blk): return f.fileno(), blk * STEP

a = BigArray((768 * MIB,), "u1", Mapped(2 * MIB).fileh_open())[:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
assert not a.view("i8").sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)
"""


@pytest.mark.slow
def test_a_pass_waits_for_few_pages(tmp_path):
    """What the kernel has read ahead is not given away for what was read before."""
    if tuple(map(int, platform.release().split(".")[:2])) < (6, 3):
        pytest.skip("POSIX_FADV_NOREUSE does nothing before Linux 6.3")
    skip_if_unknown(tmp_path)
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(400 * ((2 << 20) + 4096))
    try:
        with memory_cgroup(128 << 20) as procs:
            waited = int(check_child(PASS, str(procs), str(path)))
    except NoCgroup as e:
        pytest.skip(str(e))
    assert waited < 10, waited
