"""Draws the modules of a revision: folders, imports between folders, and three ways through them.

    python docs/draw_architecture.py 05ef391 docs/architecture-before.svg
    python docs/draw_architecture.py HEAD docs/architecture-after.svg

It reads the sources from git: modules and imports are those of the revision. The ways are listed
here, by the names of that time. The picture is for the width of a phone, and has a background of
its own.
"""

import re
import subprocess
import sys
from collections import Counter
from html import escape
from pathlib import PurePath

#: folder -> (package, title), from the top down: imports go downwards
FOLDERS = {
    "demo": ("wendelin.demo", "examples"),
    "wendelin/cli": ("wendelin.cli", "the command line"),
    "wendelin/xarray": ("wendelin.xarray", "groups as datasets"),
    "wendelin/tree": ("wendelin.tree", "groups and paths"),
    "wendelin/sparse": ("wendelin.sparse", "sparse matrices"),
    "wendelin/ragged": ("wendelin.ragged", "pieces by key"),
    "wendelin/zarr": ("wendelin.zarr", "Zarr in the database"),
    "wendelin/bigarray": ("wendelin.bigarray", "arrays"),
    "bigfile": ("wendelin.bigfile", "files mapped in memory"),
    "bigfile/zodb": ("wendelin.bigfile.zodb", "blocks in a database"),
    "bigfile/virtmem": ("wendelin.bigfile.virtmem", "the pager"),
    "lib": ("wendelin.lib", "helpers, databases"),
    "lib/storage": ("wendelin.lib.storage", "storages and records"),
    "lib/adapters": ("wendelin.lib.adapters", "private names"),
    "wendelin/neogateway": ("wendelin.neogateway", "for NEO"),
}
FILL = ["#e8eef7", "#e6f3ec", "#f7efe2", "#f1eaf6", "#fbeae9", "#e4f3f6"]

#: way -> (colour, symbol, its modules: older names stand beside newer ones)
WAYS = {
    "a fault": (
        "#c0262d",
        "●",
        "pagefault touch mapping pagemap page loading ahead ram trampoline located signals "
        "blockfile zfile blocktable blktab blockmap buckets btree records formats zblk zodb "
        "filestorage fsrecord record zrecord",
    ),
    "a commit": (
        "#1f5fbf",
        "■",
        "handle virtmem writeout file_zodb fileh page buffer blockfile zfile change formats zblk "
        "zodb_boundary zwatch filestorage fswrite fstail fsalign record zrecord interrupt",
    ),
    "an index access, A[i:j]": (
        "#1d7a3a",
        "▲",
        "array indexing array_zodb handle virtmem mapping pins ready located blockfile zfile "
        "fsheads",
    ),
}
#: names that mean different modules in different folders: the folders of the ways
ONLY = {
    "handle": {"bigfile/zodb", "bigfile/virtmem"},
    "zodb": {"lib"},
    "filestorage": {"lib", "lib/storage"},
}

WIDTH, LANES, PAD, LINE = 400, 92, 8, 17  # [px]
LETTER = 6.4  # of a module's name [px]


def git(*words):
    """Return what a command of git prints."""
    return subprocess.check_output(["git", *words], text=True)


def folder_of(path):
    """Return the folder of a file in the picture; None: it is not in it."""
    for parent in PurePath(path).parents:
        if str(parent) in FOLDERS:
            return str(parent)
    return None


def read(revision):
    """Return modules by folder, lines by folder, and numbers of imports between folders."""
    modules, lines, imports = {}, Counter(), Counter()
    for path in git("ls-tree", "-r", "--name-only", revision).split():
        folder = folder_of(path)
        if folder is None or PurePath(path).suffix not in (".py", ".pyx"):
            continue
        text = git("show", f"{revision}:{path}")
        lines[folder] += text.count("\n")
        name = PurePath(path).stem
        if name != "__init__":
            inside = PurePath(path).parent.relative_to(folder)
            modules.setdefault(folder, []).append(str(inside / name))
        used = re.findall(r"^\s*from (wendelin[\w.]*) c?import ([\w, ]+)", text, re.M)
        used += [(n, "") for n in re.findall(r"^\s*c?import (wendelin[\w.]*)", text, re.M)]
        for other in {imported(package, names.split(",")[0].strip()) for package, names in used}:
            if other not in (None, folder):
                imports[folder, other] += 1
    return modules, lines, imports


def imported(package, name):
    """Return the folder that an import is from."""
    full = f"{package}.{name}."
    found = [f for f, (package, _) in FOLDERS.items() if full.startswith(f"{package}.")]
    return max(found, key=lambda f: len(FOLDERS[f][0]), default=None)


def ways_of(folder, module):
    """Yield colour and symbol of each way that goes through a module."""
    for colour, symbol, names in WAYS.values():
        if module in names.split() and folder in ONLY.get(module, {folder}):
            yield colour, symbol


def shortest(imports):
    """Return the imports without those that a chain of others implies; upward ones stay."""
    order = list(FOLDERS)
    down = {e for e in imports if order.index(e[0]) < order.index(e[1])}

    def reaches(a, b):
        return any(x == a and (y == b or reaches(y, b)) for x, y in down)

    for edge in sorted(down, key=lambda e: order.index(e[0]) - order.index(e[1])):
        down.remove(edge)
        if not reaches(*edge):
            down.add(edge)
    return {e: n for e, n in imports.items() if e in down or order.index(e[0]) > order.index(e[1])}


