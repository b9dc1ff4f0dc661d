"""demo-zbigarray: write an array larger than RAM into a database; read it, and compute on it.

    demo-zbigarray [--worksize=<MB>] (gen|read) <dburi>

gen writes a signal, sin(0.2 t) * 15, in transactions of 32 MB, by default twice as large as RAM.
read computes its mean and sum, with plain NumPy functions, on one view of the whole array.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import transaction
from numpy.typing import NDArray
from ZODB.POSException import POSError, ReadOnlyError

from wendelin.demo.progress import progress
from wendelin.lib.memlimit import ram_limit
from wendelin.lib.sizes import parse_size
from wendelin.lib.zodb import dbclose, dbopen

MB = 1 << 20
STEP = 32 * MB  # of one transaction [bytes]
NAME = "signalv"  # of the array in the root object


class UserError(Exception):
    """An error that the user can correct; its text says how."""


def signal(start: int, stop: int) -> NDArray[np.float64]:
    """Return samples [start, stop)."""
    t = np.arange(start, stop, dtype=np.float64)
    t *= 0.2
    np.sin(t, out=t)
    t *= 15
    return t


def gen(root: Any, worksize: int, quiet: bool | None = False) -> None:
    """Write `worksize` bytes of signal; replace an old one.

    quiet: show no progress; None: only on a terminal.
    """
    from wendelin.bigarray.array_zodb import ZBigArray  # late: see check()

    if NAME in root:
        note = f"replacing {NAME!r}, which exists already; a pack frees its space"
        print(note, file=sys.stderr)
    root[NAME] = array = ZBigArray((0,), np.float64)
    transaction.commit()
    total = worksize // array.itemsize
    step = STEP // array.itemsize
    binary = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with progress(total=worksize, desc="gen", disable=quiet, **binary) as bar:
        for start in range(0, total, step):
            values = signal(start, min(start + step, total))
            array.append(values)
            transaction.commit()
            bar.update(values.nbytes)


@dataclass(frozen=True)
class Result:
    """The results, and what they took."""

    mean: float
    sum: float
    bytes: int  # of the array
    seconds: float  # for two passes
    virt: int  # [bytes]
    rss: int  # [bytes]


def read(root: Any) -> Result:
    """Compute mean and sum of the whole array."""
    from wendelin.bigarray.array_zodb import ZBigArray  # late: see check()

    try:
        array = root[NAME]
    except KeyError:
        raise UserError(f"the database has no array {NAME!r}: write it first, with gen") from None
    if not isinstance(array, ZBigArray):
        raise UserError(f"{NAME!r} in the database is a {type(array).__name__}, not a ZBigArray")
    if not array.size:
        raise UserError(f"array {NAME!r} is empty: write it first, with gen")
    a = array[:]
    start = perf_counter()
    mean, total = float(np.mean(a)), float(np.sum(a))
    seconds = perf_counter() - start
    memory = psutil.Process().memory_info()
    return Result(mean, total, a.nbytes, seconds, memory.vms, memory.rss)


def print_result(result: Result) -> None:
    """Print it."""
    print(f"mean:\t{result.mean!r}\nsum:\t{result.sum!r}")
    print(f"time:\t{result.seconds:.2f} s for two passes over {result.bytes / MB:.0f} MB")
    print(f"speed:\t{2 * result.bytes / MB / result.seconds:.0f} MB/s")
    print(f"VIRT:\t{result.virt // MB} MB\nRSS:\t{result.rss // MB} MB")


def megabytes(text: str) -> int:
    """Return the number of bytes of --worksize."""
    try:
        return parse_size(text, "M")
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{e}; a number is MB") from None


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        "demo-zbigarray", description="Write an array larger than RAM, or compute on it."
    )
    parser.add_argument(
        "--worksize",
        metavar="<MB>",
        type=megabytes,
        default=2 * psutil.virtual_memory().total,
        help="how much to write, as in 512 or 1.5G (default: twice as much as RAM)",
    )
    parser.add_argument("command", choices=("gen", "read"))
    parser.add_argument(
        "dburi", metavar="<dburi>", help="database: a path, or a URL (file://, zeo://, neo://)"
    )
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the arguments before the pager is imported, or a file is made; exit if one is wrong."""
    try:
        ram_limit()  # else the import of the pager would raise this
    except ValueError as e:
        parser.error(str(e))
    if args.command == "read":
        is_url = re.match(r"demo:|[a-z]+://", args.dburi)
        files = re.findall(r"file://([^?#)]*)", args.dburi) if is_url else [args.dburi]
        for path in files:
            if not os.path.exists(path):
                parser.error(f"there is no database {path!r}: write it first, with gen")


def run(args: argparse.Namespace) -> None:
    """Do what the arguments say."""
    try:
        root = dbopen(args.dburi)
    except Exception as e:
        raise UserError(f"database {args.dburi!r} cannot be opened: {type(e).__name__}: {e}") from e
    try:
        if args.command == "gen":
            gen(root, args.worksize)
        else:
            print_result(read(root))
    finally:
        transaction.abort()
        dbclose(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    try:
        run(args)
    except UserError as e:
        message = str(e)
    except ReadOnlyError:
        message = f"database {args.dburi!r} is read-only"
    except POSError as e:
        message = f"database {args.dburi!r}: {type(e).__name__}: {e}"
    except MemoryError as e:
        message = f"not enough memory: {e}"
    except OSError as e:
        message = str(e)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message += ": earlier commits are saved; free some space, or use a smaller --worksize"
    except KeyboardInterrupt:
        message = "interrupted; earlier commits are saved"
    else:
        return 0
    parser.print_usage(sys.stderr)
    print(f"demo-zbigarray: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
