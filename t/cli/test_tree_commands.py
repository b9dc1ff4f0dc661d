"""rm, mv, mkdir, append, attrs, log, undo, tag, pack, du, cp: compared with what groups show."""

import os
import re

import numpy as np
import pytest
from click.shell_completion import ShellComplete
from persistent.list import PersistentList

import wendelin
from wendelin.cli import copyobjects, output
from wendelin.cli.errors import Failure
from wendelin.cli.ls import COLUMNS
from wendelin.cli.program import wendelin as program
from wendelin.lib.zodb import dbopen

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

X = np.arange(12).reshape(6, 2)


@pytest.fixture
def url(testdb):
    with wendelin.open(testdb.url) as g:
        for name in "run/7/x", "run/7/y", "run/8/x", "top":
            g[name] = X
        g["run/7/x"].attrs["unit"] = "mV"
    return testdb.url


def paths(url):
    with wendelin.open(url, "r") as g:
        return [path for path, value in g.walk() if not isinstance(value, wendelin.Group)]


def test_rm(call, url):
    done = call("rm", f"{url}#run/*/x")
    assert done.stdout.splitlines() == [f"removed {url}#run/7/x", f"removed {url}#run/8/x"]
    assert paths(url) == ["top", "run/7/y"]
    assert "run is a group: -r removes it" in call("rm", f"{url}#run", code=1).stderr
    assert call("rm", "-r", "--json", f"{url}#run").json == {"removed": ["run"]}
    assert paths(url) == ["top"]
    assert "has no 'tip': it has top. Did you mean top?" in call("rm", f"{url}#tip", code=1).stderr
    assert "#x* matches nothing" in call("rm", f"{url}#x*", code=1).stderr
    assert paths(url) == ["top"]


def test_mv_and_mkdir(call, url):
    call("mv", f"{url}#run/7/x", f"{url}#a/b/c")
    assert paths(url) == ["top", "run/7/y", "run/8/x", "a/b/c"]
    assert call("mv", "--json", f"{url}#a/b/c", "#top2").json == {"from": "a/b/c", "to": "top2"}
    assert "exists already" in call("mv", f"{url}#top2", "#top", code=1).stderr
    assert "which is in it" in call("mv", f"{url}#run", "#run/7/z", code=1).stderr
    assert (
        "another database: `wendelin copy`" in call("mv", f"{url}#run", "b.fs#run", code=2).stderr
    )
    assert "is a wendelin" in call("mv", f"{url}#run", "#top/z", code=1).stderr
    call("mkdir", f"{url}#n/m")
    assert "exists already" in call("mkdir", f"{url}#n/m", code=1).stderr
    with wendelin.open(url) as g:
        assert list(g["n"]) == ["m"]


def test_append(call, url, tmp_path):
    np.save(tmp_path / "x.npy", X + 0.0)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    np.save(tmp_path / "wide.npy", np.zeros((2, 3)))
    done = call("append", "--step", "1", f"{tmp_path}/x.npy", f"{url}#top", "--json")
    assert done.json == {"path": "top", "appended": 6, "rows": 12}
    call("append", f"{tmp_path}/x.csv", f"{url}#top")
    with wendelin.open(url, "r") as g:
        assert np.array_equal(g["top"], np.concatenate([X, X, [[1, 2], [3, 4]]]))
    wrong = call("append", f"{tmp_path}/wide.npy", f"{url}#top", code=1)
    assert "all axes except the first must be the same" in wrong.stderr
    assert ", not an array" in call("append", f"{tmp_path}/x.npy", f"{url}#run", code=1).stderr


def test_attrs(call, url):
    assert call("attrs", f"{url}#run/7/x", "--json").json == {"unit": "mV"}
    found = call("attrs", f"{url}#run/7/x", "n=5", 'text="5"', "a=[1,2]", "t=x=y", "--json").json
    assert found == {"unit": "mV", "n": 5, "text": "5", "a": [1, 2], "t": "x=y"}
    assert call("attrs", url, "title=a run", "--json").json == {"title": "a run"}
    assert "a run" in call("attrs", url).stdout
    call("attrs", url, "--delete", "title")
    assert call("attrs", url).stdout == ""
    assert "no attribute 'title'" in call("attrs", url, "--delete", "title", code=1).stderr
    assert "is not NAME=VALUE" in call("attrs", url, "title", code=2).stderr


