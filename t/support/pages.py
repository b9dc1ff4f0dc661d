"""Pages of the documentation: their code blocks run as a reader would run them; their links.

Blocks of a page run in order, in one process and one folder. Where the text says "in a new
process", a new process begins. By language:

| ```python     | runs |
| ```pycon      | runs, and what it shows is compared, as doctest does |
| ```sh         | runs in a shell, in the folder of the process; PATH has this Python's programs |
| ```console    | its commands ("$ command") run so, one by one; what they print is compared |
| ```text       | is shown, as a picture or the output of something |

A block of no language is refused, as it may be code. A block after "In `NAME`:" is a file, and does
not run; a zeo.conf is read, as a ZEO server reads it. Comments before a block, or in a page:

- `<!-- not run: why -->`: the next block is not run.
- `<!-- command: name -->`: the next block is not run here; CI runs it, or a person does.
- `<!-- runs with NAME -->`: what follows, to the end of the section, runs apart, and only if that
  package or program is installed. Before the first section, it is all to the end of the page.
- `<!-- runs with a server -->`: the same, with a database on a server: `url` is its URL, in sh
  $url.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: pages where the code of each library runs apart: t/docs/test_coming_from.py
BY_LIBRARY = {"docs/coming-from.md"}

_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.M | re.S)
_FILE = re.compile(r"In\s+`([\w.-]+)`:\s*\Z")
_PART = re.compile(r"^<!-- runs with (.+?) -->$", re.M)
_SECTION = re.compile(r"^##+ ", re.M)
_LEFT_OUT = re.compile(r"<!-- (?:not run|command): .+? -->\s*\Z", re.S)
_LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")

_PROLOGUE = r"""
import doctest, os, re, subprocess
space = {"__name__": "__main__"}
if "url" in os.environ:
    space["url"] = os.environ["url"]

def python(source, name, line):
    exec(compile(chr(10) * line + source, name, "exec"), space)

FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE

def pycon(source, name, line):
    test = doctest.DocTestParser().get_doctest(source, space, name, name, line)
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS).run(test, clear_globs=False)
    space.update(test.globs)
    assert tried and not failed, (name, line)

def sh(source, name, line):
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", source])
    assert done.returncode == 0, (name, line, source)

def console(source, name, line):
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", source, re.M)
    assert commands, (name, line)
    for command, expected in commands:
        done = subprocess.run(
            ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        same = doctest.OutputChecker().check_output(expected, done.stdout, FLAGS)
        assert same, (name, line, command, done.stdout)

def file(source, name):
    with open(name, "w") as f:
        f.write(source)
    if name == "zeo.conf":
        from ZEO.runzeo import ZEOOptions
        ZEOOptions().realize(["-C", name])
"""
_RUN = {"python", "pycon", "sh", "console"}
_SHOWN = {"text"}


class PageError(Exception):
    """A page is not as it should be."""


@dataclass(frozen=True)
class Block:
    """A code block; `before` is the text after the previous block, `line` is where it begins."""

    language: str
    code: str
    before: str
    line: int


@dataclass(frozen=True)
class Part:
    """A part of a page, or all of it, that runs by itself."""

    name: str  # of the page
    text: str
    needs: str = ""  # a package, or "a server"

    def __str__(self):
        return f"{self.name} with {self.needs}" if self.needs else self.name


def name_of(page):
    """Return the name of a page in tests."""
    return str(page.relative_to(ROOT))


def parts():
    """Return the parts of all pages: of each page, parts that need something, and all the rest.

    The lines of a part have the numbers that they have in the page.
    """
    result = []
    for page in PAGES:
        if name_of(page) in BY_LIBRARY:
            continue
        text = rest = page.read_text()
        for found in _PART.finditer(text):
            in_section = _SECTION.search(text, 0, found.start())
            end = _SECTION.search(text, found.end()) if in_section else None
            part = slice(found.start(), end.start() if end else len(text))
            rest = rest[: part.start] + re.sub(".", " ", text[part]) + rest[part.stop :]
            before = "\n" * text.count("\n", 0, part.start)
            result.append(Part(name_of(page), before + text[part], found.group(1)))
        result.append(Part(name_of(page), rest))
    return [part for part in result if blocks(part.text)]


def blocks(text):
    """Return the code blocks of a text, without directives of the site."""
    result, last = [], 0
    for match in _FENCE.finditer(text):
        indent, language, code = match.groups()
        before, last = text[last : match.start()], match.end()
        if not language.startswith("{"):
            code = re.sub(f"^{indent}", "", code, flags=re.M)
            result.append(Block(language, code, before, text.count("\n", 0, match.start()) + 1))
    return result


def programs(part):
    """Return the Python programs that run a part; each has a process of its own.

    Raises
    ------
    PageError
        A block has a language that does not run, and no comment that says why.
    """
    result, program = [], ""
    for block in blocks(part.text):
        if _LEFT_OUT.search(block.before):
            continue
        if "in a new process" in block.before and program:
            result.append(program)
            program = ""
        is_file = _FILE.search(block.before)
        if is_file:
            program += f"file({block.code!r}, {is_file.group(1)!r})\n"
        elif block.language in _RUN:
            program += f"{block.language}({block.code!r}, {part.name!r}, {block.line})\n"
        elif block.language not in _SHOWN:
            what = repr(block.language) if block.language else "no language"
            raise PageError(f"{part}:{block.line}: a block of {what} does not run")
    return [*result, program] if program else result


def _path():
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def installed(name):
    """Say whether there is a package, or a program, of this name."""
    return name == "" or find_spec(name) is not None or shutil.which(name, path=_path()) is not None


def run(part, folder, **env):
    """Run a part in a folder."""
    for program in programs(part):
        done = subprocess.run(
            [sys.executable, "-c", _PROLOGUE + program],
            cwd=folder,
            env=os.environ | env | {"PATH": _path()},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if done.returncode != 0:
            raise PageError(f"{part}: {done.stdout}{done.stderr}")


# ---- links ----


def _prose(text):
    """Return a text without code and comments."""
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", _FENCE.sub("", text), flags=re.S)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h) for h in headings]
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in plain}


def broken_links(page):
    """Return the links of a page, within the project, that lead nowhere."""
    broken = []
    for link in _LINK.findall(_prose(page.read_text())):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        found = target.is_relative_to(ROOT) and target.exists()
        if found and anchor:
            found = target.suffix == ".md" and anchor in anchors(target)
        if not found:
            broken.append(link)
    return broken
