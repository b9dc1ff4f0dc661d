"""What was measured, as a Markdown table, a picture, and in a page of the docs."""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

from peers import PEERS
from works import WORKS, Row

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


@dataclass
class Report:
    """The values of a run: those of a side are in the order of the runs, so pairs are."""

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
        """Return how fast we are, as a part of the peer, for each pair: more is better.

        Empty where it says nothing: the peer's is 0.
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

    # ---- table ----

    def table(self) -> str:
        """Return a Markdown table; medians, a column for each library that was there."""
        peers = [p for p in PEERS if any(p in sides for sides in self.values.values())]
        head = ["work", "wendelin.core", "peer", "ratio", "target", *peers]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name, row in self.rows():
            cells = [self._median(row, side) for side in ("wendelin", row.peer, *peers)]
            if name in self.skipped:
                cells[:2] = [f"skipped: {self.skipped[name]}", ""]
                ratio = ""
            else:
                cells[1] = f"{row.peer} {cells[1]}"
                ratios = self.ratios(row)
                ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            lines.append([row.figure, *cells[:2], ratio, row.at_least, *cells[2:]])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _median(self, row: Row, side: str) -> str:
        values = self.values.get(row.figure, {}).get(side)
        if not values:
            return ""
        value = statistics.median(values)
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    def markdown(self) -> str:
        """Return the table, under what was run and where."""
        return f"{fill(f'{self.title}. {self.machine}.', 100)}\n\n{self.table()}"

    def write_into(self, page: Path) -> None:
        """Replace what is between BEGIN and END in a page."""
        before, _, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{page} has no lines {BEGIN} and {END}")
        page.write_text(
            f"{before}{BEGIN}\n{self.markdown()}\n\n{meanings(self.works)}\n{END}{after}"
        )

    # ---- picture ----

    def draw(self, path: Path) -> None:
        """Draw the ratios: a bar a row, a point a pair, a line what the issue asks for."""
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt

        rows = [(row, self.ratios(row)) for name, row in self.rows() if name not in self.skipped]
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
