"""What was measured, as Markdown tables, as a picture, and in a page of the docs."""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from peers import PEERS
from support.pagetables import put_between
from workload import PEER_TABLE, TABLES, WORKS, Row, Table


@dataclass
class Report:
    """All values; those of each side are in the order of the runs, so that they form pairs."""

    title: str
    machine: str
    works: list[str]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # figure -> side
    skipped: dict[str, str] = field(default_factory=dict)  # work -> why

    def add(self, side: str, values: dict[str, float]) -> None:
        """Add what a process has measured."""
        for figure, value in values.items():
            self.values.setdefault(figure, {}).setdefault(side, []).append(value)

    def rows(self) -> list[tuple[str, Row]]:
        """Return the rows of the table, each with its work."""
        return [(name, row) for name in self.works for row in WORKS[name].rows]

    def ratios(self, row: Row) -> list[float]:
        """Return our speed as a part of the peer's, for each pair: more is better.

        The list is empty if a value of the peer is 0, as a ratio says nothing then.
        """
        sides = self.values[row.figure]
        pairs = list(zip(sides["wendelin"], sides[row.peer], strict=True))
        if any(peer == 0 for _, peer in pairs):
            return []
        rate = row.figure.endswith("/s")
        return [ours / peer if rate else peer / ours for ours, peer in pairs]

    def json(self) -> dict[str, Any]:
        """Return all values."""
        return asdict(self)

    # ---- tables ----

    def tables(self) -> list[Table]:
        """Return the tables that have works of this report."""
        return [table for table in TABLES if self._rows_of(table)]

    def _rows_of(self, table: Table) -> list[tuple[str, Row]]:
        return [(name, row) for name, row in self.rows() if WORKS[name].table is table]

    def _lines(self, table: Table) -> list[list[str]]:
        """Return the head of a table, and its rows, with medians."""
        if table.columns:
            return [["work", *table.columns]] + [
                [row.figure, *(self._median(row, side) for side in table.columns)]
                for _, row in self._rows_of(table)
            ]
        # a column for each library that was there
        peers = [p for p in PEERS if any(p in sides for sides in self.values.values())]
        lines = [["work", "wendelin.core", "peer", "ratio", "target", *peers]]
        for name, row in self._rows_of(table):
            cells = [self._median(row, side) for side in ("wendelin", row.peer, *peers)]
            if name in self.skipped:
                cells[:2] = [f"skipped: {self.skipped[name]}", ""]
                ratio = ""
            else:
                cells[1] = f"{row.peer} {cells[1]}"
                ratios = self.ratios(row)
                ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            lines.append([row.figure, *cells[:2], ratio, row.at_least, *cells[2:]])
        return lines

    def _median(self, row: Row, side: str) -> str:
        values = self.values.get(row.figure, {}).get(side)
        if not values:
            return ""
        value = statistics.median(values)
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    def markdown(self, table: Table) -> str:
        """Return a table, below a text that says what was run, and where."""
        head, *lines = self._lines(table)
        rule = ["---", *["---:"] * (len(head) - 1)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
        return f"{fill(f'{self.title}. {self.machine}.', 100)}\n\n{text}"

    def write_into(self, page: Path) -> None:
        """Put the tables into their places in a page."""
        for table in self.tables():
            works = [name for name in self.works if WORKS[name].table is table]
            content = f"{self.markdown(table)}\n\n{meanings(works)}"
            put_between(page, table.begin, table.end, content)

    # ---- picture ----

    def draw(self, path: Path) -> None:
        """Draw the ratios: a bar for a row, a point for a pair, a line for what the issue asks."""
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt

        rows = [
            (row, self.ratios(row))
            for name, row in self._rows_of(PEER_TABLE)
            if name not in self.skipped
        ]
        rows = [(row, ratios) for row, ratios in rows if ratios][::-1]
        fig, ax = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.6), layout="constrained")
        for y, (row, ratios) in enumerate(rows):
            ax.barh(y, statistics.median(ratios), color="#4c78a8", height=0.6)
            ax.plot(ratios, [y] * len(ratios), "o", color="#1b2a41", ms=3)
            if row.at_least.replace(".", "").isdigit():
                ax.vlines(float(row.at_least), y - 0.4, y + 0.4, color="#f2a541", lw=2)
        ax.axvline(1, color="#e45756", lw=1)
        ax.set_yticks(range(len(rows)), [f"{row.figure}\nnext to {row.peer}" for row, _ in rows])
        ax.tick_params("y", labelsize=8)
        ax.set_xscale("log")
        ax.set_xlabel("speed as a part of the peer's (red: the same; yellow: what is asked for)")
        ax.set_title(self.title, fontsize=9)
        fig.savefig(path)


def meanings(works: list[str]) -> str:
    """Return what the figures of works mean, as a Markdown list."""
    items = []
    for name in works:
        work = WORKS[name]
        figures = "; ".join(figure.rpartition(",")[0] for figure in work.figures)
        text = " ".join(f"- **{name}** ({figures}): {work.run.__doc__}".split())
        items.append(fill(text, 100, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(items)
