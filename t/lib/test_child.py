"""Of the tests' own tools: a child process that does not end in time, and what it has started."""

import fcntl
import subprocess
import time

import pytest
from support.child import run_child

FORKED = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)    # as long as one of both has it open
os.fork()
os.write(file.fileno(), b"x")
time.sleep(60)                      # with the pipes of the output
"""


def test_nothing_outlives_a_child_that_does_not_end(tmp_path):
    path = tmp_path / "locked"
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(FORKED, str(path), timeout=10)
    assert path.read_text() == "xx"
    with open(path) as file:
        for _ in range(100):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    pytest.fail("the child of the child lives on")
