"""Measures what ordered=True costs a commit: python t/support commit_cost FOLDER [ROUNDS]

Prints rows of a Markdown table: the size of a transaction, and medians without ordered=True and
with it [ms]. Both take turns.
"""

import os
import statistics
import sys
import tempfile
import time

from support.fsbytes import commit
from wendelin.lib.storage.filestorage import AlignedFileStorage

SIZES = [(1 << 10, 40), (64 << 10, 40), (1 << 20, 30), (4 << 20, 20), (16 << 20, 10), (64 << 20, 5)]
RECORD = 2 << 20  # size of a record, at most [bytes]


def times(folder, size, commits, ordered):
    """Return how long each commit of a new file takes [s]."""
    # order_from is so large that only `ordered` makes a second sync
    storage = AlignedFileStorage(f"{folder}/x.fs", ordered=ordered, order_from=1 << 62)
    data = os.urandom(min(size, RECORD))
    result = []
    for i in range(commits):
        records = [(100 * i + j, data) for j in range(1, size // len(data) + 1)]
        start = time.perf_counter()
        commit(storage, *records)
        result.append(time.perf_counter() - start)
    storage.close()
    storage.cleanup()
    return result


def main():
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        for size, commits in SIZES:
            found = {False: [], True: []}
            for _ in range(rounds):
                for ordered in found:
                    found[ordered] += times(folder, size, commits, ordered)
            one, two = (statistics.median(found[ordered]) * 1000 for ordered in found)
            shown = f"{size / (1 << 20):g} MiB" if size >= 1 << 20 else f"{size / 1024:.3g} KiB"
            print(f"| {shown} | {one:.1f} | {two:.1f} |", flush=True)


if __name__ == "__main__":
    main()
