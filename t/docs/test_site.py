"""Pictures are what their programs draw; links of README work on a package index."""

import importlib.util
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from support import ROOT, pages

pytestmark = [pytest.mark.once, pytest.mark.formats]


def program(name):
    """Return a program of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_diagrams_are_what_is_drawn():
    drawn = [picture() for picture in program("draw_diagrams").PICTURES]
    assert len(drawn) > 3
    for picture in drawn:
        assert (ROOT / f"docs/{picture.name}.svg").read_text() == picture.svg(), picture.name


def test_charts_have_the_numbers_of_the_tables():
    charts = program("draw_charts")
    for name, (page, marker, _, figures) in charts.CHARTS.items():
        rows = charts.table(page, marker)
        values = [value for figure in figures for _, value in charts.bars(rows, figure)]
        shown = re.findall(r"<text[^>]*>([\d.]+)</text>", (ROOT / f"docs/{name}.svg").read_text())
        assert shown == values, f"{name}.svg: run python docs/draw_charts.py"
        assert len(values) > 8


def test_curves_have_the_numbers_of_the_tables():
    """A picture of curves has its figures as its description."""
    charts = program("draw_charts")
    for name, (page, panels) in charts.CURVES.items():
        texts = [charts.summary(charts.lines(page, panel)[0]) for panel in panels]
        assert all(text.count(" at ") > 2 for text in texts)
        drawn = re.search(
            r"<dc:description>(.*?)</dc:description>", (ROOT / f"docs/{name}.svg").read_text()
        )
        assert drawn[1] == " | ".join(texts), f"{name}.svg: run python docs/draw_charts.py"


def test_every_picture_is_in_a_page():
    shown = "".join(page.read_text() for page in pages.PAGES) + (ROOT / "docs/conf.py").read_text()
    for picture in [*(ROOT / "docs").rglob("*.svg"), *(ROOT / "docs").rglob("*.png")]:
        assert picture.name in shown, picture


def test_every_page_is_in_the_contents():
    """The contents are those of the site; how-tos are in their own list, too."""
    contents = (ROOT / "docs/index.md").read_text()
    inside = set(re.findall(r"^[\w/-]+$", contents, re.M))
    listed = (ROOT / "docs/howto/index.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs").with_suffix(""))
        assert name in inside or name == "index" or f"{page.stem}\n" in toctrees(page), name
        assert page.parent.name != "howto" or page.stem == "index" or f"({page.name})" in listed


def toctrees(page):
    """Return the toctrees of the other pages in a page's folder."""
    others = [other.read_text() for other in page.parent.glob("*.md") if other != page]
    return "".join(re.findall(r"```{toctree}(.*?)```", "".join(others), re.S))


def test_links_on_a_package_index():
    """There, README stands alone: its links lead to files of the repository."""
    about = metadata("wendelin.core")
    urls = dict(line.split(", ") for line in about.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Source", "Changelog"} <= set(urls)
    text = about.get_payload()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    for picture, link in links:
        if not link.startswith("#"):
            assert re.match(r"https://", link), link
        found = re.match(rf"{re.escape(urls['Source'])}/-/(\w+)/master/([^#]+)", link)
        if found:
            assert found[1] == ("raw" if picture else "blob")
            assert Path(ROOT, found[2]).is_file(), link
    named = set(pages._LINK.findall(pages._prose((ROOT / "README.md").read_text())))
    assert len(named) == len({link for _, link in links}), "it is installed from other sources"
