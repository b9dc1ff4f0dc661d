"""Make docs/repr.png: what a notebook shows of arrays, as a real browser draws it.

    python t/support screenshot [FILE]

It needs chromium (`apt-get install chromium`). Only a person runs it, when _repr_html_ changes.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import transaction

from support import ROOT
from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

SIZE = 480, 560  # of the picture, for the width of a phone [px]

PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ font: 12px/1.4 system-ui, sans-serif; margin: 8px; background: white; color: black }}
pre {{ font: 13px monospace; background: #f7f7f7; border: 1px solid #ddd; padding: 6px 10px;
       margin: 0 0 10px }}
section {{ margin-bottom: 22px }}
</style>{}"""


def cells(root):
    """Yield (what is typed, what is shown), as in a notebook."""
    root["signal"] = A = ZBigArray((100_000_000,), np.float64)
    root["frames"] = B = ZBigArray((400, 1024, 1024), np.uint16)
    transaction.commit()
    for i in range(0, 20_000_000, 4_000_000):
        A[i : i + 4_000_000] = np.arange(4_000_000)
        transaction.commit()
    B[:60] = 1
    B[200:240] = 2
    transaction.commit()
    for name, array in (("signal", A), ("frames", B)):
        array[:1000].sum()  # some of it is in memory
        array[-1] = 1  # and changed, not committed
        yield f'root["{name}"]', array._repr_html_()


def main():
    target = sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/repr.png"
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        root = dbopen(f"{folder}/data.fs")
        shown = "".join(f"<section><pre>{a}</pre>{b}</section>" for a, b in cells(root))
        transaction.abort()
        dbclose(root)
        page = Path(folder, "page.html")
        page.write_text(PAGE.format(shown))
        command = [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"]
        command += [f"--user-data-dir={folder}/chromium", "--window-size={},{}".format(*SIZE)]
        command += [f"--screenshot={Path(target).absolute()}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(target)


if __name__ == "__main__":
    main()