def test_log_and_undo(call, url):
    call("rm", f"{url}#top")
    entries = call("log", url, "--json", "-n", "2").json
    assert [entry["note"] for entry in entries] == ["wendelin: rm top", ""]
    assert entries[0]["changes"] == [{"path": "", "what": ["names"], "rows": []}]
    with wendelin.open(url, "r") as g:
        for entry, other in zip(entries, g.log(2), strict=True):
            assert entry["tid"] == other.tid.hex()
            assert entry["changes"] == [
                {"path": c.path, "what": c.what, "rows": [list(r) for r in c.rows]}
                for c in other.changes
            ]
            assert entry["other_objects"] == other.others
    assert "run/7/x: created, attributes, rows 0:6" in call("log", url).stdout
    call("undo", url, entries[0]["tid"])
    assert "top" in paths(url)
    assert "cannot be undone" in call("undo", url, entries[0]["tid"], code=1).stderr


def test_tag_and_pack(call, url):
    assert call("tag", url).stdout == ""
    call("tag", url, "first")
    call("attrs", f"{url}#run/7/x", "unit=V")
    call("tag", url, "second")
    tags = call("tag", url, "--json").json
    assert [tag["name"] for tag in tags] == ["first", "second"]
    call("tag", url, "third", "--at", "first")
    assert call("head", "--at", "first", f"{url}#top").stdout
    wrong = call("head", "--at", "fourth", f"{url}#top", code=1).stderr
    assert "nor a tag of" in wrong
    assert "'first', 'second', 'third'" in wrong
    assert "there is a tag 'first' already" in call("tag", url, "first", code=1).stderr
    packed = call("pack", url, "--json").json
    assert packed["kept_by_tag"] in ("first", "third")
    with wendelin.open(url, at="first") as g:
        assert g["run/7/x"].attrs == {"unit": "mV"}
    for name in "first", "second", "third":
        call("tag", url, "--delete", name)
    assert "there is no tag 'first'" in call("tag", url, "--delete", "first", code=1).stderr
    assert call("pack", url, "--json").json["kept_by_tag"] is None
    assert paths(url) == ["top", "run/7/x", "run/7/y", "run/8/x"]


def test_du(call, url):
    rows = call("du", url, "--json").json
    sizes = {row["path"]: (row["bytes"], row["arrays"]) for row in rows}
    assert sizes.keys() == {"", "run", "top"}
    assert sizes["run"][1] == 3
    assert sizes[""][0] == sizes["run"][0] + sizes["top"][0]
    rows = call("du", "--depth", "0", f"{url}#run/*", "--json").json
    assert [(row["path"], row["arrays"]) for row in rows] == [("run/7", 2), ("run/8", 1)]
    assert "run/8" in call("du", "-d", "2", url).stdout


def test_cp(call, url):
    call("cp", f"{url}#run/7/x", f"{url}#copy")
    with wendelin.open(url, "r") as g:
        assert np.array_equal(g["copy"], X)
        assert g["copy"].attrs == {"unit": "mV"}


@pytest.fixture
def many(url, tmp_path):
    """Return the URL, and that of a new database."""
    with wendelin.open(url) as g:
        g["run"].attrs["title"] = "a run"
        g["run/7"].attrs["by"] = "Ada"
        g["run/8"].obj["none"] = PersistentList([1])
        g.create_group("run/9")
    return url, str(tmp_path / "new.fs")


def test_cp_of_groups(call, many):
    url, new = many
    for to in f"{new}#a/b", "#copied", f"{new}#again":
        done = call("cp", f"{url}#run", to)
        assert done.stdout == f"{to if to[0] != '#' else url + to}: 3 arrays, 288 B\n"
        assert "not copied: run/8/none (persistent.list.PersistentList)" in done.stderr
    for where, path in (new, "a/b"), (url, "copied"):
        with wendelin.open(where, "r") as g:
            found = dict(g[path].walk())
            assert sorted(found) == ["7", "7/x", "7/y", "8", "8/x", "9"]
            assert np.array_equal(found["7/y"], X)
            assert (g[path].attrs, found["7"].attrs) == ({"title": "a run"}, {"by": "Ada"})
            assert found["7/x"].attrs == {"unit": "mV"}
    assert "exists already: --replace" in call("cp", f"{url}#run", "#copied", code=1).stderr
    call("rm", f"{url}#run/7/x")
    facts = call("cp", "--replace", "--json", f"{url}#run", "#copied").json
    assert (facts["arrays"], facts["bytes"]) == (2, 192)
    assert sorted(p for p in paths(url) if p.startswith("copied")) == ["copied/7/y", "copied/8/x"]
    assert "are the same" in call("cp", f"{url}#run", f"{url}#run", code=2).stderr
    assert "is in the first one" in call("cp", f"{url}#run", f"{url}#run/7/z", code=2).stderr
    assert "neither an array nor a group" in call("cp", f"{url}#run/8/none", "#z", code=1).stderr


