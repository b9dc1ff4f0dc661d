"""Names out of databases and files: how files have them; and they are harmless when shown."""

import io
import json
import os
import zipfile

import pytest
import transaction
from BTrees.OOBTree import OOBTree
from support.clidata import database

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.cli import output
from wendelin.cli.address import join, quote
from wendelin.cli.arguments import AddressType
from wendelin.cli.files.names import check_name, name_of_key
from wendelin.cli.program import main
from wendelin.lib.shown import shown

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs", "zeo")]

#: marks of direction, control characters of both ranges, joiners, half of a pair, a tag
EVIL = [
    "safe\u202etxt.exe",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\u2066b\u2069",
    "\u200f",
    "line\nend\rand\ttab",
    "\u2028",
    "zero\u200bwidth",
    "\ufeff",
    "nul\0",
    "half\ud800",
    "\U000e0041tag",
    "\x85",
]
#: keys that are paths, or that are odd
PATHS = [
    "../../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "C:\\x",
    "..\\..\\x",
    "x" * 1000,
    "é" * 400,
    "nul\0",
    "\u202e",
    "half\ud800",
    "zarr.json",
    " ",
]


@pytest.fixture
def url(testdb):
    """Return the URL of a database that nobody has open."""
    return testdb.url


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Go to an empty folder."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path / "deep" / "er"


def does_nothing(text):
    """Say whether a text has only line ends and printable characters."""
    return all(c.isprintable() or c == "\n" for c in text)


# ---- names in files ----


@pytest.mark.parametrize("suffix", ["npz", "h5", "zarr"])
def test_a_key_is_not_a_path_in_a_file(call, url, here, suffix):
    pytest.importorskip({"h5": "h5py", "zarr": "zarr"}.get(suffix, "numpy"))
    keys = PATHS + EVIL[:2]
    with database(url) as root:
        root["keys"] = keys_of = OOBTree()
        for i, key in enumerate(keys):
            keys_of[key] = A = ZBigArray((3,), "i4")
            transaction.commit()
            A[:] = i
            transaction.commit()
    for i, key in enumerate(keys):
        address = f"{url}#keys/{quote(key)}"
        done = call("export", "--json", "--force", address, f"out.{suffix}").json
        if suffix == "zarr":
            assert done["member"] is None
            continue
        name = done["member"]
        assert name == name_of_key(key)
        assert does_nothing(name)
        assert not {"/", "\\", ":"} & set(name)
        assert len(name.encode()) <= 240
        if suffix == "npz":
            with zipfile.ZipFile("out.npz") as archive:
                assert archive.namelist() == [f"{name}.npy"]
                # a program may unpack it
                os.makedirs("unpacked", exist_ok=True)
                archive.extractall("unpacked")
        else:
            import h5py

            with h5py.File("out.h5") as file:
                assert list(file) == [name]
        call("import", f"out.{suffix}:{name}", f"{url}#again/{i}")
        with database(url) as root:
            assert root["again"][str(i)][...].tolist() == [i] * 3
        assert does_nothing(call("export", "--force", address, f"out.{suffix}").stdout)
    above = sorted(os.listdir(here / "../.."))
    assert [name for name in above if not name.startswith("test")] == ["deep"]
    assert os.listdir(here / "..") == ["er"]


@pytest.mark.parametrize("kind", ["npz", "hdf5", "zarr"])
def test_names_that_the_user_gives(call, url, here, kind):
    suffix = {"hdf5": "h5"}.get(kind, kind)
    pytest.importorskip({"hdf5": "h5py", "zarr": "zarr"}.get(kind, "numpy"))
    with database(url) as root:
        root["x"] = ZBigArray((3,), "i4")
        transaction.commit()
    wrong = ["../x", "a/../../x", ".", "a//b", "/", "a\x1bb", "a/./b", "half\udc80"]
    if kind != "hdf5":
        wrong += ["..\\x", "x" * 300]
    if kind == "zarr":
        wrong += ["a/zarr.json", ".zarray"]
    for name in wrong:
        error = call("export", f"{url}#x", f"out.{suffix}:{name}", code=2).stderr
        assert f"is not a name of an array in a {kind} file: " in error
        assert does_nothing(error)
    assert os.listdir(here) == []
    for name, written in ("a/b", "a/b"), ("/a", "a"), ("Δ x", "Δ x"), ("..a", "..a"):
        assert check_name(kind, name) == written
        call("export", "--force", f"{url}#x", f"out.{suffix}:{name}")
        call("import", "--replace", f"out.{suffix}:{written}", f"{url}#y")


# ---- names that are shown ----


@pytest.mark.parametrize("name", [*EVIL, "a%b", "5", "[1]", "#", "née", "plain"])
def test_paths_are_printable_and_lead_back(name):
    text = join(("in", name, "x"))
    assert does_nothing(text)
    assert AddressType().convert(f"data.fs#{text}", None, None).path == ("in", name, "x")


