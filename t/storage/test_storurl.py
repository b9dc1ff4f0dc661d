"""lib/storage/storurl.py and lib/storage/dburl.py: from a storage to its URL, and back."""

import os
from contextlib import closing
from functools import partial
from urllib.parse import quote, urlsplit

import pytest
import transaction
from support import storages
from support.child import check_child
from support.servers import ZeoServer
from ZEO.ClientStorage import ClientStorage
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from zodburi import resolve_uri

from wendelin.lib.storage import dburl
from wendelin.lib.storage.dburl import read_only
from wendelin.lib.storage.filestorage import AlignedFileStorage
from wendelin.lib.zodb import dbclose, dbopen, dbstoropen, zstor_2zurl

pytestmark = pytest.mark.formats

READ = """
import sys
from wendelin.lib.zodb import dbopen, dbclose

root = dbopen(sys.argv[1])
print(root["x"])
dbclose(root)
"""


@pytest.mark.slow
def test_another_process_opens_the_same_database(testdb):
    root = testdb.open()
    root["x"] = "something"
    transaction.commit()
    conn = root._p_jar
    url = zstor_2zurl(conn.db().storage)
    if storages.kind() is not storages.PostgresDatabase:  # whose instances do not know it
        assert url == zstor_2zurl(conn._storage) == zstor_2zurl(conn._normal_storage)
    assert check_child(READ, read_only(url)) == "something\n"
    if not storages.kind().has_server:
        testdb.close(root)  # a file has one writer
    assert check_child(READ, url) == "something\n"


