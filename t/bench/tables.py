"""Options that benchmarks share, and tables of figures.

A table goes into a page of docs/, between its markers; docs/draw_charts.py draws it.

It knows nothing of what is measured.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path


def shown(value: float) -> str:
    """Return a figure of three digits or, from 100 on, without a fraction."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def replace(page: Path, marker: str, content: str) -> None:
    """Replace what is between the markers of a page; SystemExit if there are none."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise SystemExit(f"{page} has no lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{content}\n{end}{after}")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --into."""
    parser.add_argument("--into", type=Path, metavar="PAGE", help="put the table into this page")


def add_only(parser: argparse.ArgumentParser, works: Iterable[str]) -> None:
    """Add --only: some of the works, in the order of the table."""
    works = list(works)

    def some(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(works):
            raise argparse.ArgumentTypeError(
                f"no work is called {', '.join(sorted(unknown))}: there are {', '.join(works)}"
            )
        return [name for name in works if name in names]

    parser.add_argument(
        "--only", type=some, default=works, metavar="WORK,...", help="do these works"
    )


def publish(
    options: argparse.Namespace, marker: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table, and put it into the page of --into."""
    print(text := markdown(head, rows))
    if options.into:
        replace(options.into, marker, text)
