"""How long zarr takes over ZODBStore, LocalStore and icechunk, in one run.

    python t/bench/zarrstore.py [--side 5000] [--runs 5] [--folder DIR] [--url zeo://...]
                               [--into docs/neighbours.md]

An array of side x side f4 is written and committed; all of it, 5 columns one by one, and 60 single
numbers are read. Each figure is the median of fresh processes, which take turns; the page cache is
warm. icechunk is left out if it is not installed. LocalStore has no commit, and syncs nothing:
`local+sync` syncs its files after the write, as a commit does. The last two columns are the
ratios of wall time and of CPU time. docs/draw_charts.py draws a chart from the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import tables

KINDS = ["raw", "zstd", "sharded"]
WORKS = ["write", "read", "columns", "points"]

WORK = """
import json, os, sys, time
import numpy as np, zarr
store_name, kind, work, folder, side, url = sys.argv[1:]
side = int(side)
path = os.path.join(folder, f"{store_name.partition('+')[0]}-{kind}")
write = work == "write"
def done(): pass
if store_name.startswith("local"):
    store = zarr.storage.LocalStore(path)
    if store_name == "local+sync":
        def done():
            for top, _, names in os.walk(path):
                for name in names:
                    fd = os.open(os.path.join(top, name), os.O_RDONLY)
                    os.fsync(fd)
                    os.close(fd)
elif store_name == "icechunk":
    import icechunk
    storage = icechunk.local_filesystem_storage(path)
    repo = icechunk.Repository.create(storage) if write else icechunk.Repository.open(storage)
    session = repo.writable_session("main") if write else repo.readonly_session("main")
    store = session.store
    if write:
        def done(): session.commit("x")
else:
    import transaction
    from wendelin.lib.zodb import dbopen
    from wendelin.zarr import ZarrGroup
    root = dbopen(url or path + ".fs", read_only=not write)
    if write:
        root[kind] = ZarrGroup()
        transaction.commit()
        done = transaction.commit
    store = root[kind].store(read_only=not write)
rng = np.random.default_rng(0)
spec = {
    "raw": dict(chunks=(500, 500), compressors=None),
    "zstd": dict(chunks=(500, 500)),
    "sharded": dict(chunks=(100, 100), shards=(1000, 1000)),
}[kind]
if write:
    data = np.cumsum(rng.integers(-3, 4, (side, side)), axis=1).astype("f4")
    points = None
else:
    points = rng.integers(0, side, (60, 2))
    a = zarr.open_array(store, path="a", mode="r")
t, c = time.perf_counter(), time.process_time()
if write:
    a = zarr.create_array(store, name="a", shape=(side, side), dtype="f4", **spec)
    a[:] = data
    done()
elif work == "read":
    total = a[:]
elif work == "columns":
    for i in range(5):
        a[:, i * side // 5 + 7]
else:
    for i, j in points:
        a[i, j]
print(json.dumps([time.perf_counter() - t, time.process_time() - c]))
"""


def run(store: str, kind: str, work: str, folder: Path, side: int, url: str) -> list[float]:
    """Return (wall time, CPU time) of a fresh process [s]."""
    args = [store, kind, work, str(folder), str(side), url]
    done = subprocess.run([sys.executable, "-P", "-c", WORK, *args], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [float(x) for x in json.loads(done.stdout.splitlines()[-1])]


def clean(store: str, kind: str, folder: Path) -> None:
    """Remove what a write has made."""
    name = f"{store.partition('+')[0]}-{kind}"
    for path in folder.glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder")
    parser.add_argument("--url", default="", help="of a server, rather than a file")
    parser.add_argument("--kinds", default=",".join(KINDS))
    tables.add_option(parser)
    options = parser.parse_args()
    stores = ["local", "local+sync", "ours"]
    if find_spec("icechunk"):
        stores.append("icechunk")
    folder = Path(tempfile.mkdtemp(prefix="zarrstore-", dir=options.folder))
    print(f"{options.side} x {options.side} f4, {options.runs} runs; CPUs: {os.cpu_count()}")
    names = {"local": "LocalStore", "local+sync": "LocalStore, synced", "ours": "ZODBStore"}
    rows = []
    try:
        for kind in options.kinds.split(","):
            for work in WORKS:
                found: dict[str, list[list[float]]] = {store: [] for store in stores}
                for _ in range(options.runs):
                    for store in stores:
                        if work == "write" and not (store == "ours" and options.url):
                            clean(store, kind, folder)
                        if work != "write" and store == "local+sync":
                            continue
                        found[store].append(
                            run(store, kind, work, folder, options.side, options.url)
                        )
                wall, cpu = (
                    {
                        s: statistics.median(t[i] for t in times)
                        for s, times in found.items()
                        if times
                    }
                    for i in range(2)
                )
                cells = [tables.shown(wall[s] * 1e3) if s in wall else "" for s in stores]
                cells += [f"{times['ours'] / times['local']:.2f}" for times in (wall, cpu)]
                rows.append([f"{kind}: {work}, ms", *cells])
        head = ["", *(names.get(s, s) for s in stores), "ratio", "ratio of CPU time"]
        tables.publish(options, "zarrstore", head, rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