# ---- files ----


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, ""),
        ({"align": False}, "?align=false"),
        ({"align_from": 1 << 16 | 1}, "?align_from=65537"),
        ({"read_only": True}, "?read_only=true"),
        ({"quota": 1 << 20}, "?quota=1048576"),
        ({"pack_gc": False, "pack_keep_old": False}, "?pack_gc=false&pack_keep_old=false"),
        ({"blob_dir": "a & b"}, "?blobstorage_dir={}/a%20%26%20b"),
    ],
)
def test_options_of_files_are_in_their_urls(options, query, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a % b#.fs"
    FileStorage(str(path)).close()
    storage = AlignedFileStorage(path.name, **options)
    url = zstor_2zurl(storage)
    storage.close()
    assert url == f"file://{path}{query.format(tmp_path)}"
    monkeypatch.chdir("/")
    again = dbstoropen(url)
    assert zstor_2zurl(again) == url
    assert again.getName() == str(path)
    again.close()


@pytest.mark.parametrize("name", ["a.fs?read_only=1", "a.fs?align=false&create=1"])
def test_a_path_has_no_options(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="paths have no options") as e:
        dbopen(name)
    assert f"write file://{tmp_path}/{name}" in str(e.value)
    assert os.listdir() == []
    # but a file of that name is opened, and so is a name that is not half a URL
    for path in name, "what?.fs", "x?=.fs":
        FileStorage(path).close()
        dbclose(dbopen(path))


@pytest.mark.parametrize(
    ("options", "query"),
    [
        ({}, ""),
        ({"read_only": True}, "?read_only=true"),
        ({"quota": 1 << 20}, "?quota=1048576"),
        ({"blob_dir": "blobs"}, "?blobstorage_dir={}/blobs"),
    ],
)
def test_a_file_of_filestorage_has_a_url_of_zodburi(tmp_path, monkeypatch, options, query):
    monkeypatch.chdir(tmp_path)
    with closing(FileStorage("a #b.fs")) as storage:
        db = DB(storage)
        with db.transaction() as conn:
            conn.root()["x"] = 1
    with closing(FileStorage("a #b.fs", **options)) as storage:
        url = zstor_2zurl(storage)
        demo = DemoStorage(base=storage, changes=AlignedFileStorage("changes.fs"))
        demo_url = zstor_2zurl(demo)
        demo.changes.close()
    assert url == f"file://{tmp_path}/a #b.fs{query.format(tmp_path)}"
    for each in url, demo_url:
        for factory, arguments in (resolve_uri(each), (partial(dbstoropen, each), {})):
            with closing(factory()) as storage:
                assert storage.isReadOnly() is (each is url and "read_only" in options)
                assert DB(storage, **arguments).open().root()["x"] == 1


def test_a_file_of_filestorage_that_packs_in_another_way(tmp_path):
    """Without the option, a pack would lose what this storage keeps."""
    storage = FileStorage(str(tmp_path / "a.fs"), pack_gc=False)
    assert zstor_2zurl(storage) == f"file://{tmp_path}/a.fs?pack_gc=false"
    storage.close()


# ---- servers ----


@pytest.fixture
def server(tmp_path):
    server = ZeoServer(tmp_path, storages=2)
    server.start()
    yield server
    server.stop()


@pytest.mark.only("fs")
def test_a_client_of_zeo(server):
    by_url = f"{server.url}?wait_timeout=7&storage=2&server_sync=false"
    own = "&client_label=me&connection_cache_size=5"
    for url, storage in (
        (by_url, dbstoropen(by_url + own)),
        (server.url, dbstoropen(server.url)),
        (
            f"{server.url}?storage=2&wait_timeout=7&server_sync=false&read_only=true",
            ClientStorage(("127.0.0.1", server.port), "2", wait_timeout=7, read_only=True),
        ),
        (
            f"{server.url}?storage=1&server_sync=false&read_only_fallback=true",
            ClientStorage(("127.0.0.1", server.port), read_only_fallback=True),
        ),
    ):
        assert zstor_2zurl(storage) == url
        storage.close()
        again = dbstoropen(url)
        assert zstor_2zurl(again) == url
        again.close()
    storage = ClientStorage([("127.0.0.1", server.port), ("127.0.0.1", 1)])
    with pytest.raises(NotImplementedError, match=r"ClientStorage.* has 2 addresses"):
        zstor_2zurl(storage)
    storage.close()


def test_addresses_of_zeo():
    for address, url in (
        (("::1", 5), "zeo://[::1]:5"),
        ("/a b/socket", "zeo:///a b/socket"),
    ):
        storage = ClientStorage(address, wait=False, wait_timeout=1)
        assert zstor_2zurl(storage).startswith(url + "?storage=1&wait_timeout=1&")
        storage.close()
    storage = ClientStorage("/what?/socket", wait=False)
    with pytest.raises(NotImplementedError, match=r"what\?"):
        zstor_2zurl(storage)
    storage.close()


# ---- one over another ----


def test_a_demo_storage_has_its_url(tmp_path):
    dbclose(dbopen(tmp_path / "base.fs"))
    url = f"demo:(file://{tmp_path}/base.fs?read_only=true)/(file://{tmp_path}/changes.fs)"
    root = dbopen(url + "#connection_cache_size=77")
    assert root._p_jar.db().getCacheSize() == 77
    assert isinstance(root._p_jar.db().storage.changes, AlignedFileStorage)
    root["x"] = 1
    transaction.commit()
    assert zstor_2zurl(root._p_jar.db().storage) == url
    # while it is open
    reader = dbopen(read_only(url))
    assert reader["x"] == 1
    dbclose(reader)
    dbclose(root)
    root = dbopen(url)
    assert root["x"] == 1
    dbclose(root)


def test_demo_of_demo(tmp_path):
    a, b, c = (f"file://{tmp_path}/{n}(1).fs" for n in "abc")
    for url in (f"demo:(demo:({a})/({b}))/({c})", f"demo:({a})/(demo:({b})/({c}))"):
        storage = dbstoropen(url)
        assert zstor_2zurl(storage) == url
        storage.close()
    storage = DemoStorage(base=FileStorage(str(tmp_path / "d).fs")), changes=dbstoropen(c))
    with pytest.raises(NotImplementedError, match=r"d\)\.fs"):
        zstor_2zurl(storage)
    storage.close()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("demo:", r"demo:\(URL\)/\(URL\)"),
        ("demo:(memory://)", r"demo:\(URL\)/\(URL\)"),
        ("demo:(memory://)(memory://)", r"demo:\(URL\)/\(URL\)"),
        ("demo:(memory://)/((memory://)", r"demo:\(URL\)/\(URL\)"),
        ("demo:(memory://)/(memory://)x", r"demo:\(URL\)/\(URL\)"),
        ("demo:(memory://)/(memory://?connection_cache_size=5)", "after '#'.*cache_size"),
        ("demo:(memory://)/(memory://)#bogus=5", "bogus"),
        ("demo:(gopher://)/(memory://)", "gopher"),
    ],
)
def test_demo_urls_that_are_wrong(url, what):
    with pytest.raises(ValueError, match=what):
        dbopen(url)


