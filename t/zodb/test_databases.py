"""Databases of all versions open, and have the values that were written; public names import.

WENDELIN_CORE_TEST_DATA names a folder with more databases, in the form of t/data.
"""

import importlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import DATA

from wendelin.lib.zodb import dbclose, dbopen

FOLDERS = [DATA, *map(Path, filter(None, [os.environ.get("WENDELIN_CORE_TEST_DATA")]))]
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.fs"))]

#: module -> names that programs use: they must stay
INTERFACE = {
    "wendelin": ("ZRagged", "ZSparse", "open", "transact"),
    "wendelin.bigarray": ("ArrayRef", "BigArray"),
    "wendelin.bigarray.array_ram": ("RAMArray",),
    "wendelin.bigarray.array_zodb": ("ZBigArray", "array_at"),
    "wendelin.bigarray.arrayref": ("ArrayRef", "InvalidArrayRef"),
    "wendelin.bigfile": (
        "BigFile",
        "BigFileH",
        "VMA",
        "WRITEOUT_MARKSTORED",
        "WRITEOUT_STORE",
        "ram_reclaim",
    ),
    "wendelin.bigfile.file_file": ("BigFile_File",),
    "wendelin.bigfile.file_zodb": ("ZBigFile", "ZBlk", "ZBlk0", "ZBlk1", "ZData"),
    "wendelin.demo.demo_zbigarray": ("main",),
    "wendelin.lib.calc": ("mul",),
    "wendelin.lib.mem": ("bzero", "memcpy", "memdelta", "memset"),
    "wendelin.lib.utils": ("inttuple",),
    "wendelin.lib.xnumpy": ("structured",),
    "wendelin.lib.zodb": (
        "LivePersistent",
        "dbclose",
        "dbopen",
        "dbstoropen",
        "deactivate_btree",
        "zconn_at",
        "zstor_2zurl",
    ),
    "wendelin.ragged.ragged": ("ZRagged", "ragged_at"),
    "wendelin.ragged.segment": ("Segment",),
    "wendelin.sparse.sparse": ("ZSparse", "sparse_at"),
    "wendelin.zarr": ("ZarrGroup", "ZarrParts", "ZarrValue"),
}

#: class -> members that programs use: they must stay
MEMBERS = {
    "wendelin.bigarray.BigArray": (
        "T",
        "__array__",
        "append",
        "data",
        "dtype",
        "itemsize",
        "load",
        "nbytes",
        "ndim",
        "prefetch",
        "read",
        "resize",
        "save",
        "shape",
        "size",
        "strides",
        "tofile",
    ),
    "wendelin.bigarray.ArrayRef": ("deref",),
    "wendelin.bigarray.array_zodb.ZBigArray": ("attrs",),
    "wendelin.bigfile.BigFile": ("blksize", "fileh_open"),
    "wendelin.bigfile.BigFileH": (
        "dirty_discard",
        "dirty_writeout",
        "invalidate_page",
        "isdirty",
        "mmap",
    ),
    "wendelin.bigfile.VMA": ("addr_start", "addr_stop", "filerange", "pagesize", "pyuser"),
    "wendelin.lib.storage.filestorage.AlignedFileStorage": ("trim",),
}


def test_there_are_databases():
    assert len([path for path in FILES if path.parent == DATA]) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_database_opens_and_has_its_values(path, tmp_path, read_only):
    copy = shutil.copy(path, tmp_path)
    root = dbopen(copy, read_only=read_only)
    try:
        assert len(root) > 0
        expected = path.with_suffix(".npz")
        if expected.exists():
            with np.load(expected) as arrays:
                for name in arrays:
                    assert np.array_equal(root[name][:], arrays[name]), name
                assert set(arrays) <= set(root)
        elif "zbigf" in root:
            file = root["zbigf"].fileh_open()
            block = np.frombuffer(file.mmap(1, 1), ">u4")[:4096]
            assert np.array_equal(block, np.arange(4096))
        else:
            assert any(hasattr(value, "shape") for value in root.values())
    finally:
        dbclose(root)


@pytest.mark.parametrize("module", INTERFACE)
def test_names_of_the_interface_are_there(module):
    missing = [n for n in INTERFACE[module] if not hasattr(importlib.import_module(module), n)]
    assert not missing


@pytest.mark.parametrize("path", MEMBERS)
def test_members_of_the_interface_are_there(path):
    module, _, cls = path.rpartition(".")
    found = getattr(importlib.import_module(module), cls)
    assert not [name for name in MEMBERS[path] if not hasattr(found, name)]
