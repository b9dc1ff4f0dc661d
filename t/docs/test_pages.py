"""The code blocks of README and docs run, and links lead somewhere. How: see pages.py.

A page that needs a package which `test` does not install runs in the environment `docs` of tox.
"""

import os
import re
import tomllib
from itertools import chain
from pathlib import Path

import click
import pytest
from support import pages, storages

from wendelin.cli.program import wendelin

pytestmark = [pytest.mark.slow, pytest.mark.once, pytest.mark.formats]

#: whose names are public, and those of their names that a program does not use itself
PACKAGES = (
    "wendelin",
    "wendelin.bigarray",
    "wendelin.bigfile",
    "wendelin.ragged",
    "wendelin.sparse",
    "wendelin.xarray",
    "wendelin.zarr",
    "wendelin.zarr.dask",
)
INSIDE = {
    "__version__",
    "DIMENSIONS",
    "DatasetAccessor",
    "Engine",
    "ZarrParts",
    "ZarrValue",
    "is_matrix",
}
FOLDERS = ("bigfile", "lib", "wendelin", "demo")
#: where tox -e docs has built the site
SITE = os.environ.get("WENDELIN_CORE_TEST_SITE", "")

PARTS = pages.parts()
FOR_A_SERVER = [part for part in PARTS if part.needs == "a server"]
FOR_ALL = [part for part in PARTS if part.needs != "a server"]
#: needs of pages that take many seconds and are the same everywhere: they run in one environment
ONCE = {"gdb"}


@pytest.mark.parametrize("part", FOR_ALL, ids=str)
def test_code_blocks_run(part, tmp_path):
    if not pages.installed(part.needs):
        pytest.skip(f"{part.needs} is not installed")
    if part.needs in ONCE and not SITE:
        pytest.skip("run by tox -e docs")
    if part.needs == "py-spy" and os.geteuid() != 0 and may_not_trace():
        pytest.skip("only root may look into other processes here")
    pages.run(part, tmp_path)


def may_not_trace():
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    return scope.exists() and scope.read_text().strip() != "0"


@pytest.mark.skipif(not storages.kind().has_server, reason="a file has one client")
@pytest.mark.parametrize("part", FOR_A_SERVER, ids=str)
def test_code_blocks_run_with_a_server(part, testdb, tmp_path):
    pages.run(part, tmp_path, url=testdb.url)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_links(page):
    assert pages.broken_links(page) == []


def test_all_that_pages_need_is_installed_for_them():
    """Except PyTorch, which is as large as all else together: its page runs if it is installed."""
    needed = {part.needs for part in FOR_ALL} - {"", "torch", "gdb"}
    names = {"sklearn": "scikit-learn", "yaml": "PyYAML", "Zope2": "Zope"}
    tox = (pages.ROOT / "tox.ini").read_text()
    (docs,) = re.findall(r"^\[testenv:docs\]$.*?^commands", tox, re.M | re.S)
    assert "    all\n    test\n" in docs
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text())["project"]
    listed = [*chain(*project["optional-dependencies"].values()), *map(str.strip, docs.split("\n"))]
    installed = {re.split(r"[^\w-]", name)[0] for name in listed}
    assert {names.get(package, package) for package in needed} <= installed


def test_names_of_the_inside_are_right():
    """The names by which development.md tells a page's way are in the modules that it names."""
    text = (pages.ROOT / "docs/development.md").read_text()
    way = text[text.index("## A page's way") : text.index("One stack shows")]
    # `module.name`, `module.Class.name`; `folder.module.…` where folders have a module of that name
    names = re.findall(r"`((?:[a-z]\w*\.)?[a-z]\w*)\.((?:[A-Z]\w*\.)*)(\w+)`", way)
    assert len(names) > 40
    for module, classes, name in names:
        sources = [
            path
            for folder in ("bigfile", "lib", "wendelin/bigarray")
            for path in (pages.ROOT / folder).rglob(f"{module.replace('.', '/')}.py*")
            if path.suffix in (".py", ".pyx")
        ]
        assert len(sources) == 1, module
        code = sources[0].read_text()
        assert re.search(rf"^ *(cdef|def) .*\b{name}\(", code, re.M), (module, name)
        for cls in filter(None, classes.split(".")):
            assert re.search(rf"^class {cls}\b", code, re.M), (module, cls)


def test_architecture_has_all_modules_of_the_inside():
    """They are all modules of the two folders that architecture.md goes through."""
    text = (pages.ROOT / "docs/architecture.md").read_text()
    paths = chain(*((pages.ROOT / folder).rglob("*.py*") for folder in ("bigfile", "lib")))
    modules = {(path.parent.name, path.stem) for path in paths if path.suffix in (".py", ".pyx")}
    modules = {
        (folder, module)
        for folder, module in modules
        if module not in ("__init__", "mem", "calc", "utils", "xnumpy")  # the reference has helpers
    }
    assert len(modules) > 30
    assert {
        f"{folder}.{module}"
        for folder, module in modules
        if f"`{module}`" not in text and f"`{folder}.{module}`" not in text
    } == set()


def test_all_that_is_public_is_in_the_reference():
    """The reference says that names that are not in it may change."""
    reference = (pages.ROOT / "docs/reference.rst").read_text()
    listed = set(
        re.findall(
            r"^\.\. (?:auto|py:)(?:class|data|exception|function):: (\S+?)(?:\(\))?$",
            reference,
            re.M,
        )
    )
    for package in map(pytest.importorskip, PACKAGES):  # tox -e docs has what they need
        for name in set(package.__all__) - INSIDE:
            ends = (
                f"wendelin.{name}",
                f"{package.__name__}.{name}",
                f"{package.__name__}.virtmem.stats.{name}",
            )
            assert not listed.isdisjoint(ends), ends


