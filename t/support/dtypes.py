"""Strategies of hypothesis for dtypes and arrays of all kinds, for property tests of files."""

import numpy as np
from hypothesis import strategies as st

ORDERS = st.sampled_from("<>")
UNITS = st.sampled_from(["s", "us", "25s", "D", "as"])
NAMES = ["a", "b", "x y", "Δt", "名", "c.d"]


def scalars(times=True, text=True, opaque=True, long=True):
    """Return a strategy for dtypes without fields, of both byte orders."""
    codes = ["i1", "u1", "?", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
    found = [st.builds(lambda o, c: np.dtype(o + c), ORDERS, st.sampled_from(codes))]
    if long:
        found.append(
            st.builds(lambda o, c: np.dtype(c).newbyteorder(o), ORDERS, st.sampled_from("gG"))
        )
    if times:
        found.append(
            st.builds(
                lambda o, c, u: np.dtype(f"{o}{c}8[{u}]"), ORDERS, st.sampled_from("Mm"), UNITS
            )
        )
    if text:
        found.append(st.builds(lambda n: np.dtype(f"S{n}"), st.integers(1, 9)))
        found.append(st.builds(lambda o, n: np.dtype(f"{o}U{n}"), ORDERS, st.integers(1, 5)))
    if opaque:
        found.append(st.builds(lambda n: np.dtype(f"V{n}"), st.integers(1, 17)))
    return st.one_of(found)


@st.composite
def structures(draw, of, inner=True):
    """Draw a structure: packed, aligned, with gaps, or with fields out of order."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    fields = st.one_of(of, structures(of, inner=False)) if inner else of
    formats = []
    for _ in names:
        dtype = draw(fields)
        if draw(st.integers(0, 3)) == 0:
            shape = draw(st.sampled_from([(2,), (1,), (2, 3)]))
            dtype = np.dtype((dtype, shape))
        formats.append(dtype)
    how = draw(st.sampled_from(["packed", "aligned", "gaps", "shuffled"]))
    if how in ("packed", "aligned"):
        return np.dtype(list(zip(names, formats, strict=True)), align=how == "aligned")
    at, offsets = 0, {}
    order = draw(st.permutations(range(len(names)))) if how == "shuffled" else range(len(names))
    for i in order:
        at += draw(st.integers(0, 5))
        offsets[i] = at
        at += formats[i].itemsize
    return np.dtype(
        {
            "names": names,
            "formats": formats,
            "offsets": [offsets[i] for i in range(len(names))],
            "itemsize": at + draw(st.integers(0, 5)),
        }
    )


def dtypes(**kinds):
    """Return a strategy for dtypes that arrays may have."""
    of = scalars(**kinds)
    return st.one_of(of, structures(of))


SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def fill(rng, values):
    """Fill an array with all kinds of elements that its dtype has."""
    dtype = values.dtype
    if dtype.names:
        for name in dtype.names:
            fill(rng, values[name])
    elif dtype.kind == "b":
        values[...] = rng.integers(0, 2, values.shape)
    elif dtype.kind == "U":
        points = rng.choice(
            [0, 32, 65, 233, 0x202E, 0x4E00, 0x1F600], (*values.shape, dtype.itemsize // 4)
        )
        values[...] = points.astype("u4").view(f"U{dtype.itemsize // 4}").reshape(values.shape)
    elif dtype.char in "gG":
        values[...] = rng.standard_normal(values.shape)
        values[...] *= 10.0 ** rng.integers(-300, 300)
    else:
        data = rng.integers(0, 256, values.size * dtype.itemsize, "u1").tobytes()
        values[...] = np.frombuffer(data, dtype).reshape(values.shape)


@st.composite
def arrays(draw, of=None, shapes=SHAPES):
    """Draw an array, in C or Fortran order."""
    shape, dtype = draw(shapes), draw(dtypes() if of is None else of)
    values = np.zeros(shape, dtype, draw(st.sampled_from("CF")))
    fill(np.random.default_rng(draw(st.integers(0, 1 << 32))), values)
    return values


def leaves(values):
    """Yield (path of a field, its elements) for each field of an array, as bytes in native order.

    Gaps between fields are left out. Long doubles are given as text, as they have unused bytes.
    """
    if values.dtype.names is not None:
        for name in values.dtype.names:
            for inner, data in leaves(values[name]):
                yield (name, *inner), data
    else:
        plain = np.zeros(values.shape, values.dtype.newbyteorder("="))
        plain[...] = values
        if values.dtype.char in "gG":
            yield (), [str(v) for v in plain.reshape(-1)]
        else:
            yield (), plain.tobytes()


def same(a, b):
    """Say whether two arrays have the same elements, bit by bit, in fields of the same names."""
    return a.shape == b.shape and list(leaves(a)) == list(leaves(b))
