"""Draws the charts of performance.md, which-array.md and neighbours.md from their tables.

    python docs/draw_charts.py

Run it after the tables were measured again, by `tox -e bench-peers -- --into docs/performance.md`
or by a program of t/bench with --into. A test compares the numbers of charts and tables. Charts
are for the width of a phone, and have a background of their own.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
#: columns whose names are too long
LABELS = {
    "loop on our connection": "loop, our\nconnection",
    "Zarr in the database": "Zarr in ZODB",
    "LocalStore, synced": "LocalStore,\nsynced",
}
#: columns of a table that are not a side of a comparison
LEFT_OUT = ("ratio", "target", "CPUs in use")
OURS, OTHER = "#1565c0", "#b8c1cf"
COLOURS = ("#1565c0", "#f2a541", "#5b6577")
OTHERS = {"zarr": "#2e7d32", "h5py": "#8e24aa", "icechunk": "#00acc1"}
WIDTH = 5.2  # [inch]
#: units of charts whose tables have them in the head
UNITS = {"which": "ms"}

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
}

#: picture of curves -> (page, panels: marker of a table, title, columns, unit, log scale of y)
CURVES = {
    "known": (
        "performance.md",
        [
            (
                "known",
                "begin()",
                ("after one block changed", "after an append"),
                "ms of CPU",
                False,
            ),
            ("known", "memory a known block", ("memory a known block",), "bytes", False),
            ("known", "open the database", ("to open, and touch a block",), "ms of CPU", False),
        ],
    ),
    "processes": (
        "performance.md",
        [
            (
                marker,
                title,
                ("a copy each", "cache that has the blocks", "the server's file"),
                unit,
                False,
            )
            for marker, title, unit in (
                ("processes-speed", "throughput of all processes", "MiB/s"),
                ("processes-memory", "memory of all processes", "MiB"),
            )
        ],
    ),
    "small": (
        "performance.md",
        [
            ("small", "small arrays", ("view", "write", "commit"), "ms of CPU an array", False),
        ],
    ),
    "appends": (
        "performance.md",
        [
            (
                f"appends-{step}",
                f"file after appends of {step:,} bytes",
                ("auto", "ZBlk0", "ZBlk1", "zarr", "h5py", "icechunk"),
                "MiB",
                True,
            )
            for step in (8000, 65536)
        ],
    ),
}


def text_of(page):
    """Return the text of a page."""
    return (HERE / page).read_text()


def table(page, marker):
    """Return a table of a page between its markers: figure -> {column: text}."""
    text = text_of(page)
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


def first_column(page, marker):
    """Return the name of the first column of a table."""
    return re.search(rf"<!-- {marker}: begin -->.*?^\| *([^|]*?) *\|", text_of(page), re.M | re.S)[
        1
    ]


def bars(rows, figure):
    """Return (side, value as in the table) of a figure, for the sides that have one."""
    row = rows[figure].items()
    return [
        (LABELS.get(name, name), text)
        for side, text in row
        if not side.startswith(LEFT_OUT) and text and text != "0"
        for name in [side.removesuffix(" [ms]")]
    ]


def lines(page, panel):
    """Return {curve: [(x, value as in the table)]} of a panel, and what x is."""
    marker, _, columns, unit, _ = panel
    rows = table(page, marker)
    found = {
        name: [
            (float(x.replace(",", "")), row[column])
            for x, row in rows.items()
            for column in [f"{name} [{unit}]"]
            if row[column]
        ]
        for name in columns
    }
    return found, first_column(page, marker)


def summary(curves):
    """Return the figures of curves as a text, which the picture has as its description."""
    return "; ".join(
        f"{name}: {', '.join(f'{text} at {x:g}' for x, text in points)}"
        for name, points in curves.items()
    )


def plotter(name):
    """Return matplotlib.pyplot, set so that a picture is the same each time it is drawn."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10}
    )
    return plt


def save(plt, fig, name, **metadata):
    """Write a picture into its file."""
    fig.savefig(HERE / f"{name}.svg", metadata={"Date": None, **metadata})
    # matplotlib ends some lines with spaces
    text = (HERE / f"{name}.svg").read_text()
    (HERE / f"{name}.svg").write_text(re.sub(r" +$", "", text, flags=re.M))
    plt.close(fig)


def draw(name):
    """Draw a chart into its file."""
    plt = plotter(name)
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
        ours = ("wendelin.core", "ZBigArray", "auto", "ZODBStore", "ZRagged")
        colours = [OURS if side in ours else OTHER for side in sides]
        ax.barh(sides, [v - low for v in values], left=low, color=colours, height=0.78)
        if log:
            ax.set_xscale("log")
        ax.set_xlim(low, max(values) * (6 if log else 1.16))
        for y, (value, text) in enumerate(zip(values, texts, strict=True)):
            ax.annotate(text, (value, y), (3, 0), textcoords="offset points", va="center", size=9)
        unit = UNITS.get(name) or figure.rpartition(", ")[2]
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
    save(plt, fig, name, Title=title)


def draw_curves(name):
    """Draw a picture of curves into its file."""
    plt = plotter(name)
    page, panels = CURVES[name]
    fig, axes = plt.subplots(
        len(panels), figsize=(WIDTH, 2.5 * len(panels)), layout="constrained", squeeze=False
    )
    texts = []
    for ax, panel in zip(axes[:, 0], panels, strict=True):
        _, title, _, unit, log = panel
        curves, what = lines(page, panel)
        texts.append(summary(curves))
        ours = 0
        for curve, points in curves.items():
            style = "--" if curve in OTHERS else "-"
            ours += curve not in OTHERS
            colour = OTHERS.get(curve) or COLOURS[ours - 1]
            xs, ys = [x for x, _ in points], [float(text) for _, text in points]
            ax.plot(xs, ys, style, marker="o", ms=4, label=curve, color=colour)
        ax.set_xscale("log")
        if xs[-1] < 100 * xs[0]:
            ax.set_xticks(xs, [f"{x:.2g}" for x in xs])
        ax.minorticks_off()
        if log:
            ax.set_yscale("log")
        ax.set_ylim(bottom=None if log else 0)
        ax.set_xlabel(what, size=9)
        ax.set_title(f"{title} [{unit}{', log scale' if log else ''}]", loc="left", size=9.5)
        ax.tick_params(labelsize=9)
        ax.grid(color="#e3e7ed", linewidth=0.7)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        if len(curves) > 1:
            ax.legend(fontsize=8.5, frameon=False)
    save(plt, fig, name, Title=panels[0][1], Description=" | ".join(texts))


if __name__ == "__main__":
    for name in CHARTS:
        draw(name)
    for name in CURVES:
        draw_curves(name)
