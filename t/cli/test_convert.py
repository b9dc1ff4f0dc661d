"""Files of all dtypes, byte orders, layouts and chunks: as the library reads them, and back."""

import tempfile
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import dtypes
from support.examples import examples

from wendelin.cli.errors import Failure
from wendelin.cli.files import Options, named, open_sink, open_source, parse_file
from wendelin.cli.files.base import Layout
from wendelin.cli.files.convert import as_bytes, packed, plain

pytestmark = pytest.mark.once

many = settings(
    phases=[Phase.generate, Phase.shrink],
    max_examples=examples(10),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.fixture(scope="module")
def folder():
    """Return the folder in which files are made."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def chunks_for(draw, shape):
    """Draw a shape of chunks; None: there are none."""
    if not shape or 0 in shape or draw(st.booleans()):
        return None
    return tuple(draw(st.integers(1, n)) for n in shape)


# ---- what a library writes, and how it reads it again ----


def write_npy(draw, path, values):
    np.save(path, values)
    return np.load(path)


def write_npz(draw, path, values):
    (np.savez if draw(st.booleans()) else np.savez_compressed)(path, x=values)
    with np.load(path) as file:
        return file["x"]


def write_hdf5(draw, path, values):
    import h5py

    from wendelin.cli.files.hdf5 import _dtype_for

    with h5py.File(path, "w") as file:
        options = {"chunks": chunks_for(draw, values.shape)}
        if options["chunks"]:
            options["compression"] = draw(st.sampled_from([None, "gzip"]))
            options["shuffle"] = draw(st.booleans())
        dataset = file.create_dataset("x", values.shape, _dtype_for(h5py, values.dtype), **options)
        if values.size:
            dataset[...] = values
    with h5py.File(path) as file:
        return file["x"][...]


def write_zarr(version):
    def write(draw, path, values):
        import zarr

        order = {"order": draw(st.sampled_from("CF"))} if version == 2 else {}
        chunks = chunks_for(draw, values.shape) or tuple(max(1, n) for n in values.shape)
        array = zarr.create_array(
            path,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            zarr_format=version,
            overwrite=True,
            fill_value=0 if values.dtype.kind in "iufc" else None,
            **order,
        )
        array[...] = values
        return np.asarray(zarr.open(path, mode="r")[...]).reshape(values.shape)

    return write


#: kind -> (suffix, its writer, dtypes that the library has)
FILES = {
    "npy": ("npy", write_npy, {}),
    "npz": ("npz", write_npz, {}),
    "hdf5": ("h5", write_hdf5, {"text": False}),
    "zarr2": ("zarr", write_zarr(2), {"long": False}),
    "zarr3": ("zarr", write_zarr(3), {"long": False}),
}


def read_all(draw, source):
    """Read a source in steps; return its bytes as an array of its layout."""
    layout = source.layout
    data = np.zeros(layout.size * layout.dtype.itemsize, "u1")
    step, at = draw(st.integers(1, max(1, layout.size))), 0
    while at < layout.size:
        at = source.next_data(at)
        stop = min(at + step, layout.size)
        itemsize = layout.dtype.itemsize
        data[at * itemsize : stop * itemsize] = as_bytes(source.read(at, stop))
        at = stop
    return data.view(layout.dtype).reshape(layout.shape, order=layout.order)


def write_all(draw, sink, values, order):
    """Write an array to a sink, in steps."""
    flat = values.reshape(-1, order=order)
    step, at = draw(st.integers(1, max(1, flat.size))), 0
    step = max(sink.together, step // sink.together * sink.together)
    while at < flat.size:
        sink.write(at, flat[at : at + step])
        at += step
    sink.finish()


def exported(draw, folder, suffix, values, order):
    """Write an array to a file; return the file."""
    path = folder / f"out.{suffix}"
    if path.is_file():
        path.unlink()
    layout = Layout(values.shape, plain(values.dtype), order)
    file = parse_file(str(path))
    sink = open_sink(named(file, "x"), file.path, layout, Options(), resume=False)
    with closing(sink):
        write_all(draw, sink, values, order)
    return file


def read_by_library(file):
    """Return what the library reads of a file with an array."""
    if file.kind in ("npy", "npz"):
        found = np.load(file.path)
        return found if file.kind == "npy" else found["x"]
    if file.kind == "hdf5":
        import h5py

        with h5py.File(file.path) as opened:
            x = opened["x"]
            return np.asarray((x.asstr() if x.dtype.kind == "O" else x)[...])
    import zarr

    with warnings.catch_warnings(action="ignore"):
        return np.asarray(zarr.open(file.path, mode="r")[...])


@pytest.mark.filterwarnings("ignore:The data type")  # what Zarr has not settled yet
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("kind", FILES)
@many
@given(data=st.data())
def test_what_is_imported_is_what_the_library_reads(folder, kind, data):
    suffix, write, kinds = FILES[kind]
    values = data.draw(dtypes.arrays(dtypes.dtypes(**kinds)))
    path = str(folder / f"x.{suffix}")
    try:
        expected = write(data.draw, path, values)
    except (TypeError, ValueError):  # a dtype that the library does not write, or not read
        return
    with closing(open_source(parse_file(path), Options())) as source:
        imported = read_all(data.draw, source)
    if not imported.ndim:  # libraries make a scalar of it, with its own length and byte order
        expected = np.asarray(expected).astype(imported.dtype)
    assert dtypes.same(imported, expected)
    if suffix != "zarr":  # Zarr makes the fields of structures follow each other
        assert imported.dtype == plain(expected.dtype)
    # out again, into another kind of file, if that takes it; and in again
    target = data.draw(st.sampled_from(["npy", "npz", "h5", "zarr"]))
    order = "F" if target == "npy" and imported.ndim > 1 else "C"
    try:
        out = exported(data.draw, folder, target, imported, order)
    except Failure as e:
        if target not in ("h5", "zarr") or "cannot have" not in str(e):
            raise
        return
    there = read_by_library(out)
    text = target == "h5" and imported.dtype.kind == "U"  # it is of variable length there
    if not imported.ndim or text:
        there = there.astype(imported.dtype)
    assert dtypes.same(there, imported)
    with closing(open_source(out, Options())) as source:
        again = read_all(data.draw, source)
    if text:
        assert again.dtype.kind == "U"
        again = again.astype(imported.dtype)
    assert dtypes.same(again, imported)
    if target != "zarr":
        assert again.dtype in (imported.dtype, packed(imported.dtype))


@many
@given(data=st.data())
def test_raw_bytes(folder, data):
    """They are what NumPy has in memory, in either order, from an offset on."""
    values = data.draw(dtypes.arrays())
    order = data.draw(st.sampled_from("CF"))
    offset = data.draw(st.integers(0, 9))
    path = str(folder / "x.raw")
    sink = open_sink(
        parse_file(path), path, Layout(values.shape, values.dtype, order), Options(), resume=False
    )
    with closing(sink):
        write_all(data.draw, sink, values, order)
    written = (folder / "x.raw").read_bytes()
    assert written == values.tobytes(order)
    (folder / "x.raw").write_bytes(bytes(offset) + written)
    options = Options(values.dtype, values.shape, order, offset)
    with closing(open_source(parse_file(path), options)) as source:
        again = read_all(data.draw, source)
    assert again.tobytes(order) == written
    assert dtypes.same(again, values)


#: dtypes of which a text is read as the same values
CSV = dtypes.scalars(text=False, opaque=False).filter(lambda dtype: "[25s]" not in dtype.str)


@many
@given(data=st.data())
def test_csv(folder, data):
    """Numbers and times of all kinds, and structures of them: text is read as the same values."""
    of = data.draw(st.sampled_from(["numbers", "structures"]))
    if of == "numbers":
        kinds, shapes = CSV, st.tuples(st.integers(1, 9), st.integers(1, 4))
    else:
        kinds, shapes = dtypes.structures(CSV), st.tuples(st.integers(1, 9))
    values = data.draw(dtypes.arrays(kinds, shapes))
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    path = str(folder / "x.csv")
    layout = Layout(values.shape, plain(values.dtype), "C")
    with closing(open_sink(parse_file(path), path, layout, Options(), resume=False)) as sink:
        write_all(data.draw, sink, np.ascontiguousarray(values), "C")
    options = Options(plain(values.dtype), header=of == "structures")
    with closing(open_source(parse_file(path), options)) as source:
        again = read_all(data.draw, source)
    assert again.dtype == values.dtype
    assert equal_numbers(again, values)


def equal_numbers(a, b):
    """Say whether numbers are equal; one NaN is as good as another."""
    if a.dtype.names:
        return all(equal_numbers(a[name], b[name]) for name in a.dtype.names)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
