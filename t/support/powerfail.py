"""Tries power failures: a workload is recorded, the power fails, and what is left is opened.

    python t/support powerfail [--states N] [--jobs N] [--seed N] [--into PAGE] [--keep FOLDER]
    python t/support powerfail state RECORDING NUMBER FOLDER

powerfail_program.py is the workload, powerfail_record.c records it, powerfail_disk.py says what a
disk may have then, and powerfail_check.py opens that, by ours and by stock FileStorage.

A state is known by its recording and its number. The number says the point, the model, and which
parts are there. One process tries many states, and prints the number of each, so that the state of
a crash or a hang is known. The second form makes the folder of a state again, from a recording that
was kept.
"""

import argparse
import faulthandler
import json
import logging
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from support import SUPPORT, TESTS
from support.powerfail_check import Check
from support.powerfail_disk import MODELS, State, Unrecorded, read_log, sweep, write_state
from support.powerfail_program import Expected
from support.reliability import into
from wendelin.lib.storage import fsindex

SECONDS = 60  # for a state, on a loaded machine
STATES = 2000  # of a recording


@dataclass
class Side:
    """A workload, and the readers that open what is left of it."""

    name: str
    writer: str
    blobs: bool
    readers: tuple[str, ...]
    share: float  # of all states


SIDES = [
    Side("aligned", "aligned", False, ("ours", "ours, read-only", "stock"), 0.3),
    Side("ordered", "ordered", False, ("ours", "stock"), 0.2),
    Side("copied", "copied", False, ("ours",), 0.1),
    Side("aligned, blobs", "aligned", True, ("ours",), 0.1),
    Side("stock", "stock", False, ("stock",), 0.2),
    Side("stock, blobs", "stock", True, ("stock",), 0.1),
]


# ---- recordings ----


