"""demo-cluster: several processes on one database, which each of them always sees consistent.

    demo-cluster [--seconds=<N>] <dburi>

One process ingests: each transaction appends to a signal, and stores its length and its sum. Three
compute: in each transaction, the signal has the stored length and sum, however far the ingest is.
Two append to one log: if both do so at the same time, one of them has a conflict and tries again.
So no entry is lost, and none is there twice. Each process has a Connection and a client of its own,
and could as well run on another machine, by the same functions.

<dburi> is the URL of a server: zeo://HOST:PORT, postgres://USER@HOST:PORT/DATABASE. Only one
process can write to a file.
"""

import argparse
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import transaction
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError

from wendelin.demo.progress import progress
from wendelin.lib.zodb import dbclose, dbopen

NAME = "cluster"  # in the root object
STEP = 50_000  # elements of one transaction of the ingest
COMPUTERS = 3
APPENDERS = 2
ENTRY = np.dtype([("who", "i4"), ("seq", "i4")])

Report = Callable[[str, int], None]


class Inconsistent(Exception):  # noqa: N818  # it is what was seen
    """A process saw an inconsistent state."""


@contextmanager
def opened(url: str) -> Any:
    """Yield the root of a database."""
    root = dbopen(url)
    try:
        yield root
    finally:
        transaction.abort()
        dbclose(root)


def create(url: str) -> None:
    """Make the arrays; replace old ones."""
    from wendelin.bigarray.array_zodb import ZBigArray

    with opened(url) as root:
        signal = ZBigArray((0,), np.int64)
        log = ZBigArray((0,), ENTRY)
        root[NAME] = PersistentMapping(signal=signal, length=0, total=0, log=log)
        transaction.commit()


def ingest(url: str, seconds: float, report: Report) -> None:
    """Append to the signal, and store its length and sum, for some seconds."""
    rng = np.random.default_rng()
    with opened(url) as root:
        state = root[NAME]
        until = time.time() + seconds  # from now on, as processes may start slowly
        while time.time() < until:
            values = rng.integers(-1000, 1000, STEP)
            state["signal"].append(values)
            state["length"] += len(values)
            state["total"] += int(values.sum())
            transaction.commit()
            report("ingested", len(values))


def compute(url: str, seconds: float, report: Report) -> None:
    """Compare the signal with its stored length and sum, for some seconds.

    Raises
    ------
    Inconsistent
        They are not of one state.
    """
    with opened(url) as root:
        until = time.time() + seconds
        while time.time() < until:
            transaction.begin()
            state = root[NAME]
            signal = state["signal"][:]
            seen = len(signal), int(np.sum(signal))
            if seen != (state["length"], state["total"]):
                noted = (state["length"], state["total"])
                raise Inconsistent(
                    f"length and sum of the signal are {seen}, but {noted} were stored"
                )
            report("computed", 1)


def append(url: str, who: int, seconds: float, report: Report) -> None:
    """Append numbered entries to the log, for some seconds; try again after conflicts."""
    with opened(url) as root:
        seq = 0
        until = time.time() + seconds
        while time.time() < until:
            transaction.begin()
            root[NAME]["log"].append(np.array([(who, seq)], ENTRY))
            try:
                transaction.commit()
            except ConflictError:
                transaction.abort()
                report("conflicts", 1)
                continue
            seq += 1
            report("appended", 1)
        report(f"last of {who}", seq)


def check(url: str, counts: dict[str, int]) -> None:
    """Compare the database with what was reported.

    Raises
    ------
    Inconsistent
        An entry is lost, or is there twice.
    """
    with opened(url) as root:
        state = root[NAME]
        if len(state["signal"]) != counts.get("ingested", 0):
            raise Inconsistent(f"{counts} were reported, but {len(state['signal'])} are there")
        log = state["log"][:]
        for who in range(APPENDERS):
            entries = log["seq"][log["who"] == who]
            if not np.array_equal(entries, np.arange(counts[f"last of {who}"])):
                raise Inconsistent(f"entries of appender {who} are {entries}")


def _work(function: Callable[..., None], args: tuple[Any, ...], queue: Any) -> None:
    """Run in a process of its own."""
    try:
        function(*args, lambda what, n: queue.put((what, n)))
    except Exception as e:  # drivers of databases have their own
        queue.put(("error", f"{function.__name__}: {type(e).__name__}: {e}"))
    finally:
        queue.put(("ended", 1))


def run(url: str, seconds: float) -> dict[str, int]:
    """Let all processes work for some seconds; return their counts.

    Raises
    ------
    Inconsistent
        A process failed, or saw an inconsistent state.
    """
    create(url)
    works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(ingest, (url, seconds))]
    works += [(compute, (url, seconds))] * COMPUTERS
    works += [(append, (url, who, seconds)) for who in range(APPENDERS)]
    context = multiprocessing.get_context("spawn")  # a Connection does not survive a fork
    queue = context.Queue()
    processes = [context.Process(target=_work, args=(*work, queue), daemon=True) for work in works]
    for process in processes:
        process.start()
    counts: dict[str, int] = {}
    errors = []
    try:
        with progress(total=len(processes), desc="processes that ended", unit="") as bar:
            while counts.get("ended", 0) < len(processes):
                what, n = queue.get(timeout=seconds + 120)
                if what == "error":
                    errors.append(n)
                    continue
                counts[what] = counts.get(what, 0) + n
                bar.update(n if what == "ended" else 0)
                bar.set_postfix({k: v for k, v in counts.items() if " " not in k and k != "ended"})
        for process in processes:
            process.join()
    finally:
        for process in processes:
            with suppress(AttributeError):
                process.kill()
    if errors:
        raise Inconsistent("; ".join(errors))
    check(url, counts)
    return counts


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not within 0 and 86400")
    return seconds


def main(args: Sequence[str] | None = None) -> int:
    """Run the program; return its exit status."""
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="demo-cluster",
        description=summary.partition(": ")[2],
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=_seconds, default=10, help="default: 10")
    parser.add_argument("dburi", help="zeo://HOST:PORT, postgres://USER@HOST:PORT/DATABASE, ...")
    options = parser.parse_args(args)
    if not re.match(r"(?!file:|memory:|demo:|zconfig:)[a-z]+://", options.dburi):
        print(f"demo-cluster: {options.dburi!r} is not a server: zeo://HOST:PORT", file=sys.stderr)
        return 2
    try:
        counts = run(options.dburi, options.seconds)
    except Exception as e:  # drivers of databases have their own
        print(f"demo-cluster: {str(e).strip() or type(e).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(
        f"ingested {counts.get('ingested', 0)} elements while {counts.get('computed', 0)} "
        f"computations saw consistent states;\nappended {counts.get('appended', 0)} entries "
        f"with {counts.get('conflicts', 0)} conflicts: nothing lost, nothing twice"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
