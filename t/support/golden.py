"""Writes databases that are kept in t/data: python t/support golden NAME FOLDER

A developer runs it for a new release, or a new format. It never writes a file that exists.
"""

import argparse
from pathlib import Path

import numpy as np
import transaction

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

BLK = 16384
DTYPES = {
    "f8": ("<f8", "C", (3000,)),
    "i4": (">i4", "F", (50, 90)),
    "c16": ("<c16", "C", (20, 70)),
    "struct": ([("x", "<f4"), ("y", ">i2"), ("n", "S3")], "C", (2500,)),
    "u1": ("u1", "C", (2 * BLK,)),
}


def write(path: Path, fmt: str) -> dict[str, np.ndarray]:
    """Write a database in a format; return the values of its arrays."""
    root = dbopen(path)
    rng = np.random.default_rng(3)
    result = {}
    for name, (dtype, order, shape) in DTYPES.items():
        values = np.frombuffer(
            rng.integers(1, 100, int(np.prod(shape)) * np.dtype(dtype).itemsize, "u1"), dtype
        ).reshape(shape, order=order)
        root[name] = A = ZBigArray(shape, dtype, order, blksize=BLK, zblk_fmt=fmt)
        transaction.commit()
        A[:] = values
        transaction.commit()
        flat = A[:].reshape(-1, order=order)
        flat[7] = flat[8]  # a small change
        transaction.commit()
        A.append(values[:3] if order == "C" else values[..., :3])
        transaction.commit()
        result[name] = np.array(A[:], order=order)
    root["mixed"] = M = ZBigArray((8 * BLK,), "u1", blksize=BLK)
    transaction.commit()
    for i, used in enumerate(["ZBlk0", "ZBlk1", "auto"]):
        M._fileh().file.zblk_fmt = used
        M[2 * i * BLK :][: BLK + 5] = rng.integers(0, 3, BLK + 5, "u1")
        transaction.commit()
    M.resize((7 * BLK - 1,))
    transaction.commit()
    result["mixed"] = M[:].copy()
    root._p_jar.db().undo(root._p_jar.db().undoLog(0, 1)[0]["id"])
    transaction.commit()
    result["mixed"] = np.append(result["mixed"], np.zeros(BLK + 1, "u1"))
    dbclose(root)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    for fmt in "ZBlk0", "ZBlk1", "auto":
        path = args.folder / f"{args.name}-{fmt}.fs"
        if path.exists():
            parser.error(f"{path} is there already, and is kept")
        np.savez_compressed(path.with_suffix(".npz"), **write(path, fmt))
        for suffix in ".index", ".lock":
            Path(f"{path}{suffix}").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
