"""Databases of strangers: commands run no code that is named in them, and come to an end."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from zlib import crc32

import numpy as np
import pytest
import transaction
from support import TESTS, hostile
from support.child import check_child, run_child
from support.cli import wendelin
from support.clidata import BLK, Thing, database, filled
from support.hostile import (
    ARRAY,
    MAPPING,
    THING,
    TREE,
    Writer,
    dict_of,
    plain,
    record,
    ref,
    text,
    tuple_of,
)
from support.servers import ZeoServer
from ZODB.utils import p64, z64

from wendelin.bigarray.array_zodb import ZBigArray
from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [pytest.mark.slow, pytest.mark.formats, pytest.mark.once, pytest.mark.only("fs")]

#: runs commands in one process, as the program does; stdin has a list of commands
PROGRAM = """
    import contextlib, io, json, os, resource, sys
    sys.path.insert(0, sys.argv[1])  # where canary_module is
    canary = os.path.join(sys.argv[1], "canary")
    for limit in (resource.RLIMIT_AS, ):
        resource.setrlimit(limit, (4 << 30, 4 << 30))
    from wendelin.cli.program import main
    assert not os.path.exists(canary)
    for words in json.load(sys.stdin):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        assert code in (0, 1), (words, code, err.getvalue())
        assert "Traceback" not in err.getvalue(), (words, err.getvalue())
        assert len(err.getvalue()) < 1_000_000
        if os.path.exists(canary):
            print("RAN", words)
            os.unlink(canary)
        if code == 0:
            print("well", words[0])