def test_a_demo_that_cannot_be_opened_leaves_nothing_open(tmp_path):
    with pytest.raises(FileNotFoundError):
        dbopen(f"demo:(file://{tmp_path}/a.fs)/(file://{tmp_path}/no/b.fs)")
    dbclose(dbopen(tmp_path / "a.fs"))


# ---- what has no URL ----


def test_what_no_url_can_say_is_refused_by_name(tmp_path):
    dbclose(dbopen(tmp_path / "a.fs"))
    memory = MappingStorage("of this process")
    for storage, what in (
        (memory, "MappingStorage 'of this process'"),
        (DB(memory).storage, "MappingStorage 'of this process'"),
        (dbstoropen("memory://named"), "MappingStorage 'named'"),
        (dbstoropen(f"demo:(file://{tmp_path}/a.fs)/(memory://m)"), "MappingStorage 'm'"),
        (FileStorage(str(tmp_path / "what?.fs")), r"FileStorage.*what\?"),
        (AlignedFileStorage(str(tmp_path / "a.fs"), read_only=True, stop=b"x" * 8), "past state"),
    ):
        with pytest.raises(NotImplementedError, match=what):
            zstor_2zurl(storage)
        storage.close()


def test_what_was_opened_by_a_url_is_known_by_it():
    """So is NEO, whose client is not ours."""

    class Storage:
        def getName(self):
            return "name"

    storage = dburl._remembered(Storage, "neo://name@master")()
    assert zstor_2zurl(storage) == "neo://name@master"
    with pytest.raises(NotImplementedError, match="URL of Storage 'name' is not known"):
        zstor_2zurl(Storage())


# ---- read_only ----


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file:///a.fs", "file:///a.fs?read_only=true"),
        ("file:///a.fs?create=1&align=0", "file:///a.fs?align=0&read_only=true"),
        ("file:///a.fs?read_only=0", "file:///a.fs?read_only=true"),
        ("zeo://host:1?storage=a", "zeo://host:1?storage=a"),
        ("neo://name@master", "neo://name@master"),
        (
            "demo:(file:///a)/(zeo://b)#pool_size=1",
            "demo:(file:///a?read_only=true)/(zeo://b)#pool_size=1",
        ),
    ],
)
def test_read_only(url, expected):
    assert read_only(url) == expected
    assert read_only(expected) == expected


def test_a_path_becomes_a_url_of_a_file(tmp_path):
    root = dbopen(tmp_path / "a.fs")
    url = zstor_2zurl(root._p_jar.db().storage)
    assert url == f"file://{os.path.abspath(tmp_path)}/a.fs"
    dbclose(root)


# ---- paths in URLs ----


@pytest.mark.parametrize("name", ["a b.fs", "a%20b.fs", "100%.fs", "ä ö.fs", "a%2520b.fs", "%.fs"])
def test_what_a_url_says_is_decoded(name, tmp_path):
    """The URL of a file opens it, and so does the quoted spelling."""
    root = dbopen(tmp_path / name)
    root["x"] = name
    transaction.commit()
    url = zstor_2zurl(root._p_jar.db().storage)
    dbclose(root)
    quoted = f"file://{quote(str(tmp_path / name))}"
    for one in url, quoted, f"{quoted}?read_only=1":
        root = dbopen(one)
        assert root["x"] == name
        dbclose(root)


def test_a_new_file_is_decoded(tmp_path):
    (tmp_path / "a b").mkdir()
    dbclose(dbopen(f"file://{tmp_path}/a%20b/c%20d.fs"))
    assert (tmp_path / "a b" / "c d.fs").exists()


def test_a_file_that_a_previous_version_made_is_found(tmp_path):
    """Previous versions did not decode URLs; if files of both names exist, the URL is refused."""
    root = dbopen(tmp_path / "a%20b.fs")
    root["x"] = 1
    transaction.commit()
    dbclose(root)
    url = f"file://{tmp_path}/a%20b.fs"
    root = dbopen(url)
    assert root["x"] == 1
    dbclose(root)
    dbclose(dbopen(tmp_path / "a b.fs"))
    with pytest.raises(ValueError, match=r"may mean .*a b\.fs' or .*a%20b\.fs'.*a%2520b\.fs"):
        dbopen(url)
    root = dbopen(f"file://{tmp_path}/a%2520b.fs")
    assert root["x"] == 1
    dbclose(root)


def test_a_socket_in_a_url():
    assert dburl._zeo_address("u", urlsplit("zeo:///a%20b/socket")) == "/a b/socket"
