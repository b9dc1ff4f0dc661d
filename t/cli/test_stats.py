"""wendelin stats PID: a process tells its counters if it was asked to, also after a fork."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest
from support import TESTS

from wendelin.bigfile.statserver import _name

PROGRAM = """
    import os, sys
    import numpy as np
    from wendelin.bigarray import BigArray
    from support.ramfile import RAMFile
    A = BigArray((4096 * 3,), "u1", RAMFile().fileh_open())
    A[:] = 1
    child = os.fork()
    if not child:
        BigArray((4096,), "u1", B := RAMFile().fileh_open())[:] = 1
        print(flush=True)
        sys.stdin.read()
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
    os.waitpid(child, 0)
"""


@pytest.fixture
def started():
    """Return a function that starts a process with a child, and returns their pids."""
    made = []

    def start(**env):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(PROGRAM)],
            env=os.environ | {"PYTHONPATH": str(TESTS)} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        lines = sorted([process.stdout.readline().strip(), process.stdout.readline().strip()])
        return process.pid, int(lines[1])

    yield start
    for process in made:
        process.communicate("")
        assert process.returncode == 0


def test_a_process_and_its_child(started, call):
    parent, child = started(WENDELIN_CORE_STATS="1")
    found = call("stats", "--json", parent).json
    assert found["pid"] == parent
    assert found["dirty"] >= 4096 * 3
    assert sum(handle["dirty"] for handle in found["handles"]) == 4096 * 3
    found = call("stats", "--json", child).json
    assert 4096 in {handle["dirty"] for handle in found["handles"]}
    text = call("stats", parent).stdout
    assert "spare, limit" in text
    assert "faults" in text
    assert "RAMFile" in text


def test_a_process_that_does_not_tell(started, call):
    pid, _ = started()
    assert (
        f"process {pid} does not tell its counters: it must be" in call("stats", pid, code=1).stderr
    )
    assert "there is no process" in call("stats", 1 << 30, code=1).stderr
    assert "'x' is not a valid integer" in call("stats", "x", code=2).stderr


def test_another_process_is_not_believed(call):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(_name(1))
        sock.listen()
        error = call("stats", 1, code=1).stderr
    assert f"process {os.getpid()} of user {os.geteuid()} answers for process 1" in error
