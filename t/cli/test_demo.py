"""demo-zbigarray: the installed program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transaction

from wendelin.demo.demo_zbigarray import main
from wendelin.demo.progress import progress
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [pytest.mark.once, pytest.mark.slow]
PROGRAM = str(Path(sys.executable).parent / "demo-zbigarray")


def demo(*args, cwd, **env):
    return subprocess.run(
        [PROGRAM, *args], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
    )


def expected(nbytes):
    """Return (mean, sum) of the signal, in plain NumPy, piece by piece."""
    n = nbytes // 8
    total = 0.0
    for start in range(0, n, 1 << 20):
        t = np.arange(start, min(start + (1 << 20), n), dtype=float)
        total += np.sum(np.sin(0.2 * t) * 15)
    return total / n, total


def test_progress_without_a_terminal(capsys):
    with progress(total=40, desc="gen", mininterval=0, delay=0) as bar:
        for _ in range(4):
            bar.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("gen: 0 of 40")
    assert lines[-1].startswith("gen: 40 of 40")
    with progress(total=40, desc="gen") as bar:
        bar.update(40)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("megabytes", [1, 40, 200])
def test_gen_and_read(tmp_path, megabytes):
    done = demo(f"--worksize={megabytes}", "gen", "x.fs", cwd=tmp_path, WENDELIN_CORE_RAM="64M")
    assert done.returncode == 0, done.stderr
    # there is no terminal: a line every few seconds, and no bar
    assert all(re.match(rf"gen: .* of {megabytes}", line) for line in done.stderr.splitlines())
    assert "\r" not in done.stderr
    done = demo("read", "x.fs", cwd=tmp_path, WENDELIN_CORE_RAM="64M")
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"^(\w+):\t(.*)$", done.stdout, re.M))
    mean, total = expected(megabytes << 20)
    # the sum is small next to its terms: compare on their scale
    scale = 15 * (megabytes << 17)
    assert float(found["sum"]) == pytest.approx(total, rel=1e-9, abs=1e-9 * scale)
    assert float(found["mean"]) == pytest.approx(mean, rel=1e-9, abs=1e-9 * 15)
    assert set(found) == {"mean", "sum", "time", "speed", "VIRT", "RSS"}


def test_gen_again_replaces(tmp_path):
    for megabytes in (3, 2):
        assert demo(f"--worksize={megabytes}", "gen", "x.fs", cwd=tmp_path).returncode == 0
    assert "over 2 MB" in demo("read", "x.fs", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "arguments are required"),
        (["gen"], 2, "<dburi>"),
        (["make", "x.fs"], 2, "'make'"),
        (["--worksize=0", "gen", "x.fs"], 2, "'0' is not a size"),
        (["--worksize=-5", "gen", "x.fs"], 2, "'-5' is not a size"),
        (["--worksize=1e3", "gen", "x.fs"], 2, "a number is MB"),
        (["read", "x.fs"], 2, "there is no database 'x.fs'"),
        (["read", "file://x.fs"], 2, "there is no database 'x.fs'"),
        (["read", "file://x.fs?quota=1gb"], 2, "there is no database 'x.fs'"),
        (["read", "demo:(file://x.fs)/(memory://)"], 2, "there is no database 'x.fs'"),
        (["read", "memory://"], 1, "no array 'signalv'"),
        (["gen", "foo://x"], 1, "demo, file, memory"),
        (["gen", "nowhere/x.fs"], 1, "No such file"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(tmp_path, args, code, message, monkeypatch, capsys):
    """By main(), in this process; other tests here run the program."""
    monkeypatch.chdir(tmp_path)
    try:
        returned = main(args)
    except SystemExit as e:  # of argparse
        returned = e.code
    stderr = capsys.readouterr().err
    assert returned == code
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert stderr.startswith("usage:")
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_not_a_database(tmp_path):
    (tmp_path / "x.fs").write_text("this is none, and long enough to be looked at")
    done = demo("read", "x.fs", cwd=tmp_path)
    assert done.returncode == 1
    assert "'x.fs' cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk(tmp_path):
    """A file system with room for three transactions, and for part of the fourth."""
    script = (
        "mount -t tmpfs -o size=110m none . && cd $PWD &&"
        f"{PROGRAM} --worksize=200 gen x.fs; echo exit code $?; {PROGRAM} read x.fs"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "exit code 1" in done.stdout, done.stderr
    assert "No space left on device: earlier commits are saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert "over 96 MB" in done.stdout, done.stderr


def test_a_transaction_larger_than_memory(tmp_path):
    done = demo(
        "--worksize=64",
        "gen",
        "x.fs",
        cwd=tmp_path,
        WENDELIN_CORE_RAM="8M",
        WENDELIN_CORE_SPOOL="0",
    )
    assert done.returncode == 1
    assert "commit in smaller steps" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "usage:" in done.stderr


def test_a_wrong_limit_of_page_memory(tmp_path):
    done = demo("gen", "x.fs", cwd=tmp_path, WENDELIN_CORE_RAM="lots")
    assert done.returncode == 2
    assert "WENDELIN_CORE_RAM: 'lots'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
def root(tmp_path):
    """Return the root of x.fs, open in this process."""
    root = dbopen(tmp_path / "x.fs")
    yield root
    transaction.abort()
    dbclose(root)


@pytest.mark.parametrize("command", ["gen", "read"])
def test_a_database_in_use(tmp_path, root, command):
    done = demo("--worksize=1", command, "x.fs", cwd=tmp_path)
    assert done.returncode == 1
    assert "'x.fs' cannot be opened" in done.stderr.splitlines()[-1]
    assert "lock" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_read_only_database(tmp_path, root):
    done = demo("--worksize=1", "gen", "file://x.fs?read_only=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "read-only" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_something_else_by_the_name(tmp_path, root):
    root["signalv"] = [1, 2, 3]
    transaction.commit()
    done = demo("read", "file://x.fs?read_only=1", cwd=tmp_path)
    assert done.returncode == 1
    assert "'signalv' in the database is a list" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
