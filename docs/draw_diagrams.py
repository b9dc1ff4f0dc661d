"""Draws the diagrams of these pages, and the logo.

    python docs/draw_diagrams.py

A test compares them with the files. They are for the width of a phone, and have a background of
their own.
"""

from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH = 460  # [px]
INK, GREY, LINE = "#1d2430", "#5b6577", "#8a94a6"
BLUE, ORANGE, GREEN, EMPTY = "#90b4dd", "#f2a541", "#9ccfa4", "#ffffff"
DEEP = "#1565c0"


class Picture:
    """An SVG that is made from the top down."""

    def __init__(self, name, title, height, width=WIDTH):
        self.name, self.title, self.height, self.width = name, title, height, width
        self.parts = []

    def text(self, x, y, text, size=13, fill=INK, anchor="start", bold=False, mono=False):
        """Write a line; x and y are where its base line begins, or what anchor says."""
        more = ' font-weight="bold"' if bold else ""
        more += ' font-family="monospace"' if mono else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{more}>'
            f"{escape(text)}</text>"
        )

    def box(self, x, y, width, height, fill=EMPTY, text="", size=13, dashed=False, round=4):
        """Draw a rectangle with a text in its middle."""
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{round}" fill="{fill}" '
            f'stroke="{LINE}"{dashes}/>'
        )
        for i, line in enumerate(text.split("\n") if text else []):
            middle = y + height / 2 + size * 0.36 + (i - text.count("\n") / 2) * size * 1.2
            self.text(x + width / 2, round_(middle), line, size, anchor="middle")

    def arrow(self, *points, fill=GREY, dashed=False):
        """Draw lines through points, with a head at the last one."""
        path = " L".join(f"{x},{y}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{fill}" stroke-width="1.6"{dashes} '
            'marker-end="url(#head)"/>'
        )

    def line(self, x1, y1, x2, y2, dashed=False):
        """Draw a thin line."""
        dashes = ' stroke-dasharray="3 3"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}"{dashes}/>'
        )

    def svg(self):
        """Return the picture."""
        size = f'width="{self.width}" height="{self.height}"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'{size} role="img" font-family="sans-serif">\n<title>{escape(self.title)}</title>\n'
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="5" refY="3" '
            'orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0 L6,3 L0,6 z" '
            f'fill="{GREY}"/></marker></defs>\n'
            f'<rect {size} fill="#ffffff" rx="6"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )


def round_(number):
    """Return a number without needless digits."""
    return round(number, 1)


def idea():
    """Return what it is, in one picture."""
    p = Picture("idea", "A program touches memory, and a database has the data", 318)
    p.box(8, 8, 444, 118, "#f2f6fb")
    p.text(18, 28, "your program: NumPy, pandas, Numba, C, …", bold=True)
    p.text(18, 50, "a = A[:]    # a numpy.ndarray", 12.5, mono=True)
    fills = [EMPTY, BLUE, BLUE, EMPTY, EMPTY, ORANGE, BLUE, EMPTY, EMPTY, BLUE, EMPTY, EMPTY]
    for i, fill in enumerate(fills):
        p.box(18 + 35 * i, 60, 33, 28, fill, dashed=fill == EMPTY)
    for x, fill, words in (
        (18, BLUE, "loaded"),
        (104, ORANGE, "changed"),
        (198, EMPTY, "not in memory"),
    ):
        p.box(x, 100, 14, 14, fill, dashed=fill == EMPTY, round=2)
        p.text(x + 20, 112, words, 12.5)
    p.arrow((40, 196), (40, 132))
    p.text(50, 160, "when it is touched,")
    p.text(50, 176, "a block is loaded")
    p.arrow((260, 132), (260, 196))
    p.text(270, 160, "transaction.commit()", 12.5, mono=True)
    p.text(270, 176, "saves all, or nothing")
    p.box(8, 200, 444, 110, "#f3f7f0")
    p.text(18, 221, "ZODB: an object database, with all past states", bold=True)
    for i, what in enumerate(("local file", "ZEO server", "NEO cluster", "PostgreSQL, …")):
        p.box(18 + 107 * i, 232, 102, 30, EMPTY, what)
    p.text(18, 284, "larger than RAM; on a cluster, larger than each disk;")
    p.text(18, 301, "many processes, each of which sees one consistent state")
    return p


def views():
    """Return what a view shows, and when."""
    p = Picture("views", "What the views of two programs show, from the top down in time", 452)
    left, right = 18, 242
    p.text(left, 24, "program 1", bold=True)
    p.text(right, 24, "program 2", bold=True)
    p.line(230, 10, 230, 410, dashed=True)

    def step(x, y, code, shown, fill, note=""):
        p.text(x, y, code, 12, mono=True)
        p.box(x, y + 8, 34, 24, fill, shown)
        p.text(x + 42, y + 24, note, 12, GREY)

    step(left, 50, "a = A[:3]", "0", BLUE, "the last commit")
    step(right, 50, "b = A[:3]", "0", BLUE, "the last commit")
    step(left, 104, "a[0] = 1", "1", ORANGE, "its own change")
    step(right, 104, "b[0]", "0", BLUE, "not a change of others")
    step(left, 158, "transaction.commit()", "1", BLUE, "saved")
    step(right, 212, "b[0]", "0", BLUE, "still its own state")
    step(right, 266, "transaction.begin()", "1", BLUE, "the newest state")
    p.arrow((136, 178), (196, 178), (196, 286), (236, 286))
    p.text(100, 240, "at its next", 12, GREY)
    p.text(100, 255, "boundary", 12, GREY)
    step(left, 320, "a[0] = 7", "7", ORANGE, "its own change")
    step(right, 320, "b[0]", "1", BLUE)
    step(left, 374, "transaction.abort()", "1", BLUE, "forgotten")
    step(right, 374, "b[0]", "1", BLUE)
    for x, fill, words in (
        (18, BLUE, "as in the database"),
        (190, ORANGE, "changed, not yet saved"),
    ):
        p.box(x, 422, 14, 14, fill, round=2)
        p.text(x + 20, 434, words, 12.5)
    return p


