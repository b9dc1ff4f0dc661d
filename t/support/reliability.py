"""Runs every fault that is tried, and puts the tables into docs/reliability.md.

    python t/support reliability [--kills N] [--damaged N] [--power N] [--tries N] [--into PAGE]

Faults of wendelin.core are run as tests. Some faults are tried with numpy.memmap, h5py and zarr
as well (faults.py), with those of them that are installed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from tqdm import tqdm

from support import ROOT, TESTS, faults
from support.pagetables import put_between
from support.smalldisk import NoDisk, small_disk

MIB = 1 << 20


@dataclass
class Row:
    """A fault of ours, and the tests that try it."""

    fault: str
    how: str
    tries: str  # in a run of CI; {n} are the tests
    happens: str
    kind: str  # of storage, for WENDELIN_CORE_TEST_DB
    tests: str  # as pytest wants them


ROWS = [
    Row(
        "damaged file, damaged records",
        "a seed flips bits, cuts, inserts, swaps and overwrites pieces of Data.fs, or stores "
        "records of wrong contents; then it is opened, read, changed, committed",
        "1,000 databases",
        "an exception, or what was there, or what plain ZODB reads there, too; if the end of the "
        "file is damaged, maybe what was there before the last transaction",
        "fs",
        "zodb/test_corruption.py::test_damaged_databases",
    ),
    Row(
        "a bit flipped in each of 1,000 blocks",
        "in a file, and behind a ZEO server",
        "2,000 blocks",
        "`wendelin verify` finds all, and names the transactions",
        "fs",
        "zodb/test_checksum_tools.py -k 1000",
    ),
    Row(
        "a block longer than blksize; foreign, missing, cut, unordered records in the block table, "
        "and among chunks; chunks that overlap; wrong shape, dtype, block size",
        "records are stored",
        "{n} cases, in each format, with a file and over ZEO",
        "`BlockLoadError` with file, block, tid, cause; of arrays, `StateLoadError` with the "
        "cause. All else is read, and can be changed. After a repair, all is read",
        "fs",
        "zodb/test_corruption.py --deselect zodb/test_corruption.py::test_damaged_databases",
    ),
    Row(
        "`kill -9`, with a file",
        "at a random moment of opening, changing, committing; mapped and copied; also during packs",
        "140 rounds",
        "exactly the transactions that had returned, and at most one more",
        "fs",
        "zodb/test_crash.py",
    ),
    Row(
        "`kill -9` of a ZEO client, or server",
        "the same; the client goes on with the new server",
        "70 rounds",
        "the same",
        "zeo",
        "zodb/test_crash.py",
    ),
    Row(
        "power failure, with a file",
        "what a program does to the disk is recorded; a disk is made that has all that was synced, "
        "and of the rest a part, by ten models; also during packs, and with blobs",
        "1,000 disks",
        "[exactly the transactions that had returned](#simulated), and at most one more, which "
        "[may be there in part](#when-the-power-fails)",
        "fs",
        "storage/test_powerfail.py",
    ),
    Row(
        "disk full",
        "a small tmpfs, or a limit of the size of files: in a commit, a savepoint, a pack; of a "
        "ZEO server's disk",
        "{n} cases",
        "`OSError` that says it; the transaction is aborted; the database is as before",
        "fs",
        "virtmem/test_exhaust.py -k disk_full+or+too_large",
    ),
    Row(
        "no file descriptors",
        "all taken by the program",
        "{n} cases",
        "`OSError`, or `BlockLoadError` with it; goes on when there are some again",
        "fs",
        "virtmem/test_exhaust.py -k descriptors",
    ),
    Row(
        "no address space",
        "RLIMIT_AS",
        "{n} cases",
        "`MemoryError` that says to work in smaller parts",
        "fs",
        "virtmem/test_exhaust.py -k address",
    ),
    Row(
        "no mappings",
        "the program uses all of vm.max_map_count",
        "{n} cases",
        "ours are given back; if that is not enough, an exception that says it",
        "fs",
        "virtmem/test_exhaust.py -k mappings",
    ),
    Row(
        "changes larger than memory, and than the disk for them",
        "`WENDELIN_CORE_SPOOL` is a small tmpfs; mapped and copied",
        "{n} cases",
        "`PageMemoryError` that names the folder, and how much is free there; the transaction is "
        "aborted; the database is as before",
        "fs",
        "virtmem/test_exhaust.py -k disk_of_the_spool",
    ),
    Row(
        "no page memory",
        "WENDELIN_CORE_RAM without a spool, a memory cgroup without it, RLIMIT_FSIZE",
        "{n} cases",
        "`PageMemoryError` that says to commit in smaller steps; the commit is refused",
        "fs",
        "virtmem/test_exhaust.py -k page_memory",
    ),
    Row(
        "a block larger than memory",
        "blocks of 1 TiB, in a memory cgroup: read and written, of a hole, a file, a loader",
        "{n} case",
        "`PageMemoryError`, or `BlockLoadError` with it as its cause, with both sizes",
        "fs",
        "virtmem/test_ram.py -k larger_than_memory",
    ),
]

#: fault -> what it is
PEER_ROWS = {
    "flipped": "one bit flipped that is not of a number",
    "killed": "`kill -9` while generations are written",
    "full": "disk full in the middle of a write, then read",
    "cut": "the file is cut while a reader has it open",
}


# ---- ours ----


def run_tests(row: Row, env: dict[str, str], folder: Path) -> tuple[int, int, int]:
    """Run the tests of a row; return (passed, failed, skipped)."""
    out = folder / "junit.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-q", f"--junitxml={out}", f"--rootdir={ROOT}"]
    options = [f"{TESTS}/{o}" if ".py" in o else o.replace("+", " ") for o in row.tests.split()]
    subprocess.run(
        [*command, *options],
        env=os.environ | env | {"WENDELIN_CORE_TEST_DB": row.kind},
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    (suite,) = ElementTree.parse(out).getroot().iter("testsuite")
    n, bad, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "skipped"))
    bad += int(suite.get("errors", 0))
    return n - bad - skipped, bad, skipped


def our_table(env: dict[str, str], folder: Path) -> Iterator[str]:
    """Yield the lines of the table of our tests."""
    yield "| fault | how | tried in a run of CI | what happens | in this run |"
    yield "| --- | --- | --- | --- | --- |"
    for row in tqdm(ROWS, "ours", unit="fault"):
        passed, failed, skipped = run_tests(row, env, folder)
        tries = row.tries.format(n=passed + failed)
        came = f"{failed} of {passed + failed} FAILED" if failed else "so it was"
        if passed + failed == 0:
            came = f"skipped: {skipped}"
        yield f"| {row.fault} | {row.how} | {tries} | {row.happens} | {came} |"


# ---- peers ----


def sides() -> list[str]:
    """Return the names of installed libraries."""
    modules = {"wendelin.core": "wendelin", "numpy.memmap": "numpy"}
    return [name for name in faults.SIDES if find_spec(modules.get(name, name))]


def outcomes(fault: str, side: str, tries: int, folder: Path) -> dict[str, int]:
    """Return {outcome of a fault: how often}."""
    folder.mkdir()
    with ExitStack() as stack:
        if fault == "full":
            disk = stack.enter_context(small_disk(folder / "disk", 8 * MIB))
            work = disk / "work"
        else:
            work = folder / "work"
        work.mkdir()
        done = subprocess.run(
            [sys.executable, "-P", faults.__file__, fault, side, str(work), str(tries)],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=30 * tries + 60,
        )
        found: dict[str, int] = json.loads(done.stdout)
        return found


def peer_table(tries: int, folder: Path) -> Iterator[str]:
    """Yield the lines of the table of peers."""
    yield f"| fault, {tries} times each | {' | '.join(sides())} |"
    yield f"| --- |{' --- |' * len(sides())}"
    for fault, what in tqdm(PEER_ROWS.items(), "peers", unit="fault"):
        cells = []
        for side in sides():
            try:
                found = outcomes(fault, side, tries, folder / f"{fault}-{side}")
            except NoDisk as e:
                cells.append(f"skipped: {e}")
                continue
            words = sorted(found.items(), key=lambda item: -item[1])
            cells.append("; ".join(f"{n} {word}" for word, n in words))
        yield f"| {what} | {' | '.join(cells)} |"


# ---- the page ----


def into(page: Path, name: str, lines: list[str]) -> None:
    """Put the lines of a table into its place in a page."""
    put_between(page, f"<!-- table: {name} -->", f"<!-- end: {name} -->", "\n".join(lines))


def main() -> None:
    """Run all, print the tables, and put them into the page of --into."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="rounds of kill -9, each kind")
    parser.add_argument("--damaged", type=int, default=1000, help="databases to damage")
    parser.add_argument("--power", type=int, default=1000, help="disks after a power failure")
    parser.add_argument("--tries", type=int, default=50, help="of a fault, each of the peers")
    parser.add_argument("--into", type=Path, help="put the tables into this page of the docs")
    args = parser.parse_args()
    env = {
        "WENDELIN_CORE_TEST_KILLS": str(args.kills),
        "WENDELIN_CORE_TEST_DAMAGED": str(args.damaged),
        "WENDELIN_CORE_TEST_POWER": str(args.power),
    }
    names = {name: version(name) for name in ("numpy", "h5py", "zarr") if find_spec(name)}
    names = {"Python": platform.python_version()} | names
    what = ", ".join(f"{name} {v}" for name, v in names.items())
    what = f"{what}, Linux {platform.release()} {platform.machine()}"
    with tempfile.TemporaryDirectory(prefix="wendelin-reliability-") as name:
        folder = Path(name)
        tables = {"ours": our_table(env, folder), "peers": peer_table(args.tries, folder)}
        for name, table in tables.items():
            lines = [f"{what}.", "", *table]
            print("", *lines, sep="\n", flush=True)
            if args.into:
                into(args.into, name, lines)


if __name__ == "__main__":
    main()
