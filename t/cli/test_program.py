"""The program wendelin: demo, help, completion, progress, and its errors."""

import contextlib
import os
import pty
import subprocess
from pathlib import Path

import numpy as np
import pytest
import transaction
from support import ROOT
from support.cli import PROGRAM, wendelin
from support.clidata import database, filled
from ZODB.FileStorage import FileStorage
from ZODB.utils import p64

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

MIB = 1 << 20


def test_demo(call, tmp_path, testdb):
    done = wendelin("demo", "--worksize", "8M", cwd=tmp_path)
    assert done.stdout.startswith("mean:\t")
    assert "over 8 MB" in done.stdout
    assert done.stderr == ""
    told = wendelin("demo", "--json", "--worksize", "1M", testdb.url).json
    assert told["bytes"] == MIB
    assert call("head", "-n", "1", f"{testdb.url}#signalv").stdout == "0.0\n"


COMMANDS = [
    *("append", "attrs", "cache", "cat", "copy", "cp", "demo", "du", "export", "head", "import"),
    *(
        "info",
        "log",
        "ls",
        "mkdir",
        "mount",
        "mv",
        "pack",
        "rm",
        "stats",
        "tag",
        "trim",
        "undo",
        "verify",
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_are_right(call, command):
    """The command line takes each example; none of them is run."""
    text = call(command, "--help").stdout
    assert f"Usage: wendelin {command} " in text
    examples = [
        line.strip()
        for line in text[text.index("Examples:") :].splitlines()[1:]
        if line.strip().startswith("wendelin")
    ]
    assert len(examples) >= 2
    import shlex

    from wendelin.cli.program import wendelin as program

    for example in examples:
        words = shlex.split(example.partition(" | ")[0])
        assert words[:2] == ["wendelin", "copy" if command == "cp" else command]  # an alias
        with program.make_context("wendelin", words[1:]) as ctx:
            found = program.get_command(ctx, command)
            found.make_context(command, words[2:], parent=ctx).close()


def test_the_program_alone(call):
    text = wendelin("--help").stdout
    assert [
        line.split()[0]
        for line in text.partition("Commands:")[2].splitlines()[1 : 1 + len(COMMANDS)]
    ] == COMMANDS
    assert call().stdout.startswith("Usage:")
    assert "3." in call("--version").stdout
    assert "No such command 'what'" in call("what", code=2).stderr
    assert "No such option" in call("ls", "--what", code=2).stderr


def test_errors_name_the_command(call, tmp_path):
    """So do errors that are not of a wrong call."""
    assert call("what", code=2).stderr.startswith("wendelin: error: ")
    for args, code in [
        (("cat", "--what"), 2),
        (("cat", tmp_path / "x.fs#x"), 1),
        (("export", f"{tmp_path}/x.fs#x", "x.what"), 2),
        (("demo", "foo://x"), 1),
    ]:
        assert call(*args, code=code).stderr.startswith(f"wendelin {args[0]}: error: ")
    error = wendelin("cat", "x.fs#x", cwd=tmp_path, code=1).stderr
    assert error.startswith("wendelin cat: error: ")


def test_a_bug_is_shown_with_a_traceback_if_asked_for(call, tmp_path, monkeypatch):
    from wendelin.cli import show

    def bug(root, address, rows=None):
        raise KeyError("a bug")

    with database(tmp_path / "x.fs") as root:
        root["x"] = filled((3,))
        transaction.commit()
    args = ("cat", f"{tmp_path}/x.fs#x")
    call(*args)
    monkeypatch.setattr(show, "_selected", bug)
    assert call(*args, code=1).stderr == "wendelin cat: error: KeyError: 'a bug'\n"
    monkeypatch.setenv("WENDELIN_DEBUG", "0")
    call(*args, code=1)
    monkeypatch.setenv("WENDELIN_DEBUG", "1")
    with pytest.raises(AssertionError, match="Traceback") as e:  # the fixture refuses a traceback
        call(*args, code=1)
    told = str(e.value).partition("assert")[0]
    assert "in bug" in told
    assert "wendelin cat: error: KeyError: 'a bug'\n" in told


def test_completion(tmp_path):
    env = os.environ | {
        "_WENDELIN_COMPLETE": "bash_complete",
        "COMP_WORDS": "wendelin ex",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([PROGRAM], env=env, capture_output=True, text=True)
    assert done.stdout == "plain,export\n"
    env |= {"COMP_WORDS": "wendelin ls da", "COMP_CWORD": "2"}
    done = subprocess.run([PROGRAM], env=env, capture_output=True, text=True)
    assert done.stdout == "file,da\n"
    # as docs/command-line.md has it
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    line = 'eval "$(_WENDELIN_COMPLETE=bash_source wendelin)"; complete -p wendelin'
    assert line.partition(";")[0] in (ROOT / "docs/command-line.md").read_text()
    done = subprocess.run(
        ["bash", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert "wendelin" in done.stdout, done.stderr
    env |= {"_WENDELIN_COMPLETE": "zsh_source"}
    assert "compdef" in subprocess.run([PROGRAM], env=env, capture_output=True, text=True).stdout


def on_terminal(*args):
    """Run the program with a terminal for its errors; return what it said there."""
    ours, theirs = pty.openpty()
    wide = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(
        [PROGRAM, *args], stdout=subprocess.DEVNULL, stderr=theirs, env=wide
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: it has ended
            while piece := os.read(ours, 4096):
                said += piece
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode()


def test_progress_is_shown_on_a_terminal(call, testdb, tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(3 * MIB))
    url = f"{testdb.url}#x"
    said = on_terminal("import", "--step", "1M", "--dtype", "u1", f"{tmp_path}/x.raw", url)
    assert "3 MiB of 3 MiB" in said
    assert call("export", url, tmp_path / "y.raw").stderr == ""


# FileStorage leaves a file open that is not one of its own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("command", ["ls", "verify", "info", "cat", "head", "export"])
def test_what_cannot_be_opened(call, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("text.fs").write_text("this is not a database, and long enough to be looked at")
    FileStorage("empty.fs").close()
    more = ["y.npy"] if command == "export" else []

    def error(url, code=1):
        path = "" if command in ("ls", "verify") else "#x"
        done = call(command, f"{url}{path}", *more, code=code)
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "x.fs: No such file" in error("x.fs")
    assert "x.fs: No such file" in error("file://x.fs")
    assert "No such file" in error("nowhere/x.fs")
    assert "Is a directory" in error(".")
    assert "text.fs cannot be opened" in error("text.fs")
    assert "empty.fs is empty" in error("empty.fs")
    assert "schemes" in error("foo://x")
    assert "no ZEO server answers" in error("zeo://127.0.0.1:1?wait_timeout=1")
    assert "does not name a database" in error("#x" if command in ("ls", "verify") else "", code=2)
    assert sorted(f for f in os.listdir() if not f.startswith(("text", "empty"))) == []


def test_a_database_in_use(call, tmp_path):
    """A command that reads works; one that writes is told."""
    np.save(tmp_path / "x.npy", np.arange(3))
    with database(tmp_path / "x.fs") as root:
        root["x"] = filled((3,))
        transaction.commit()
        assert [r["path"] for r in call("ls", "--json", tmp_path / "x.fs").json] == ["x"]
        error = call("import", tmp_path / "x.npy", f"{tmp_path}/x.fs#y", code=1).stderr
        assert "x.fs is in use" in error
        read_only = f"file://{tmp_path}/x.fs?read_only=1"
        error = call("import", tmp_path / "x.npy", f"{read_only}#y", code=1).stderr
        assert "is read-only" in error


def test_moments():
    """A time means the end of its last unit: a day means the end of that day."""
    from datetime import datetime

    from wendelin.cli.arguments import MomentType
    from wendelin.cli.database import tid_time

    def at(text):
        tid = MomentType().convert(text, None, None)
        return tid_time(p64(int.from_bytes(tid, "big") + 1)).astimezone()

    for text, end in [
        ("2024-02-28", "2024-02-29"),
        ("2024-02-29T13", "2024-02-29T14:00"),
        ("2024-02-29T13:05", "2024-02-29T13:06"),
        ("2024-02-29 13:05:59", "2024-02-29T13:06"),
        ("2024-02-29T13:05:59.5", "2024-02-29T13:05:59.6"),
        ("2024-02-29T13:05:59.123456", "2024-02-29T13:05:59.123457"),
        ("2024-02-29T13:05:59.123456Z", "2024-02-29T13:05:59.123457+00:00"),
    ]:
        expected = datetime.fromisoformat(end).astimezone()
        assert abs((at(text) - expected).total_seconds()) < 2e-6, text
