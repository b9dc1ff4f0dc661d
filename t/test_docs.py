"""The code blocks of README and docs run, as a reader would run them.

Blocks of a file run in order, in one child process and one folder; where the text says that a
new process begins ("in a new process"), one does. ```python is run, ```pycon is compared as
doctest does; so is what the commands of ```console print, which begin with $. ```cython goes to the
file that the text before it names, ```sh with `cythonize` is run. `<!-- not run: why -->` before a
block leaves it out. What follows `<!-- runs with a server -->` in a section runs where the database
of tests is one's; `url` is its.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import storages

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.M | re.S)

WITH_SERVER = re.compile(r"^<!-- runs with a server -->$.*?(?=^## )", re.M | re.S)

PROLOGUE = """\
import doctest, sys
space = {"__name__": "__main__"}
def check(source, name):
    test = doctest.DocTestParser().get_doctest(source, space, name, name, 0)
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL | doctest.NORMALIZE_WHITESPACE
    failed, tried = doctest.DocTestRunner(optionflags=flags).run(test, clear_globs=False)
    space.update(test.globs)
    assert tried and not failed, name
"""


def programs(path: Path, text: str, folder: Path):
    """Yield ('python', program) and ('sh', command), in order; write files that blocks are."""
    program = ""
    last = 0
    for match in BLOCK.finditer(text):
        indent, language, code = match.groups()
        before = text[last : match.start()]
        last = match.end()
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        if "<!-- not run" in before:
            continue
        if "in a new process" in before and program:
            yield "python", program
            program = ""
        if language == "python":
            program += f"exec(compile({code!r}, {str(path)!r}, 'exec'), space)\n"
        elif language == "pycon":
            program += f"check({code!r}, {path.name!r})\n"
        elif language == "cython":
            (folder / re.findall(r"`(\w+\.pyx)`", before)[-1]).write_text(code)
        elif language == "console":
            yield "console", code
        elif language == "sh" and "cythonize" in code:
            yield "sh", code
    yield "python", program


def check_console(session, folder):
    """Run the commands of a session in a shell; compare what they print."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    commands = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.M)
    assert commands, session
    for command, expected in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        same = doctest.OutputChecker().check_output(expected, done.stdout, flags)
        assert same, f"{command}\n{done.stdout}"


def run(path, text, folder, prologue=PROLOGUE):
    for kind, code in programs(path, text, folder):
        if kind == "console":
            check_console(code, folder)
            continue
        if kind == "python":
            command = [sys.executable, "-c", prologue + code]
        else:
            tool, *args = code.split()
            assert tool == "cythonize"
            command = [sys.executable, "-m", "Cython.Build.Cythonize", *args]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md", "docs/command-line.md"])
def test_code_blocks_run(name, tmp_path):
    path = ROOT / name
    run(path, WITH_SERVER.sub("", path.read_text()), tmp_path)


@pytest.mark.skipif(not storages.kind().has_server, reason="a file has one client")
def test_code_blocks_run_with_a_server(testdb, tmp_path):
    path = ROOT / "docs/tutorial.md"
    (text,) = WITH_SERVER.findall(path.read_text())
    run(path, text, tmp_path, f"{PROLOGUE}space['url'] = {testdb.url!r}\n")


def test_every_block_is_recognized():
    """A block in a language that programs() does not know would be skipped in silence."""
    known = {"python", "pycon", "console", "cython", "sh"}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        languages = {m.group(2) for m in BLOCK.finditer(path.read_text())}
        assert languages <= known, path
