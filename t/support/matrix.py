"""Runs each call of calls.py on views of several kinds, and says which work.

    python t/support matrix [--markdown]

    rows      one call of one library
    columns   what the view is: see COLUMNS
    a cell    "works"; "says": an exception that names A.load(); anything else is a fault: wrong or
              missing bytes, another exception, a crash, a hang

A column runs in a child process, row after row. If the child dies or hangs, a new one goes on after
that row. --markdown prints the table of docs/howto/system-calls.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from support import (
    TESTS,
    calls_libraries,  # noqa: F401  # its calls are among these
)
from support.calls import INTO, OUT, SMALL

N = 1 << 18  # numbers of a view: 2 MiB, which is more than a pipe or a socket takes at once
BLKSIZE = 1 << 16  # [bytes]
DATA = 1 << 20  # where the data of B begins, after a hole [numbers]
ROW_SECONDS = 120

#: name -> what the table says
COLUMNS = {
    "local": "local file, view just taken",
    "committed": "after a commit",
    "followed": "after another client's commit",
    "holes": "part of 32 GiB of holes and data",
    "zeo": "ZEO, after A.load(rows)",
    "into": "read into, after A.load(rows, write=True)",
}


def _values(seed: int) -> Any:
    return np.arange(N, dtype=float) * (seed + 1) % 1000003


# ---- views; each gives (view, what it shows), as a fresh process has it ----


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    from wendelin.lib.zodb import dbclose, dbopen

    root = dbopen(url)
    try:
        yield root
    finally:
        import transaction

        transaction.abort()
        dbclose(root)


def make(url: str) -> None:
    """Make the database that views are taken of."""
    import transaction

    from wendelin.bigarray.array_zodb import ZBigArray

    with _opened(url) as root:
        root["A"] = A = ZBigArray((N,), float, blksize=BLKSIZE)
        root["B"] = B = ZBigArray((32 << 27,), float)
        transaction.commit()
        A[:] = _values(0)
        B[DATA : DATA + N // 2] = _values(0)[N // 2 :]
        transaction.commit()


@contextmanager
def local(url: str) -> Iterator[Any]:
    with _opened(url) as root:
        yield root["A"][:], _values(0)


@contextmanager
def committed(url: str) -> Iterator[Any]:
    import transaction

    with _opened(url) as root:
        a = root["A"][:]
        a[:] = _values(1)
        transaction.commit()
        yield a, _values(1)
        a[:] = _values(0)
        transaction.commit()


@contextmanager
def followed(url: str) -> Iterator[Any]:
    import transaction

    with _opened(url) as root:
        a = root["A"][:]
        a.sum()
        manager = transaction.TransactionManager()
        conn = root._p_jar.db().open(manager)
        for seed in 1, 0:
            conn.root()["A"][:] = _values(seed)
            manager.commit()
            transaction.begin()
            if seed == 1:
                yield a, _values(1)
        conn.close()


@contextmanager
def holes(url: str) -> Iterator[Any]:
    with _opened(url) as root:
        expected = _values(0)
        expected[: N // 2] = 0
        yield root["B"][:][DATA - N // 2 : DATA + N // 2], expected


@contextmanager
def zeo(url: str) -> Iterator[Any]:
    with _opened(url) as root:
        A = root["A"]
        with A.load(slice(None)) as a:
            yield a, _values(0)


@contextmanager
def into(url: str) -> Iterator[Any]:
    with _opened(url) as root, root["A"].load(slice(None), write=True) as a:
        yield a, _values(2)


# ---- one column, in a child ----


def _same(came: Any, expected: Any) -> bool:
    """Say whether what arrived is what the view shows: as it is, sorted, or its beginning."""
    data = came if isinstance(came, bytes) else np.asarray(came).tobytes()
    whole = expected.tobytes()
    some = len(data) == SMALL * 8 and whole.startswith(data)
    return data == whole or some or data == np.sort(expected).tobytes()


def run_column(column: str, url: str, done: list[str]) -> None:
    """Run all calls of a column but those that are done; print a line before and after each."""
    take: Callable[[str], Any] = globals()[column]
    for name, call in (INTO if column == "into" else OUT).items():
        if name in done:
            continue
        print(json.dumps([name, "begin"]), flush=True)
        folder = Path(tempfile.mkdtemp(prefix="matrix-"))
        try:
            with take(url) as (a, expected):
                if column == "into":
                    expected.tofile(folder / "in")
                    call(a, folder)
                    result = "works" if np.array_equal(a, expected) else "WRONG"
                else:
                    result = "works" if _same(call(a, folder), expected) else "WRONG"
        except ImportError as e:
            result = f"missing: {e.name}"
        except BaseException as e:
            says = "A.load" in str(e)
            result = "says" if says else f"FAILS: {type(e).__name__}: {e}"
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps([name, result]), flush=True)


def column_results(column: str, url: str) -> dict[str, str]:
    """Return the cells of a column."""
    results: dict[str, str] = {}
    while True:
        child = subprocess.Popen(
            [sys.executable, "-P", __file__, "--column", column, "--url", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            start_new_session=True,
        )
        json.dump(list(results), child.stdin)
        child.stdin.close()
        last: list[float] = [time.monotonic()]
        hung = threading.Event()

        def watch(child=child, last=last, hung=hung) -> None:
            while child.poll() is None:
                if time.monotonic() - last[0] > ROW_SECONDS:
                    hung.set()
                    child.kill()
                time.sleep(0.2)
            with suppress(ProcessLookupError):  # processes of joblib hold the pipe
                os.killpg(child.pid, signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()
        name = None
        for line in child.stdout:
            last[0] = time.monotonic()
            name, result = json.loads(line)
            results[name] = result
        code = child.wait()
        child.stdout.close()
        if code == 0:
            return results
        if name is None or results[name] != "begin":
            raise RuntimeError(f"column {column}: exit code {code} outside of any row")
        results[name] = "HANGS" if hung.is_set() else f"ENDS the process: {code}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--column", choices=COLUMNS)
    parser.add_argument("--url")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if options.url:
        run_column(options.column, options.url, json.load(sys.stdin))
        return
    table = {c: cells(c) for c in ([options.column] if options.column else COLUMNS)}
    print_table(table, options.markdown)


@contextmanager
def database(column: str, folder: Path) -> Iterator[str]:
    """Make a database for a column; yield its URL."""
    if column != "zeo":
        url = f"{folder}/test.fs"
        make(url)
        yield url
        return
    from support.servers import ZeoServer

    server = ZeoServer(str(folder), 1)
    server.start()
    try:
        url = f"{server.url}?storage=1"
        make(url)
        yield url
    finally:
        server.stop()


def cells(column: str) -> dict[str, str]:
    """Return the cells of a column, which gets a database of its own."""
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    try:
        with database(column, folder) as url:
            return column_results(column, url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def print_table(table: dict[str, dict[str, str]], markdown: bool) -> None:
    rows = {name: None for column in table.values() for name in column}
    if markdown:
        print("| call | " + " | ".join(COLUMNS[c] for c in table) + " |")
        print("| --- |" + " --- |" * len(table))
    for name in rows:
        results = [column.get(name, "") for column in table.values()]
        if markdown:
            print(f"| {name} | " + " | ".join(results) + " |")
        else:
            print(f"{name:60} " + "  ".join(f"{r[:40]:10}" for r in results))


if __name__ == "__main__":
    main()
