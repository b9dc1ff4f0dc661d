"""docs/coming-from.md: each library's code runs, in order, with one result; ours is not longer."""

import json
import re

import pytest
from support import ROOT, pages
from support.storages import ZeoDatabase

pytestmark = [pytest.mark.slow, pytest.mark.once, pytest.mark.formats]

PAGE = ROOT / "docs/coming-from.md"
OURS = "wendelin.core"
#: what each library's code needs
NEEDS = {
    "h5py": "h5py",
    "zarr": "zarr",
    "xarray": "netCDF4",
    "icechunk": "icechunk",
    OURS: "icechunk",  # for the environment docs, which has all
}

#: names of the results that the code of several libraries computes
_RESULTS = (
    *("unit", "past_sum", "total", "window", "mean", "shared", "filled", "names", "image"),
    *("row", "event", "prices", "lazy"),
)
_IMPORT = re.compile("(import|from) ")


def text_of(library):
    """Return the page with the blocks of one library and those of all; line numbers stay."""
    text = PAGE.read_text()
    return re.sub(
        r"(?:^\*\*([\w.]+)\*\*\n\n)?^```.*?^```$",
        lambda m: m.group() if m.group(1) in (None, library) else re.sub(".", " ", m.group()),
        text,
        flags=re.M | re.S,
    )


def tasks():
    """Return {task: {library: its lines of code}}, without imports."""
    result = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]:
        title = section.partition("\n")[0]
        blocks = re.findall(r"^\*\*([\w.]+)\*\*\n\n```\w+\n(.*?)^```$", section, re.M | re.S)
        if blocks:
            result[title] = {
                library: [line for line in code.splitlines() if line and not _IMPORT.match(line)]
                for library, code in blocks
            }
    return result


def test_there_are_25_tasks_and_ours_are_not_longer():
    assert len(tasks()) == 25
    for title, blocks in tasks().items():
        assert set(blocks) <= set(NEEDS)
        assert list(blocks)[-1] == OURS, title
        shortest = min(len(lines) for lines in blocks.values())
        assert len(blocks[OURS]) <= shortest, (title, blocks[OURS])


def run(library, folder, **env):
    """Run the code of a library; return its results."""
    names = ", ".join(f"{name!r}" for name in _RESULTS)
    last = f"""
```python
import json
with open("results", "w") as results:
    found = {{n: np.asarray(globals()[n]).tolist() for n in ({names},) if n in globals()}}
    json.dump(found, results)
```
"""
    pages.run(pages.Part(PAGE.name, text_of(library) + last), folder, MPLBACKEND="Agg", **env)
    return json.loads((folder / "results").read_text())


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    if not pages.installed("icechunk"):
        pytest.skip("not all libraries are installed: tox -e docs")
    folder = tmp_path_factory.mktemp("ours")
    server = ZeoDatabase(folder)
    try:
        found = run(OURS, folder, url=server.url)
    finally:
        ZeoDatabase.stop_server()
    assert sorted(found) == sorted(_RESULTS)
    return found


@pytest.mark.parametrize("library", [name for name in NEEDS if name != OURS])
def test_code_of_others_has_the_same_results(library, ours, tmp_path):
    found = run(library, tmp_path)
    assert len(found) >= 8
    assert found == {name: ours[name] for name in found}