def boxes(modules, lines, y):
    """Return parts of the picture, and top and bottom of the box of each folder."""
    parts, places = [], {}
    for i, (folder, (_, about)) in enumerate(FOLDERS.items()):
        if folder not in modules:
            continue
        rows, x = [[]], LANES + PAD
        for module in sorted(modules[folder]):
            marks = list(ways_of(folder, module))
            width = len(module) * (LETTER + 0.75 * bool(marks)) + 10 * len(marks) + 9
            if x + width > WIDTH - PAD:
                rows.append([])
                x = LANES + PAD
            rows[-1].append((x, module, marks))
            x += width
        height = 25 + LINE * len(rows) + 4
        parts.append(
            f'<rect x="{LANES}" y="{y}" width="{WIDTH - LANES - 4}" height="{height}" rx="5" '
            f'fill="{FILL[i % len(FILL)]}" stroke="#8a94a6"/>'
            f'<text x="{LANES + PAD}" y="{y + 16}" font-size="12.5" font-weight="bold">'
            f'{escape(folder)}/<tspan font-weight="normal" font-size="11.5"> {escape(about)}, '
            f"{lines[folder]:,} lines</tspan></text>"
        )
        for n, row in enumerate(rows):
            for at, module, marks in row:
                symbols = "".join(
                    f'<tspan fill="{c}" font-size="9">{symbol}</tspan>' for c, symbol in marks
                )
                weight = ' font-weight="bold"' if marks else ' fill="#3c4454"'
                parts.append(
                    f'<text x="{at:.0f}" y="{y + 25 + LINE * n + 11}" font-size="11"{weight}>'
                    f"{escape(module)}{symbols}</text>"
                )
        places[folder] = y, y + height
        y += height + 12
    return parts, places, y


def arrows(imports, places):
    """Return the arrows between folders, each in a lane of its own, the longest outside."""
    order = list(places)
    edges = sorted(
        ((a, b, n) for (a, b), n in imports.items() if a in places and b in places),
        key=lambda e: (abs(order.index(e[1]) - order.index(e[0])), order.index(e[0])),
    )
    leaving = Counter(a for a, _, _ in edges)
    entering = Counter(b for _, b, _ in edges)
    seen, parts = Counter(), []
    for i, (a, b, n) in enumerate(edges):
        x = LANES - 12 - i * (LANES - 18) / max(1, len(edges))
        ys = []
        for side, total, folder in (("out", leaving, a), ("in", entering, b)):
            seen[side, folder] += 1
            top, bottom = places[folder]
            share = seen[side, folder] / (total[folder] + 1) / 2
            ys.append(top + (bottom - top) * (share + (0.5 if side == "out" else 0)))
        (y1, y2), up = ys, order.index(b) < order.index(a)
        dashes = ' stroke-dasharray="4 3"' if up else ""
        parts.append(
            f'<path d="M{LANES},{y1:.1f} H{x:.1f} V{y2:.1f} H{LANES - 4}" fill="none" '
            f'stroke="#5b6577" stroke-width="{1 + min(n, 30) / 15:.1f}"{dashes} '
            f'marker-end="url(#head)"><title>{a} imports {b}: {n} modules</title></path>'
        )
    return parts


def draw(revision, title):
    """Return the SVG of a revision."""
    modules, lines, imports = read(revision)
    if "bigfile/zodb" in modules:  # since then, file_zodb has names only
        ONLY["file_zodb"] = set()
    parts = [
        f'<text x="{PAD}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<text x="{PAD}" y="37" font-size="11.5">Arrows: imports between folders, without '
        f"those that others imply.</text>",
        f'<text x="{PAD}" y="53" font-size="11.5">Bold: modules on the way of</text>',
    ]
    for i, (way, (colour, symbol, _)) in enumerate(WAYS.items()):
        marks = (w for folder in modules for m in modules[folder] for w in ways_of(folder, m))
        passed = sum(mark == (colour, symbol) for mark in marks)
        parts.append(
            f'<text x="{PAD}" y="{70 + 16 * i}" font-size="11.5"><tspan fill="{colour}">{symbol}'
            f"</tspan> {escape(way)}: {passed} modules</text>"
        )
    shown, places, height = boxes(modules, lines, 70 + 16 * len(WAYS))
    parts += arrows(shortest(imports), places) + shown
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" font-family="sans-serif" fill="#1d2430">'
        f"<title>{escape(title)}</title>"
        '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="4" refY="2.5" '
        'orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0 L5,2.5 L0,5 z" '
        'fill="#5b6577"/></marker></defs>'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "\n".join(parts) + "</svg>\n"
    )


if __name__ == "__main__":
    revision, path = sys.argv[1:]
    name = git("rev-parse", "--short", revision).strip()
    when = "before" if "before" in path else "after"
    with open(path, "w", encoding="utf-8") as file:
        file.write(draw(revision, f"wendelin.core, {when} ({name})"))