def build_recorder(folder: Path) -> Path:
    """Compile the recorder; return the library."""
    library = folder / "powerfail_record.so"
    command = ["cc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, SUPPORT / "powerfail_record.c"], check=True)
    return library


def recorded(library: Path, folder: Path, code: list[str]) -> None:
    """Run Python, and record in folder/log what it does to files in folder/db."""
    (folder / "db").mkdir(parents=True)
    env = {
        "LD_PRELOAD": str(library),
        "POWERFAIL_FOLDER": str(folder / "db"),
        "POWERFAIL_LOG": str(folder / "log"),
        "PYTHONPATH": str(TESTS),
    }
    subprocess.run([sys.executable, "-P", *code], env=os.environ | env, check=True, timeout=300)


def record(library: Path, folder: Path, side: Side, seed: int) -> Path:
    """Record the workload; return its folder."""
    paths = [str(folder / "db"), str(folder / "notes")]
    work = str(SUPPORT / "powerfail_program.py")
    recorded(library, folder, [work, side.writer, "blobs" * side.blobs, *paths, str(seed)])
    return folder


class Recording:
    """What a workload has done, and what must be there after it.

    Raises
    ------
    Unrecorded
        Files have contents that do not follow from the record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "db")
        self.events = read_log(folder / "log")
        notes = folder / "notes"
        self.expected = Expected(**json.loads(notes.read_text())) if notes.exists() else Expected()
        #: number of an event -> what a mark says
        self.marks = {i: json.loads(e.data) for i, e in enumerate(self.events) if e.kind == "mark"}
        self.kinds: dict[str, list[int]] = {}
        for i, event in enumerate(self.events):
            kind = event.kind
            if kind == "write":  # by file: those of Data.fs are many
                kind = "write " + event.name.rpartition("/")[2].rpartition(".")[2]
            self.kinds.setdefault(kind, []).append(i)
        self._verify()

    def _verify(self) -> None:
        points = [i for i, mark in self.marks.items() if "files" in mark]
        for i, disk in sweep(self.folder, self.events, points):
            there, said = self.marks[i]["files"], disk.checksums()
            if there != said:
                names = sorted({name for name, _ in there.items() ^ said.items()})
                raise Unrecorded(f"event {i}: something unknown has changed {', '.join(names)}")

    def before(self, point: int) -> tuple[list[str], list[int]]:
        """Return (tids of commits that had returned, numbers of packs that had begun)."""
        marks = [mark for i, mark in self.marks.items() if i < point]
        returned = [mark["returned"] for mark in marks if "returned" in mark]
        return returned, [mark["pack"] for mark in marks if "pack" in mark]

    def without(self, *kinds: str) -> "Recording":
        """Return the recording as if events of some kinds, such as syncs, had not been done."""
        other = object.__new__(Recording)
        other.__dict__.update(self.__dict__)
        other.events = [
            e if e.kind not in kinds else type(e)("mark", 0, 0, 0, "", "", b"") for e in self.events
        ]
        return other


# ---- states ----


@dataclass
class Failure:
    """A number, and what it means: the power fails while an event is done."""

    number: int
    point: int
    model: str
    rng: random.Random


def failure(recording: Recording, number: int) -> Failure:
    """Return what a number means."""
    rng = random.Random(number)
    model = list(MODELS)[number % len(MODELS)]
    kinds = list(recording.kinds)
    if model.startswith("torn"):
        kinds = [kind for kind in kinds if kind.startswith("write")]
    # rare events, such as renames, are tried as often as frequent ones
    if rng.random() < 0.5:
        events = recording.kinds[rng.choice(kinds)]
    else:
        events = sorted(i for kind in kinds for i in recording.kinds[kind])
    return Failure(number, rng.choice(events), model, rng)


# ---- many ----


def try_states(folder: Path, numbers: range, readers: list[str], without=()) -> Counter:
    """Try states of a recording; return how often (model, reader) had which outcome.

    Each wrong outcome is printed, with the number of its state. Events of the kinds in `without`
    are as if they had not been done. Equal states, of which the same is expected, are opened once;
    the number of different ones is counted under "different".
    """
    recording = Recording(folder).without(*without)
    states = sorted((failure(recording, n) for n in numbers), key=lambda s: s.point)
    found: Counter = Counter()
    known: dict[tuple, tuple[str, str]] = {}
    disks = sweep(recording.folder, recording.events, [s.point for s in states])
    with tempfile.TemporaryDirectory(prefix="powerfail-", dir=memory()) as scratch:
        for s, (point, disk) in zip(states, disks, strict=True):
            files = disk.state(s.model, s.rng, recording.events[point])
            same = fingerprint(files), *map(len, recording.before(point))
            for reader in readers:
                if (same, reader) not in known:
                    known[same, reader] = try_state(recording, files, s, reader, scratch)
                    found[s.model, reader, "different"] += 1
                outcome, what = known[same, reader]
                found[s.model, reader, outcome] += 1
                if outcome != "right":
                    say(state=s.number, model=s.model, reader=reader, outcome=outcome, what=what)
    return found


def fingerprint(files: State) -> tuple:
    """Return what tells states apart."""
    return tuple((name, f and (f.inode, len(f.data), hash(f.data))) for name, f in files.items())


def try_state(recording, files: State, s: Failure, reader: str, scratch: str) -> tuple[str, str]:
    """Open a state with a reader; return the outcome, and what is wrong.

    An index is believed only for the inode for which it was saved. So files get the inode numbers
    of the record.
    """
    print(f"state {s.number}, {reader}", file=sys.stderr)
    signal.alarm(SECONDS)
    place = Path(tempfile.mkdtemp(dir=scratch))
    try:
        inodes = write_state(files, place / "db")
        fsindex.inode_of = lambda fd: inodes.get(ino := os.fstat(fd).st_ino, ino)
        returned, packs = recording.before(s.point)
        views = s.number // len(MODELS) % 16 == 0
        check = Check(place / "db", reader, recording.expected, returned, len(packs), views)
        return check.outcome()
    finally:
        signal.alarm(0)
        shutil.rmtree(place)


def memory() -> str | None:
    """Return a folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def say(**what) -> None:
    print(json.dumps(what), flush=True)


@dataclass
class Tried:
    """What came of states: how many, by (model, reader, outcome), and what was wrong."""

    found: Counter
    wrong: list[dict]

    def write(self, path: Path) -> None:
        found = [[*key, n] for key, n in self.found.items()]
        path.write_text(json.dumps({"found": found, "wrong": self.wrong}, indent=1))

    @classmethod
    def read(cls, path: Path) -> "Tried":
        there = json.loads(path.read_text())
        return cls(Counter({tuple(key): n for *key, n in there["found"]}), there["wrong"])


def try_in_child(folder: Path, numbers: range, readers, without=()) -> Tried:
    """Try states in a process of their own.

    Raises
    ------
    RuntimeError
        The process crashed or hung; the message says at which state.
    """
    args = [folder, numbers.start, numbers.stop, "+".join(readers), "+".join(without)]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.run(
            [sys.executable, "-P", __file__, "try", *map(str, args)],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        if child.returncode != 0:
            log.seek(0)
            end = "".join(log.readlines()[-60:])
            raise RuntimeError(f"{folder}, {numbers}: exit code {child.returncode}\n{end}")
    *wrong, last = [json.loads(line) for line in child.stdout.splitlines()]
    return Tried(Counter({tuple(key): n for *key, n in last["found"]}), wrong)


def lines_of(tried: Tried) -> Iterator[str]:
    """Yield what came of states, a line a model and reader."""
    for (model, reader, outcome), n in sorted(tried.found.items()):
        yield f"{model}, opened by {reader}: {n} {outcome}"


# ---- all of them, and the table ----


def run(states: int, jobs: int, seed: int, folder: Path) -> dict[str, Tried]:
    """Try so many states of all sides; return what came of them, by side.

    The results of recordings that are in the folder, and were tried, are taken from there. So a
    long run can be stopped, and later goes on.
    """
    library = build_recorder(folder)
    tasks = []
    for side in SIDES:
        n = round(states * side.share)
        for i, start in enumerate(range(0, n, STATES)):
            numbers = range(seed + start, seed + min(start + STATES, n))
            tasks.append((side, folder / f"{side.name}-{seed + i}", numbers, seed + i))
    tried = {side.name: Tried(Counter(), []) for side in SIDES}

    def do(task) -> tuple[str, Tried]:
        side, at, numbers, seed = task
        done = at / "tried.json"
        if done.exists():
            return side.name, Tried.read(done)
        shutil.rmtree(at, ignore_errors=True)
        found = try_in_child(record(library, at, side, seed), numbers, side.readers)
        found.write(done)
        return side.name, found

    with ThreadPoolExecutor(jobs) as pool:
        for name, found in tqdm(pool.map(do, tasks), "recordings", len(tasks), unit="recording"):
            tried[name].found.update(found.found)
            tried[name].wrong.extend(found.wrong)
    return tried


def table(tried: dict[str, Tried]) -> Iterator[str]:
    """Yield the lines of a table: models, and what came of each side with each reader."""
    columns = [(side, reader) for side in SIDES for reader in side.readers]
    yield "| written by | " + " | ".join(side.name for side, _ in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    yield "| **opened by** | " + " | ".join(reader for _, reader in columns) + " |"
    for model in MODELS:
        cells = []
        for side, reader in columns:
            counts = tried[side.name].found
            found = {o: n for (m, r, o), n in counts.items() if (m, r) == (model, reader)}
            found.pop("different", None)
            bad = [f"{n:,} {o}" for o, n in sorted(found.items()) if o != "right"]
            cells.append(f"{sum(found.values()):,}: " + (", ".join(bad) or "right"))
        yield f"| {model} | " + " | ".join(cells) + " |"


def opened(tried: dict[str, Tried]) -> int:
    return sum(n for t in tried.values() for key, n in t.found.items() if key[-1] == "different")


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--into", type=Path, help="put the table into this page of the docs")
    parser.add_argument("--keep", type=Path, help="where recordings are kept, and taken from")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="powerfail-", dir=memory()) as name:
        if args.keep:
            args.keep.mkdir(exist_ok=True)
        tried = run(args.states, args.jobs, args.seed, args.keep or Path(name))
    counts = Counter()
    for side in SIDES:
        for (_, reader, outcome), n in tried[side.name].found.items():
            if reader == side.readers[0]:
                counts[outcome == "different"] += n
    what = (
        f"Python {platform.python_version()}, ZODB {version('ZODB')}; {counts[False]:,} states, "
        f"{counts[True]:,} of them different, and {opened(tried):,} openings."
    )
    lines = [what, "", *table(tried)]
    print(*lines, sep="\n")
    if args.into:
        into(args.into, "power", lines)


def tries(folder: str, start: str, stop: str, readers: str, without: str) -> None:
    """Be the child of try_in_child()."""
    logging.disable()
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # then the alarm ends the process
    numbers = range(int(start), int(stop))
    found = try_states(Path(folder), numbers, readers.split("+"), without.split("+"))
    say(found=[[*key, n] for key, n in found.items()])


def make_state(recording: str, number: str, folder: str) -> None:
    """Make the folder of a state."""
    of = Recording(Path(recording))
    s = failure(of, int(number))
    for point, disk in sweep(of.folder, of.events, [s.point]):
        event = of.events[point]
        write_state(disk.state(s.model, s.rng, event), Path(folder))
        returned, packs = of.before(point)
        print(f"{s.model}, at event {point} of {len(of.events)}: {event.kind} {event.name}")
        print(f"{len(returned)} commits had returned, {len(packs)} packs had begun")


if __name__ == "__main__":
    if sys.argv[1:2] == ["try"]:
        tries(*sys.argv[2:])
    elif sys.argv[1:2] == ["state"]:
        make_state(*sys.argv[2:])
    else:
        main()
