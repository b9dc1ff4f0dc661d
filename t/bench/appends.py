"""File size after a stream of appends, in each format of ours, beside zarr, h5py and icechunk.

    python t/bench/appends.py [--steps 8000,65536] [--size 4] [--folder DIR]
                              [--into docs/performance.md]

We and icechunk commit each append; h5py flushes it, and zarr writes it through. Chunks of the
others are as long as one append, which is best for them, and are not compressed. It prints the size
of the files by what was appended, the median time of an append, and the bytes of file a byte, at
most, of the second half. icechunk is left out if it is not installed. docs/draw_charts.py draws
curves from the table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tables

Append = Callable[[np.ndarray], None]


def ours(path: Path, fmt: str) -> Append:
    import transaction

    from wendelin.bigarray.array_zodb import ZBigArray
    from wendelin.lib.zodb import dbopen

    root = dbopen(str(path / "1.fs"))
    root["A"] = array = ZBigArray((0,), "u1", zblk_fmt=fmt)
    transaction.commit()

    def append(values: np.ndarray) -> None:
        array.append(values)
        transaction.commit()

    return append


def zarr(path: Path, step: int) -> Append:
    import zarr

    array = zarr.create_array(
        path / "1.zarr", shape=(0,), chunks=(step,), dtype="u1", compressors=None
    )
    return array.append


def h5py(path: Path, step: int) -> Append:
    import h5py

    file = h5py.File(path / "1.h5", "w", libver="latest")
    dataset = file.create_dataset("A", (0,), "u1", chunks=(step,), maxshape=(None,))

    def append(values: np.ndarray) -> None:
        n = len(dataset)
        dataset.resize(n + len(values), 0)
        dataset[n:] = values
        file.flush()

    return append


def icechunk(path: Path, step: int) -> Append:
    import icechunk
    import zarr

    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path / "1.ic")))
    session = repo.writable_session("main")
    zarr.create_array(
        session.store, name="A", shape=(0,), chunks=(step,), dtype="u1", compressors=None
    )
    session.commit("made")

    def append(values: np.ndarray) -> None:
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="A").append(values)
        session.commit("appended")

    return append


def size_of(folder: Path) -> int:
    """Return the size of all files of a folder [bytes]."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def sides(step: int) -> Iterator[tuple[str, Callable[[Path], Append]]]:
    for fmt in "auto", "ZBlk0", "ZBlk1":
        yield fmt, lambda path, fmt=fmt: ours(path, fmt)
    yield "zarr", lambda path: zarr(path, step)
    yield "h5py", lambda path: h5py(path, step)
    if find_spec("icechunk"):
        yield "icechunk", lambda path: icechunk(path, step)


def run(make: Callable[[Path], Append], folder: Path, step: int, size: int):
    """Append; return [(bytes appended, bytes of file)] and the median time of an append [s]."""
    append = make(folder)
    values = np.random.default_rng(1).integers(1, 256, step, "u1")
    before, times, curve = size_of(folder), [], []
    for i in range(1, -(-size // step) + 1):
        start = time.perf_counter()
        append(values)
        times.append(time.perf_counter() - start)
        curve.append((i * step, size_of(folder) - before))
    return curve, statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="8000,65536", help="bytes an append")
    parser.add_argument("--size", type=int, default=4, help="MiB to append")
    parser.add_argument("--folder")
    tables.add_option(parser)
    args = parser.parse_args()
    for step in map(int, args.steps.split(",")):
        curves, seconds = {}, {}
        for name, make in sides(step):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                curves[name], seconds[name] = run(make, Path(folder), step, args.size << 20)
        # the appends after which a size is shown: each has about twice the bytes of the previous
        last = len(next(iter(curves.values())))
        shown = sorted({last >> i for i in range(6)} - {0})
        rows = []
        for n in shown:
            files = [curve[n - 1][1] / (1 << 20) for curve in curves.values()]
            rows.append([f"{n * step / (1 << 20):.3g}", *map(tables.shown, files)])
        print(f"appends of {step:,} bytes: ms an append, median (at most, bytes of file a byte)")
        for name, curve in curves.items():
            most = max((stored / n for n, stored in curve if n >= args.size << 19))
            print(f"  {name}: {seconds[name] * 1e3:.1f} ({most:.2f})")
        head = ["appended [MiB]", *(f"{name} [MiB]" for name in curves)]
        tables.publish(args, f"appends-{step}", head, rows)


if __name__ == "__main__":
    main()