def test_shown():
    assert shown("plain née 名") == "plain née 名"
    assert shown("a\u202eb\x1b\n") == "a\\u202eb\\x1b\\n"
    assert shown("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"
    assert shown("\U000e0041\ud800") == "\\U000e0041\\ud800"


def test_no_command_prints_characters_that_do_something(call, url, here, monkeypatch, capsys):
    """Names of arrays, fields, members and columns have them; outputs and errors show the names."""
    names = [name for name in EVIL if not name.startswith("nul")]  # none in fields of HDF5
    with database(url) as root:
        root["all"] = tree = OOBTree()
        for name in EVIL:
            tree[name] = A = ZBigArray(2, [(name, "i4")])
            transaction.commit()
            A[...] = 1
            transaction.commit()
        tree["text"] = T = ZBigArray(len(EVIL), "U20")
        transaction.commit()
        T[:] = EVIL
        transaction.commit()
    outputs = []

    def told(*args, code=0):
        done = call(*args, code=code)
        outputs.append((args, done))
        return done

    assert len(told("ls", url).stdout.splitlines()) == len(EVIL) + 2
    assert [row["path"] for row in told("ls", "--json", url).json] == sorted(
        f"all/{quote(name)}" for name in [*EVIL, "text"]
    )
    told("verify", url)
    for i, name in enumerate(EVIL):
        address = f"{url}#all/{quote(name)}"
        told("info", address)
        descr = told("info", "--json", address).json["dtype"]
        assert descr == [[name, "<i4"]]  # JSON gives all characters back
        told("cat", address + "/x", code=1)
        told("cat", f"{url}#all/x{quote(name)}", code=1)
        told("export", address, f"{i}.npz")
        told("import", f"{i}.npz", f"{url}#import/{quote(name)}")
        told("import", f"{i}.npz:wrong{name}", f"{url}#x", code=1)
        told("import", f"no {name}.npy".replace("\0", ""), f"{url}#x", code=1)
        told("import", f"no {name}.what".replace("\0", ""), f"{url}#x", code=2)
    for name in names:
        with zipfile.ZipFile("x.npz", "w") as archive:
            for member in f"{name.encode('utf-8', 'replace').decode()}1.npy", "2.npy":
                archive.writestr(member, b"")
        told("import", "x.npz", f"{url}#x", code=1)
    columns = [name for name in names if name.encode(errors="replace").decode() == name]
    (here / "x.csv").write_text(
        ",".join(f'"{name}"' for name in columns) + "\n" + ",".join("1" for _ in columns) + "\n"
    )
    told("import", "x.csv", f"{url}#csv")
    told("import", "--columns", "nothing", "x.csv", f"{url}#x", code=1)
    monkeypatch.setenv("WENDELIN_DEBUG", "1")
    assert main(["cat", f"{url}#all/{quote(EVIL[0])}x"]) == 1
    debug = capsys.readouterr().err
    assert "Traceback" in debug
    assert does_nothing(debug)
    for args, done in outputs:
        assert does_nothing(done.stdout), args
        assert does_nothing(done.stderr), args


def test_elements_do_nothing_to_a_terminal(call, url, monkeypatch):
    """Without a terminal, they are printed as they are."""
    with database(url) as root:
        root["x"] = A = ZBigArray(2, "U9")
        transaction.commit()
        A[:] = ["\x1b[31m", "\u202eb"]
        transaction.commit()
    assert call("cat", f"{url}#x").stdout == "\x1b[31m\n\u202eb\n"
    import sys

    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    assert call("cat", f"{url}#x").stdout == "\\x1b[31m\n\\u202eb\n"
    assert call("head", "-n1", f"{url}#x").stdout == "\\x1b[31m\n"


def test_progress_does_nothing(monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(
        output, "Console", lambda **kw: Console(file=screen, force_terminal=True, width=200)
    )
    with output.progress("import safe\u202etxt\x1b]0;x\x07", 10) as tell:
        tell(5)
    assert "safe\\u202etxt\\x1b]0;x\\x07" in screen.getvalue()
    assert "\u202e" not in screen.getvalue()
    assert "\x07" not in screen.getvalue()


def test_html_does_nothing(testdb):
    root = testdb.open()
    root["A"] = A = ZBigArray(3, [("safe\u202etxt", "i4")])
    transaction.commit()

    class Evil(ZBigArray):
        pass

    Evil.__name__ = Evil.__qualname__ = "safe\u202etxt"
    for array in A, Evil(3, "i4"):
        html = array._repr_html_()
        assert "safe\\u202etxt" in html
        assert does_nothing(html)
        assert does_nothing(repr(array))


def test_json_of_all_characters(capsys):
    data = {"name": "".join(map(chr, range(0x3000))) + "\U000e0041😀\udc80"}
    output.print_json(data)
    text = capsys.readouterr().out
    assert does_nothing(text)
    assert json.loads(text) == data
