"""What array-likes of other libraries mean besides their numbers: masks and units.

An array of ours has elements only. NumPy drops a mask or a unit without a word when it converts;
here that is an error which says what to do. All ways in which values get into arrays and attributes
call elements_of(). This module knows no arrays of ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_elements", "elements_of"]

_PLAIN = (np.generic, bool, int, float, complex, str, bytes)


def _is_masked(values: Any) -> bool:
    return isinstance(values, np.ma.MaskedArray) and bool(np.any(np.ma.getmaskarray(values)))


def _has_missing(values: Any) -> bool:
    """Say whether objects have a missing value that would become a text, as None and NA do."""
    texts = gaps = False
    for value in values.flat:
        if value is None or type(value).__name__ == "NAType":  # of pandas
            return True
        texts = texts or isinstance(value, str)
        gaps = gaps or (isinstance(value, float) and value != value)
    return texts and gaps


def _unit_of(values: Any) -> tuple[str, str]:
    """Return the unit of values, and what has them without it; '' if there is none."""
    kind = type(values)  # not the object, whose attributes may be columns of a table
    for unit, plain in ("units", "magnitude"), ("unit", "value"):  # of pint, of astropy
        if hasattr(kind, plain) and hasattr(kind, unit):
            return str(getattr(values, unit)) or "dimensionless", f"q.{plain}"
    return "", ""


def elements_of(values: Any) -> Any:
    """Return values that are all that their object means: what NumPy makes of them loses nothing.

    Parameters
    ----------
    values : array_like
        Returned as it is, if NumPy or this package knows it; else as an ndarray. A masked array
        without masked elements is its data.

    Raises
    ------
    TypeError
        Elements are masked, or have a unit.
    """
    if type(values) is np.ndarray or isinstance(values, _PLAIN):
        return values
    if isinstance(values, list | tuple):
        for each in values:
            if not isinstance(each, _PLAIN):
                check_elements(each)
        return values
    check_elements(values)
    if isinstance(values, np.ma.MaskedArray):
        return values.data
    if hasattr(values, "__array__") and not hasattr(values, "_fileh"):
        kind = type(values).__name__
        values = np.asanyarray(values)  # may have a mask that it did not show, as a Dask array
        check_elements(values)
        if values.dtype.kind == "O" and _has_missing(values):
            raise TypeError(
                f"some values of the {kind} are missing, and it has Python objects: say what they "
                f"are, as by x.to_numpy(float, na_value=np.nan) of pandas"
            )
    return values


def check_elements(values: Any) -> None:
    """Check that no element is masked, and that they have no unit; nothing is loaded for it.

    Raises
    ------
    TypeError
        See elements_of().
    """
    if _is_masked(values):
        n = int(np.count_nonzero(np.ma.getmaskarray(values)))
        raise TypeError(
            f"{n} of the values {'is' if n == 1 else 'are'} masked, and an array has no mask: give "
            f"x.filled(v), with a value v for them such as nan; x.mask can be another array"
        )
    if isinstance(values, np.ndarray) and type(values) is np.ndarray:
        return
    unit, plain = _unit_of(values)
    if unit:
        raise TypeError(
            f"the values have the unit {unit}, and an array has none: give {plain}, and "
            f"A.attrs['units'] = {unit!r}"
        )
