"""Imports every file that other libraries ship as test data, and compares it with their reading.

Each file is imported as a whole, or refused with one line. Each array is compared with what h5py,
scipy, netCDF4 or NumPy reads. The wheels of scipy, tables, h5py and xarray have such files. Those
of zarr, pandas and anndata have none, so these libraries write files here.
"""

import importlib.util
import os
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

import wendelin
from wendelin.sparse import ZSparse

#: library -> patterns of files
SHIPPED = {
    "scipy": ["**/*.mat", "**/*.nc", "**/*.npz"],
    "tables": ["**/*.h5", "**/*.mat"],
    "h5py": ["**/*.h5"],
    "xarray": ["**/*.nc"],
}


def shipped():
    """Return (library, path) of all files that installed libraries ship."""
    found = []
    for library, patterns in SHIPPED.items():
        spec = importlib.util.find_spec(library)
        if spec is None or not spec.submodule_search_locations:
            continue
        folder = Path(next(iter(spec.submodule_search_locations)))
        found += [(library, str(p)) for pattern in patterns for p in sorted(folder.glob(pattern))]
    return found


def written(folder):
    """Have libraries that ship no files write some; return (library, path) of these."""
    found = []
    with suppress(ImportError):
        import zarr

        for version in 2, 3:
            path = f"{folder}/zarr{version}.zarr"
            for i, dtype in enumerate(["?", "i1", "u8", "f2", "f8", "c16", "M8[s]", "S3", "U4"]):
                if version == 3 and dtype in ("S3", "U4", "M8[s]"):
                    continue
                array = zarr.create_array(f"{path}/g/{i}", shape=(5, 4), dtype=dtype,
                                          chunks=(2, 3), zarr_format=version)  # fmt: skip
                array[:] = np.arange(20).reshape(5, 4).astype(dtype)
            found.append(("zarr", path))
    with suppress(ImportError):
        import anndata
        import pandas as pd

        frame = pd.DataFrame({"n": [1, 2, 3], "c": pd.Categorical(["a", "b", "a"])}, list("xyz"))
        data = anndata.AnnData(np.arange(6.0).reshape(3, 2), obs=frame)
        data.write_h5ad(f"{folder}/anndata.h5ad")
        found.append(("anndata", f"{folder}/anndata.h5ad"))
    with suppress(ImportError):
        import pandas as pd
        import tables  # noqa: F401  # pandas needs it

        frame = pd.DataFrame({"i": [1, 2], "f": [0.5, np.nan]})
        for form in "fixed", "table":
            frame.to_hdf(f"{folder}/pandas-{form}.h5", key="df", format=form)
            found.append(("pandas", f"{folder}/pandas-{form}.h5"))
    return found


def read_by_library(path):
    """Return a function: the name of an array -> what the file's library reads."""
    with open(path if os.path.isfile(path) else os.devnull, "rb") as file:
        head = file.read(4)
    if os.path.isdir(path):
        import zarr

        return lambda name: zarr.open_array(path, path=name, mode="r")[...]
    if path.endswith(".npz"):
        archive = np.load(path, allow_pickle=False)
        return lambda name: archive[name]
    if head[:3] == b"CDF":
        import netCDF4

        file = netCDF4.Dataset(path)
        file.set_auto_maskandscale(False)
        file.set_auto_chartostring(False)
        return lambda name: np.asarray(file[name][...])
    import h5py

    if h5py.is_hdf5(path):
        file = h5py.File(path)
        with open(path, "rb") as opened:
            matlab = opened.read(19) == b"MATLAB 7.3 MAT-file"
        return lambda name: _of_h5py(h5py, file[name], matlab)
    from scipy import io

    values = io.loadmat(path)
    return lambda name: _of_mat(values, name)


def _of_h5py(h5py, dataset, matlab):
    text = h5py.check_string_dtype(dataset.dtype)
    if text is not None and text.length is None:
        try:
            return np.asarray(dataset.asstr()[...]).astype("U")
        except UnicodeDecodeError:
            return np.asarray(dataset[...]).astype("S")
    return dataset[...].T if matlab else dataset[...]


def _of_mat(values, name):
    first, *rest = name.split("/")
    value = values[first]
    for part in rest:
        value = value.reshape(-1)[0][part]
    return value


def equal(found, expected):
    """Say whether an array has the values that a library read; NaNs are equal."""
    expected = np.asarray(expected)
    if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
        return False
    if expected.dtype.names:
        return all(equal(found[name], expected[name]) for name in expected.dtype.names)
    if expected.dtype.kind in "V":
        return found.tobytes() == expected.tobytes()
    return np.array_equal(found, expected, equal_nan=expected.dtype.kind in "fcmM")


def array_at(g, name):
    """Return an array of a group, or of a matrix that was a group in the file."""
    above, _, own = name.rpartition("/")
    return getattr(g[above], own) if above and isinstance(g[above], ZSparse) else g[name]


def imported(call, path, url):
    """Import a file; return (result, arrays, left out, what differs)."""
    done = call("import", "--as", "group", "--json", path, url, code=None)
    if done.returncode and not done.stdout:  # else some of it could not be read
        assert done.stderr.count("\n") >= 1
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("wendelin import: error: "), line
        return "refused", 0, 0, []
    arrays = [entry["name"] for entry in done.json["arrays"]]
    left = [entry for entry in done.json["left_out"] if "why" in entry]
    wrong = []
    with warnings.catch_warnings(action="ignore"), wendelin.open(url, "r") as g:
        read = read_by_library(path) if arrays else None
        wrong += [
            name for name in arrays if not equal(np.array(array_at(g, name)[...]), read(name))
        ]
    return "read", len(arrays), len(left), wrong


def table(results):
    """Return lines of a table of (library, suffix, result, arrays, left out)."""
    rows = {}
    for library, suffix, result, arrays, left in results:
        row = rows.setdefault((library, suffix), Counter())
        row.update(files=1, arrays=arrays, left=left, refused=int(result == "refused"))
    lines = ["| library | files | | arrays, equal | left out, named | files refused by a line |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for (library, suffix), n in sorted(rows.items()):
        cells = [library, suffix, *(n[key] for key in ("files", "arrays", "left", "refused"))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
