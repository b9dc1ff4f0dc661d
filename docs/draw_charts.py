"""Draws the charts of performance.md, which-array.md and neighbours.md from their tables.

    python docs/draw_charts.py

Run it after the tables were measured again, by `tox -e bench-peers -- --into docs/performance.md`.
A test compares the numbers of charts and tables. Charts are for the width of a phone, and have a
background of their own.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
#: columns whose names are too long
LABELS = {
    "loop on our connection": "loop, our\nconnection",
    "Zarr in the database [ms]": "Zarr in ZODB",
}
OURS, OTHER = "#1565c0", "#b8c1cf"
WIDTH = 5.2  # [inch]

#: chart -> (page, marker of its table, title, figures and what is said of each)
CHARTS = {
    "bench": (
        "performance.md",
        "bench",
        "An array of 1 GiB in a local file",
        {
            "first pass, page cache warm, GB/s": "sum, page cache warm",
            "second pass, GB/s": "sum, second pass",
            "first pass, page cache cold, GB/s": "sum, page cache cold",
            "touch one element in each of 500 blocks, median, us": "touch one element of a block",
            "ingest in steps of 64 MiB, GB/s": "append 64 MiB, and have it on disk",
            "change 64 blocks and commit, ms": "change 64 blocks, and have them on disk",
        },
    ),
    "bench-network": (
        "performance.md",
        "network",
        "256 MiB from a server",
        {
            "zeo: first pass, MiB/s": "ZEO: first pass",
            "zeo, 5 ms: first pass, MiB/s": "ZEO, 5 ms: first pass",
            "zeo, 5 ms: first pass of ZBlk1, MiB/s": "ZEO, 5 ms: first pass of ZBlk1",
            "zeo: commit of 64 MiB, MiB/s": "ZEO: commit of 64 MiB",
            "neo: first pass, MiB/s": "NEO: first pass",
            "neo, 5 ms: first pass, MiB/s": "NEO, 5 ms: first pass",
            "neo: commit of 64 MiB, MiB/s": "NEO: commit of 64 MiB",
        },
    ),
    "bench-formats": (
        "performance.md",
        "formats",
        "Formats of blocks",
        {
            "stream of appends: growth for each byte written, bytes": (
                "stream of appends: bytes of file a byte"
            ),
            "stream of appends: to read it then, us a block": "to read it then",
            "scattered changes: growth of the database, MiB": "scattered changes: growth",
            "scattered changes: a commit, ms": "scattered changes: a commit",
            "scattered changes: to read it then, us a block": "to read it then",
            "bulk writes: a commit, ms": "bulk writes: a commit",
        },
    ),
    "pointers": (
        "neighbours.md",
        "pointers",
        "1,220 MiB, as bigarray measures it",
        {
            "create, ms": "create",
            "write, ms": "write",
            "load and iterate, ms": "open it, and take each row",
            "iterate again, ms": "take each row again",
            "touch all, ms": "add all numbers",
        },
    ),
    "ragged": (
        "neighbours.md",
        "ragged",
        "100,000 pieces of 10 to 1,000 numbers",
        {
            "write, s": "write",
            "read in order, s": "read in order",
            "read at random, s": "read at random",
        },
    ),
    "zarrstore": (
        "neighbours.md",
        "zarrstore",
        "Zarr: 5,000 x 5,000 f4",
        {
            f"{kind}: {work}, ms": f"{kind}: {work}"
            for kind in ("raw", "zstd", "sharded")
            for work in ("write", "read", "columns", "points")
        },
    ),
    "which": (
        "which-array.md",
        "which",
        "Time to read a part of 15,000 x 15,000 f4",
        {
            f"{part}, {state}": f"a {part}, {state}"
            for state in ("cold", "warm")
            for part in ("row", "column", "tile")
        },
    ),
}


def table(page, marker):
    """Return a table of a page between its markers: figure -> {column: text}."""
    text = (HERE / page).read_text()
    text = text[text.index(f"<!-- {marker}: begin -->") : text.index(f"<!-- {marker}: end -->")]
    first = re.search(r"(?:^\|.*\|\n)+", text, re.M)[0]
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in first.splitlines()]
    head, _, *rows = lines
    found = {}
    for name, *cells in rows:
        row = dict(zip(head[1:], cells, strict=True))
        peer = re.fullmatch(r"(\w+) (\S+)", row.pop("peer", ""))
        if peer:  # of two rows of a figure, the first one
            row = {"wendelin.core": row.pop("wendelin.core"), peer[1]: peer[2], **row}
        found.setdefault(name, row)
    return found


def bars(rows, figure):
    """Return (side, value as in the table) of a figure, for the sides that have one."""
    left_out = ("ratio", "target", "CPUs in use")
    row = rows[figure].items()
    return [
        (LABELS.get(side, side.removesuffix(" [ms]")), text)
        for side, text in row
        if side not in left_out and text
    ]


def draw(name):
    """Draw a chart into its file."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10}
    )
    page, marker, title, figures = CHARTS[name]
    rows = table(page, marker)
    counts = [len(bars(rows, figure)) for figure in figures]
    fig, axes = plt.subplots(
        len(figures),
        figsize=(WIDTH, 0.2 * sum(counts) + 0.42 * len(counts) + 0.35),
        height_ratios=[n + 0.3 for n in counts],
        layout="constrained",
    )
    for ax, (figure, what) in zip(axes, figures.items(), strict=True):
        sides, texts = zip(*bars(rows, figure), strict=True)
        values = [float(text) for text in texts]
        log = max(values) > 50 * min(values)
        low = min(values) / 3 if log else 0
        ours = ("wendelin.core", "ZBigArray", "ZRagged", "ZODBStore", "auto")
        colours = [OURS if side in ours else OTHER for side in sides]
        ax.barh(sides, [v - low for v in values], left=low, color=colours, height=0.78)
        if log:
            ax.set_xscale("log")
        ax.set_xlim(low, max(values) * (6 if log else 1.16))
        for y, (value, text) in enumerate(zip(values, texts, strict=True)):
            ax.annotate(text, (value, y), (3, 0), textcoords="offset points", va="center", size=9)
        unit = figure.rpartition(", ")[2] if name != "which" else "ms"
        better = "longer" if unit.endswith("/s") else "shorter"
        scale = ", log scale" if log else ""
        ax.set_title(f"{what} [{unit}; {better} is better{scale}]", loc="left", size=9.5)
        ax.invert_yaxis()
        ax.set_xticks([])
        ax.minorticks_off()
        ax.tick_params("y", length=0, labelsize=9)
        for side in ("top", "right", "bottom"):
            ax.spines[side].set_visible(False)
    fig.suptitle(title, size=11, weight="bold", x=0.02, ha="left")
    fig.savefig(HERE / f"{name}.svg", metadata={"Date": None, "Title": title})
    # matplotlib ends some lines with spaces
    text = (HERE / f"{name}.svg").read_text()
    (HERE / f"{name}.svg").write_text(re.sub(r" +$", "", text, flags=re.M))
    plt.close(fig)


if __name__ == "__main__":
    for name in CHARTS:
        draw(name)
