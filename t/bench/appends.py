"""File size after a stream of appends, in each format of ours, beside zarr and h5py.

    python t/bench/appends.py [--steps 8000,65536] [--size 4] [--folder DIR] [--svg FILE]

We commit each append; h5py flushes it, and zarr writes it through. Chunks of zarr and h5py are as
long as one append, which is best for them, and are not compressed. It prints the bytes of file for
each appended byte, and the median time of an append. --svg draws a picture of sizes by appends.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

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


def size_of(folder: Path) -> int:
    """Return the size of all files of a folder [bytes]."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def sides(step: int) -> Iterator[tuple[str, Callable[[Path], Append]]]:
    for fmt in "auto", "ZBlk0", "ZBlk1":
        yield fmt, lambda path, fmt=fmt: ours(path, fmt)
    yield "zarr", lambda path: zarr(path, step)
    yield "h5py", lambda path: h5py(path, step)


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


def picture(path: str, curves: dict[str, list[tuple[int, int]]]) -> None:
    """Draw file sizes by appended bytes."""
    from matplotlib import pyplot

    for name, curve in curves.items():
        x, y = np.array(curve).T / (1 << 20)
        pyplot.plot(x, y, label=name)
    pyplot.xlabel("appended [MiB]")
    pyplot.ylabel("file [MiB]")
    pyplot.yscale("log")
    pyplot.legend()
    pyplot.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="8000,65536", help="bytes an append")
    parser.add_argument("--size", type=int, default=4, help="MiB to append")
    parser.add_argument("--folder")
    parser.add_argument("--svg")
    args = parser.parse_args()
    print("| append | format | bytes of file a byte | at most, from 2 MiB on | ms an append |")
    print("| ---: | --- | ---: | ---: | ---: |")
    curves = {}
    for step in map(int, args.steps.split(",")):
        for name, make in sides(step):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                curve, seconds = run(make, Path(folder), step, args.size << 20)
            curves[f"{name}, {step} bytes"] = curve
            most = max((stored / n for n, stored in curve if n >= 2 << 20), default=float("nan"))
            n, stored = curve[-1]
            print(
                f"| {step} | {name} | {stored / n:.2f} | {most:.2f} | {seconds * 1e3:.1f} |",
                flush=True,
            )
    if args.svg:
        picture(args.svg, curves)


if __name__ == "__main__":
    main()