def test_all_variables_of_the_environment_are_in_the_reference():
    reference = (pages.ROOT / "docs/reference.rst").read_text()
    sources = chain(*((pages.ROOT / folder).rglob("*.py*") for folder in FOLDERS))
    code = "".join(path.read_text() for path in sources if path.suffix in (".py", ".pyx"))
    names = set(re.findall(r"[\"'](WENDELIN_\w*[A-Z])[\"']", code))
    assert len(names) > 5
    assert {name for name in names if f"``{name}``" not in reference} == set()
    text = "".join(page.read_text() for page in pages.PAGES)
    assert set(re.findall(r"\bWENDELIN_(?!CORE_TEST)\w+", text)) - names == set()


def test_all_commands_and_options_of_pages_exist():
    """All commands are in their page, and no page has an option that its command does not have."""
    context = click.Context(wendelin)
    commands = {
        name: wendelin.get_command(context, name) for name in wendelin.list_commands(context)
    }
    text = (pages.ROOT / "docs/command-line.md").read_text()
    assert {name for name in commands if not re.search(rf"[` ]{name}\b", text)} == set()
    options = {
        name: {"--help", *chain(*(p.opts + p.secondary_opts for p in command.params))}
        for name, command in commands.items()
    }
    found = 0
    for page in pages.PAGES:
        for name, rest in re.findall(r"\bwendelin ([a-z]+)( [^\n|`;()<>]*)", page.read_text()):
            for option in re.findall(r"(?<= )--[a-z][\w-]*", rest):
                assert option in options.get(name, ()), (page, name, option)
                found += 1
    assert found > 8


@pytest.mark.skipif(not SITE, reason="run by tox -e docs")
def test_site_fetches_nothing():
    """It is built without a network, and read without one."""
    fetched = re.compile(
        r"<(?:script|img|link|iframe)[^>]*(?:https?:)?//[^>]*>"
        r"|url\(['\"]?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*"
    )
    files = [file for file in Path(SITE).rglob("*") if file.suffix in (".html", ".css")]
    assert len(files) > 10
    found = {m for file in files for m in fetched.findall(file.read_text())}
    assert not found


@pytest.mark.skipif(not SITE, reason="run by tox -e docs")
def test_examples_of_the_reference_are_code():
    """And nothing has the docstring of its type.

    An indented example without :: before it would be a quotation: text that runs together.
    """
    text = (Path(SITE) / "reference.html").read_text()
    assert "<blockquote>" not in text
    assert "Convert a number or string" not in text  # that of int
    # napoleon takes "The container: an object" as a type and a text
    assert ">Type<" not in text


class TestPages:
    """This class checks that pages.py skips nothing in silence."""

    def programs(self, text):
        return pages.programs(pages.Part("x.md", text))

    def test_block_that_cannot_run(self):
        for language in "rust", "cython", "bash":
            with pytest.raises(pages.PageError, match=language):
                self.programs(f"\n```{language}\nx\n```\n")
        with pytest.raises(pages.PageError, match=r"x\.md:2: a block of no language"):
            self.programs("\n```\nx\n```\n")
        assert not self.programs("\n```text\nx\n```\n")

    def test_block_that_does_not_run_says_why(self):
        assert not self.programs("\n<!-- not run: it waits for ever -->\n```sh\nx\n```\n")
        assert self.programs("\n<!-- not run: -->\n```sh\nx\n```\n")

    @pytest.mark.parametrize(
        "code",
        [
            "```python\nassert False\n```\n",
            "```pycon\n>>> 1 + 1\n3\n```\n",
            "```sh\nfalse | true\n```\n",
            "```console\n$ echo 1\n1\n$ echo 2\n1\n```\n",
            "```console\nls\n```\n",
            "In `zeo.conf`:\n\n```text\n<zeo>\n  adress 1\n</zeo>\n```\n",
        ],
    )
    def test_failure_is_seen(self, code, tmp_path):
        with pytest.raises(pages.PageError):
            pages.run(pages.Part("x.md", f"\n{code}"), tmp_path)

    def test_file_and_new_process(self, tmp_path):
        text = """
In `one.py`:

```python
x = 1
```

```python
import one
y = 2
```

Now, in a new process:

```sh
grep -q "x = 1" one.py
```

```python
import one
assert "y" not in globals() and one.x == 1
```
"""
        pages.run(pages.Part("x.md", text), tmp_path)

    def test_parts(self, tmp_path, monkeypatch):
        code = "```sh\n{}\n```\n"
        one, two = tmp_path / "one.md", tmp_path / "two.md"
        one.write_text(f"""
{code.format("first")}
## A
{code.format("second")}
<!-- runs with numpy -->
{code.format("third")}
## B
{code.format("fourth")}""")
        two.write_text(f"<!-- runs with a server -->\n## A\n{code.format('fifth')}")
        monkeypatch.setattr(pages, "ROOT", tmp_path)
        monkeypatch.setattr(pages, "PAGES", [one, two])
        found = {str(part): part for part in pages.parts()}
        assert list(found) == ["one.md with numpy", "one.md", "two.md with a server"]
        words = [[block.code.strip() for block in pages.blocks(p.text)] for p in found.values()]
        assert words == [["third"], ["first", "second", "fourth"], ["fifth"]]
        (third,) = pages.blocks(found["one.md with numpy"].text)
        assert one.read_text().splitlines()[third.line] == "third"

    def test_broken_links(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pages, "ROOT", tmp_path)
        page = tmp_path / "x.md"
        page.write_text(
            "# A b, `c`\n[1](x.md) [2](#a-b-c) [3](y.md) [4](x.md#no)\n```\n[5](z)\n```\n`[6](z)`"
        )
        assert pages.broken_links(page) == ["y.md", "x.md#no"]
