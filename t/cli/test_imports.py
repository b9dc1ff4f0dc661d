"""wendelin import of all files that other libraries ship: each is read as they read it, or refused.

A few of each kind; all of them with WENDELIN_CORE_TEST_IMPORTS=1, which prints the table of
docs/command-line.md.
"""

import os
import warnings

import pytest
from support.cli import Done
from support.fileimports import imported, shipped, table, written

pytestmark = [pytest.mark.formats, pytest.mark.once, pytest.mark.slow]

ALL = bool(os.environ.get("WENDELIN_CORE_TEST_IMPORTS"))
FEW = 6  # of each library and suffix


def chosen(folder):
    """Return the files of this run: the smallest of each kind, or all."""
    with warnings.catch_warnings(action="ignore"):
        found = shipped() + written(folder)
    if ALL:
        return found
    kinds = {}
    for library, path in sorted(found, key=lambda item: os.path.getsize(item[1])):
        kinds.setdefault((library, os.path.splitext(path)[1]), []).append((library, path))
    return [item for items in kinds.values() for item in items[:FEW]]


def test_files_of_libraries(tmp_path, capsys):
    pytest.importorskip("netCDF4"), pytest.importorskip("scipy"), pytest.importorskip("tables")
    from wendelin.cli.program import main

    def call(*args, code):
        capsys.readouterr()
        with warnings.catch_warnings(action="ignore"):  # of the libraries
            returned = main(list(args))
        return Done(returned, *capsys.readouterr())

    files = chosen(tmp_path)
    assert len(files) > (150 if ALL else 25)
    results, wrong = [], []
    for i, (library, path) in enumerate(files):
        result, arrays, left, differs = imported(call, path, f"{tmp_path}/{i}.fs")
        wrong += [f"{path}:{name}" for name in differs]
        results.append((library, os.path.splitext(path)[1], result, arrays, left))
    assert wrong == []
    if ALL:
        with capsys.disabled():
            print("", *table(results), sep="\n")
