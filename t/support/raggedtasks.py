"""Tasks of other processes: one writes pieces of a ZRagged, one reads them."""

import numpy as np
import transaction

from wendelin.lib.zodb import dbclose, dbopen


def write(job):
    url, start, stop = job
    root = dbopen(url)
    R = root["R"]
    R.writer(f"from {start}").update(
        {f"name{i}": np.arange(i * 10, i * 10 + 10) for i in range(start, stop)}
    )
    transaction.commit()
    dbclose(root)


def read(job):
    R, start, stop = job
    return sum(int(np.sum(R[f"name{i}"])) for i in range(start, stop))
