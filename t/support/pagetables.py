"""Tables in pages of the docs, which programs here write: each between two lines of its own."""

from pathlib import Path


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what is between two lines of a page.

    Raises
    ------
    SystemExit
        The page does not have them.
    """
    before, found, rest = page.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{page} has no lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