def test_cp_of_a_group_goes_on(call, many, monkeypatch):
    url, new = many
    real, filled = copyobjects.fill, []

    def fill(target, *args):
        if len(filled) == 1:
            raise Failure("the cable is cut")
        filled.append(str(target.address))
        real(target, *args)

    monkeypatch.setattr(copyobjects, "fill", fill)
    assert "the cable is cut" in call("cp", f"{url}#run", f"{new}#run", code=1).stderr
    with wendelin.open(new, "r") as g:
        assert list(g) == []  # not before it is complete
    monkeypatch.setattr(copyobjects, "fill", lambda t, *a: (filled.append(t.address), real(t, *a)))
    call("cp", f"{url}#run", f"{new}#run")
    assert len(filled) == 3  # the first one not again
    assert sorted(paths(new)) == ["run/7/x", "run/7/y", "run/8/x"]
    with wendelin.open(new, "r") as g:
        assert g["run"].attrs == {"title": "a run"}
        assert list(g.obj) == ["run"]


def test_names_with_wildcards(call, many):
    url, new = many
    found = call("ls", f"{url}#run/*/x", "--json").json
    assert [row["path"] for row in found] == ["run/7/x", "run/8/x"]
    assert "2 arrays" in call("verify", f"{url}#r*/7").stdout
    assert "#n* matches nothing" in call("ls", f"{url}#n*", code=1).stderr
    call("cp", f"{url}#run/[78]".replace("[78]", "?"), f"{new}#old")
    assert sorted(paths(new)) == ["old/7/x", "old/7/y", "old/8/x"]
    both = call("cp", f"{url}#run/*/x", f"{new}#x", code=1).stderr
    assert "means run/7/x and run/8/x, which would have one name" in both
    moved = call("mv", f"{url}#run/7/*", "#moved", "--json").json
    assert moved == [{"from": f"run/7/{n}", "to": f"moved/{n}"} for n in "xy"]
    assert sorted(paths(url)) == ["moved/x", "moved/y", "run/8/none", "run/8/x", "top"]


def test_tables_fit_the_terminal(call, url, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    some = ["path", "shape", "dtype", "blocks", "stored", "changed"]
    for columns, names in (200, COLUMNS), (60, some), (24, ["path", "shape", "stored"]):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = re.sub("\x1b\\[[0-9;]*m", "", call("ls", url).stdout).splitlines()
        assert lines[0].split() == list(names)
        assert max(map(len, lines)) <= columns
        assert len(lines) == 5


def test_progress_without_a_terminal_is_lines(call, url, capsys):
    assert call("cp", f"{url}#top", f"{url}#a").stderr == ""  # no more than a few seconds
    with output.progress("copy top", 96, in_bytes=True, every=0) as advance:
        advance(96)
    assert capsys.readouterr().err.startswith("copy top: 96 B of 96 B, ")
    with output.progress("objects and blocks", every=0) as advance:
        advance(1)
    assert capsys.readouterr().err.startswith("objects and blocks: 1, ")


def test_what_is_in_use_is_named(call, path):
    root = dbopen(path)
    said = call("mkdir", f"{path}#x", code=1).stderr
    assert f"is in use: process {os.getpid()}, this one has it open to write" in said
    root._p_jar.db().close()


def test_commands_that_may_be_meant(call):
    assert "did you mean 'attrs'?" in call("attr", code=2).stderr


def test_completion_of_paths(path, tmp_path):
    with wendelin.open(path) as g:
        g["run/7/x"] = g["rest"] = X
    complete = ShellComplete(program, {}, "wendelin", "_X")

    def found(text):
        return [item.value for item in complete.get_completions(["cat"], text)]

    assert found(f"{path}#r") == [f"{path}#run/", f"{path}#rest"]
    assert found(f"{path}#run/7/") == [f"{path}#run/7/x"]
    assert found(f"{path}#no/thing") == []
    assert found("x") == ["x"]