"""


def run(folder, *commands, timeout=100):
    """Run commands in a child; return the lines that it prints.

    "RAN" and a command: it ran something that a record names. "well" and a command: it succeeded.
    """
    (folder / "canary_module.py").write_text(f"open({str(folder / 'canary')!r}, 'w')")
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(PROGRAM), str(folder)],
        input=json.dumps([[str(word) for word in command] for command in commands]),
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        text=True,
        capture_output=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def ran(lines):
    return [line for line in lines if line.startswith("RAN")]


def of_array(url, out):
    """Return the commands that read one array."""
    return [
        ("info", url),
        ("info", "--json", url),
        ("cat", url),
        ("head", "--json", url),
        ("export", "--force", url, out / "out.npy"),
        ("copy", url, f"{out}/copy.fs#{crc32(url.encode())}"),  # some are groups
    ]


def test_nothing_is_run(call, tmp_path):
    path = tmp_path / "x.fs"
    hostile.write(path, tmp_path / "canary")
    every = [
        command
        for url in (path, f"demo:(file://{path}?read_only=1)/(memory://)")
        for command in (("ls", url), ("ls", "--json", url), ("verify", url))
    ]
    lines = run(tmp_path, *every, ("ls", f"{path}#good"), ("copy", path, tmp_path / "copy.fs"))
    assert ran(lines) == []
    assert lines == ["well ls", "well copy"]  # the last two: the others report faults
    told = call("verify", "--json", path, code=1).json
    assert "good" not in {bad["path"] for bad in told["bad"]}
    assert "table-reduce" in {bad["path"] for bad in told["bad"]}


def test_nothing_is_run_by_what_reads_an_array(tmp_path):
    path = tmp_path / "x.fs"
    names = hostile.write(path, tmp_path / "canary", "reduce")
    lines = run(
        tmp_path, *(c for name in [*names, "good"] for c in of_array(f"{path}#{name}", tmp_path))
    )
    assert ran(lines) == []
    assert lines[-6:] == [f"well {c}" for c in ("info", "info", "cat", "head", "export", "copy")]


def test_nothing_is_run_by_a_root(tmp_path):
    commands = []
    for how, piece in hostile.calls(tmp_path / "canary").items():
        for name, root in (
            ("class", record(piece, b"}")),
            ("state", record(MAPPING, piece)),
            ("pickle", b"\x80\x03" + piece + b"."),
        ):
            path = tmp_path / f"{name}-{how}.fs"
            Writer(path).close(root)
            commands += [("ls", path), ("verify", path), ("info", f"{path}#x")]
    assert ran(run(tmp_path, *commands)) == []


def test_nothing_is_run_out_of_a_server(tmp_path):
    (tmp_path / "server").mkdir()
    server = ZeoServer(str(tmp_path / "server"), 1)
    with_file = hostile.write(tmp_path / "x.fs", tmp_path / "canary", "reduce", noted=False)
    # the server itself would load these: the index, and what is noted with a transaction
    os.unlink(tmp_path / "x.fs.index")
    shutil.move(tmp_path / "x.fs", tmp_path / "server" / "1.fs")
    server.start()
    try:
        url = f"{server.url}?storage=1"
        one = of_array(f"{url}#{with_file[-1]}", tmp_path)
        lines = run(tmp_path, ("ls", url), ("verify", url), ("ls", f"{url}#good"), *one)
    finally:
        server.stop()
    assert ran(lines) == []
    assert "well ls" in lines


def test_an_index_of_a_stranger(call, tmp_path):
    """The index is not used. The file is read, also when it is opened for writing."""
    path = tmp_path / "x.fs"
    with database(path) as root:
        root["A"] = filled((4,))
        transaction.commit()
    index = (tmp_path / "x.fs.index").read_bytes()
    payloads = {
        **{k: b"\x80\x03" + v + b"." for k, v in hostile.calls(tmp_path / "canary").items()},
        "memo": b"\x80\x03K\x01r\xff\xff\xff\xff.",
        "part": b"\x80\x03K\x10.\x80\x03" + tuple_of(plain(b"123456"), plain(b"1")) + b".",
        "cut": index[: len(index) // 2],
        "none": b"",
    }
    for payload in payloads.values():
        (tmp_path / "x.fs.index").write_bytes(payload)
        assert call("ls", "--json", path).json[0]["path"] == "A"
        (tmp_path / "x.fs.index").write_bytes(payload)
        root = dbopen(path)
        assert list(root) == ["A"]
        dbclose(root)
    assert not (tmp_path / "canary").exists()
    assert (tmp_path / "x.fs.index").read_bytes() == index


# ---- shapes ----


def endless(writer):
    """Yield (name, piece) of structures that do not end, or are much larger than they look."""
    put, new = writer.put, writer.new

    def with_table(state, of=hostile.TABLE, oid=None):
        table = put(record(of, state), oid)
        return ref(writer.array(writer.file(table)), ARRAY)

    own = new()
    child = ref(own, TREE)
    put(record(TREE, tuple_of(tuple_of(child, plain("b"), child), child)), own)
    yield "tree-in-itself", ref(own, TREE)
    own = new()
    child = ref(own, hostile.TABLE)
    node = tuple_of(tuple_of(child, plain(5), child), child)
    yield "table-in-itself", with_table(node, oid=own)
    own = new()
    yield (
        "bucket-in-a-ring",
        with_table(tuple_of(tuple_of(ref(own, hostile.BUCKET)), ref(own, hostile.BUCKET))),
    )
    block = put(record(hostile.BLOCK0, b"C\x01a"))
    put(
        record(
            hostile.BUCKET,
            tuple_of(tuple_of(plain(0), ref(block, hostile.BLOCK0)), ref(own, hostile.BUCKET)),
        ),
        own,
    )
    own = new()
    data = dict_of(text("x"), ref(own, MAPPING))
    put(record(MAPPING, dict_of(text("data"), data)), own)
    yield "mapping-in-itself", ref(own, MAPPING)
    yield "list-in-itself", b"]q\x01h\x01a"
    yield "deep-list", b"]" * 100_000 + b"a" * 99_999
    yield "deep-tuple", b")" + b"\x85" * 100_000
    doubled = b"K\x01" + b"".join(b"q\x02h\x02\x86" for _ in range(200))
    yield "doubled", doubled
    yield "key-doubled", dict_of(doubled, ref(writer.array(), ARRAY))
    yield "key-long", dict_of(text("k" * 100_000), ref(writer.array(), ARRAY))
    yield "key-deep", dict_of(b")" + b"\x85" * 10_000, ref(writer.array(), ARRAY))
    yield "memo", put_mapping(writer, b"K\x01r\xff\xff\xff\xff")
    yield "long-bytes", put_mapping(writer, b"\x8e" + b"\xff" * 7 + b"\x7f")
    yield "table-memo", with_table(tuple_of(b"K\x01r\xff\xff\xff\x7f"))
    step = (1 << 61) - 1
    many = b"".join(plain(i * step) + b"N" for i in range(50_000))
    yield "keys-that-collide", dict_of(many)
    blocks = b"".join(plain(i * step) + ref(block, hostile.BLOCK0) for i in range(5_000))
    yield "blocks-that-collide", with_table(tuple_of(tuple_of(tuple_of(tuple_of(blocks)))))
    yield "shape-huge", ref(writer.array(_shape=plain((1 << 62,) * 60)), ARRAY)
    yield "shape-of-many", ref(writer.array(_shape=plain((1,) * 10_000)), ARRAY)
    yield "shape-number", ref(writer.array(_shape=plain((1 << 100_000,))), ARRAY)
    yield "blksize-huge", ref(writer.array(writer.file(blksize=plain(1 << 62))), ARRAY)
    yield "blksize-zero", ref(writer.array(writer.file(blksize=plain(0))), ARRAY)
    last = ref(writer.array(), ARRAY)
    for _ in range(2000):
        last = ref(put(record(THING, dict_of(text("next"), last))), THING)
    yield "chain", last


def put_mapping(writer, state):
    return ref(writer.put(record(MAPPING, state)), MAPPING)


def test_shapes_that_do_not_end(call, tmp_path):
    """Each command comes to an end, in bounded memory, and ls finds the good array beside them."""
    path = tmp_path / "x.fs"
    writer = Writer(path)
    names = []
    for name, piece in endless(writer):
        names.append(name)
        if piece.endswith(b"Q"):
            writer.name(name, piece)
        else:
            writer.name(name, put_mapping(writer, dict_of(text("data"), dict_of(text("x"), piece))))
    writer.name("good", ref(writer.array(), ARRAY))
    writer.close()
    run(
        tmp_path,
        ("ls", path),
        ("verify", path),
        *(("info", f"{path}#{name}") for name in names),
    )
    done = call("ls", "--json", path, code=1)
    found = {row["path"] for row in done.json}
    assert "good" in found
    assert f"chain/{'/'.join(['next'] * 2000)}" in found
    for name in ("tree-in-itself", "table-in-itself", "memo", "shape-number", "blksize-zero"):
        assert f"#{name}: " in done.stderr, name


def test_records_that_are_shared(call, tmp_path):
    """Many arrays share one table: commands would read much more than the small file has."""
    path = tmp_path / "x.fs"
    writer = Writer(path)
    block = writer.put(record(hostile.BLOCK0, plain(bytes(4096))))
    pieces = (p for i in range(2000) for p in (plain(i), ref(block, hostile.BLOCK0)))
    table = writer.table(*pieces)
    for i in range(500):
        writer.name(f"a{i}", ref(writer.array(writer.file(table)), ARRAY))
    writer.close()
    for command in "ls", "verify":
        assert "share records that" in call(command, path, code=1).stderr


def test_a_record_that_is_its_own_previous_revision(tmp_path):
    """A record says that its previous revision is where it is itself."""
    path = tmp_path / "x.fs"
    writer = Writer(path)
    writer.close()
    data = bytearray(path.read_bytes())
    at = data.index(z64, 4 + 23)  # of the root's record
    data[at + 8 : at + 16] = b"\xff" * 8  # its transaction: later than any state that is read
    data[at + 16 : at + 24] = p64(at)
    path.write_bytes(data)
    os.unlink(f"{path}.index")
    done = run_child(
        "import sys; from wendelin.cli.program import main; sys.exit(main(['ls', sys.argv[1]]))",
        str(path),
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


# ---- what is not known ----


class Sub(ZBigArray):
    """An array of a user."""


class Opaque(Thing):
    """An object with a state that only its class can read."""

    def __getstate__(self):
        return ["opaque", self.__dict__]

    def __setstate__(self, state):
        self.__dict__.update(state[1])


def test_classes_that_are_not_loaded(tmp_path):
    path = tmp_path / "x.fs"
    with database(path) as root:
        root["sub"] = A = Sub((BLK,), "i4", "F", blksize=BLK)
        root["opaque"] = Opaque(A=filled((3,)))
        transaction.commit()
        A[:] = 1
        transaction.commit()
    done = wendelin("ls", "--json", path)
    assert [(r["path"], r["shape"], r["blocks"]) for r in done.json] == [("sub", [BLK], 4)]
    assert f"#opaque: {Opaque.__module__}.Opaque: not loaded" in done.stderr
    printed = check_child(
        """
        import sys
        from wendelin.cli.program import main
        path = sys.argv[1]
        assert main(["info", f"{path}#sub"]) == 0
        assert main(["cat", f"{path}#sub[:2]"]) == 0
        assert main(["verify", path]) == 0
        sys.stderr = sys.stdout
        assert main(["info", f"{path}#opaque"]) == 1
        """,
        str(path),
    )
    assert f"class      {Sub.__module__}.Sub\n" in printed
    assert "\n1\n1\n1 array, 4 blocks, 4 with a checksum: all good\n" in printed
    assert f"it is a {Opaque.__module__}.Opaque" in printed


def test_what_is_read_is_what_was_written(call, tmp_path):
    """export and copy read without a Connection, and give the same as a Connection."""
    rng = np.random.default_rng(1)
    with database(tmp_path / "x.fs") as root:
        for fmt in "ZBlk0", "ZBlk1", "auto":
            root[fmt] = A = filled((5, 3 * BLK + 7), "<u2", "C", fmt)
            transaction.commit()
            A[:, ::3] = rng.integers(0, 1 << 16, (5, BLK + 3))
            transaction.commit()
            A[1] = 0
            transaction.commit()
        expected = {name: np.array(A[:]) for name, A in root.items()}
    for name, values in expected.items():
        out = tmp_path / f"{name}.npy"
        call("export", f"{tmp_path}/x.fs#{name}", out)
        np.testing.assert_array_equal(np.load(out), values)
        call("copy", f"{tmp_path}/x.fs#{name}", f"{tmp_path}/y.fs#{name}")
    with database(tmp_path / "y.fs") as root:
        for name, values in expected.items():
            np.testing.assert_array_equal(root[name][:], values)


def test_commands_load_no_objects(tmp_path):
    """No module of a class in a database is imported, even if there is such a module."""
    path = tmp_path / "x.fs"
    writer = Writer(path)
    writer.name("x", ref(writer.put(record("this s", b"}")), "this s"))
    writer.name("A", ref(writer.array(cls="antigravity fly"), "antigravity fly"))
    writer.close()
    check_child(
        """
        import sys
        from wendelin.cli.program import main
        assert main(["ls", sys.argv[1]]) == 0
        assert main(["cat", sys.argv[1] + "#A"]) == 0
        assert not {"this", "antigravity"} & set(sys.modules)
        """,
        str(path),
    )