def row(p, y, cells, width=44):
    """Draw a file, record by record."""
    x = 18
    for text, fill, factor in cells:
        p.box(x, y, width * factor - 3, 30, fill, text, 12, dashed=fill == EMPTY, round=2)
        x += width * factor
    return x


def commit():
    """Return what a commit writes."""
    p = Picture("commit", "A commit appends the changed blocks to the file", 330)
    p.text(18, 24, "the array, in blocks of 2 MiB", bold=True)
    for i in range(6):
        p.box(18 + 62 * i, 34, 59, 32, ORANGE if i in (1, 4) else BLUE, f"block {i}", 12)
    p.text(18, 86, "a[…] = … changed a few bytes in two of them", 12.5, GREY)
    p.text(18, 118, "the file before", bold=True)
    row(p, 128, [(str(i), BLUE, 0.8) for i in range(6)] + [("table", "#e8eef7", 1.1)])
    p.text(18, 190, "the file after", bold=True)
    end = row(
        p,
        200,
        [(str(i), EMPTY if i in (1, 4) else BLUE, 0.8) for i in range(6)]
        + [("table", "#e8eef7", 1.1), ("1", ORANGE, 0.8), ("4", ORANGE, 0.8)],
    )
    p.line(end - 73, 236, end - 73, 246)
    p.line(end - 73, 246, end - 3, 246)
    p.line(end - 3, 236, end - 3, 246)
    p.text(end - 38, 262, "appended, and synced", 12.5, anchor="middle")
    p.text(18, 262, "The previous 1 and 4 stay:", 12.5)
    p.text(18, 279, "past states and readers have them", 12.5)
    p.text(18, 312, "The last step of the write makes both count at once, or neither.", 12.5, GREY)
    return p


def pack():
    """Return what pack and trim give back."""
    p = Picture("pack", "A file after commits, after a trim and after a pack", 312)
    old, new, small = "#e9c9a6", BLUE, "#e8eef7"
    p.text(18, 24, "after three commits of the same two blocks", bold=True)
    cells = [("1", old, 1), ("2", old, 1), ("o", small, 0.5)] * 2 + [
        ("1", new, 1),
        ("2", new, 1),
        ("o", small, 0.5),
    ]
    row(p, 34, cells, 56)
    p.text(18, 104, "after wendelin trim", bold=True)
    row(p, 114, [("", EMPTY, f) if fill == old else (t, fill, f) for t, fill, f in cells], 56)
    p.text(18, 162, "holes: the same length, less of the disk; small objects stay", 12.5, GREY)
    p.text(18, 196, "after wendelin pack", bold=True)
    row(p, 206, cells[6:], 56)
    p.text(18, 254, "a new file, aligned; it needs room for both meanwhile", 12.5, GREY)
    keys = (
        (18, old, "previous revisions"),
        (166, new, "present ones"),
        (282, small, "small objects"),
    )
    for x, fill, words in keys:
        p.box(x, 282, 14, 14, fill, round=2)
        p.text(x + 20, 294, words, 12.5)
    return p


def cluster():
    """Return the processes of a cluster."""
    p = Picture("cluster", "Clients, and a ZEO server or a NEO cluster", 300)
    for i in range(3):
        p.box(18 + 146 * i, 10, 132, 44, BLUE, "client\nits own pages", 12.5)
        p.arrow((84 + 146 * i, 54), (84 + 146 * i, 88))
    p.box(8, 92, 444, 84, "#f3f7f0")
    p.text(18, 112, "ZEO: one machine", bold=True)
    p.text(442, 112, "zeo://HOST:PORT", 12, anchor="end", mono=True)
    p.box(18, 122, 200, 44, EMPTY, "ZEO server")
    p.arrow((218, 144), (258, 144))
    p.box(262, 122, 180, 44, EMPTY, "Data.fs on its disk")
    p.text(18, 198, "or", 13, GREY)
    p.box(8, 208, 444, 84, "#f2f6fb")
    p.text(18, 228, "NEO: many machines", bold=True)
    p.text(442, 228, "neo://NAME@MASTER", 12, anchor="end", mono=True)
    p.box(18, 238, 92, 44, EMPTY, "masters", 12.5)
    for i in range(3):
        p.box(122 + 108 * i, 238, 104, 44, EMPTY, "storage node\nand its disk", 12)
    return p


def logo():
    """Return the logo: an array, some of whose blocks are in memory, and one is changed."""
    p = Picture("logo", "wendelin.core", 96, 96)
    fills = [DEEP, DEEP, "#dbe5f3", DEEP, ORANGE, DEEP, "#dbe5f3", DEEP, DEEP]
    for i, fill in enumerate(fills):
        x, y = 6 + 29 * (i % 3), 6 + 29 * (i // 3)
        p.parts.append(f'<rect x="{x}" y="{y}" width="26" height="26" rx="4" fill="{fill}"/>')
    return p


PICTURES = idea, views, commit, pack, cluster, logo

if __name__ == "__main__":
    for picture in PICTURES:
        drawn = picture()
        (HERE / f"{drawn.name}.svg").write_text(drawn.svg())
