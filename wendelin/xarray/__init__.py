"""xarray datasets in a database: a group is a dataset, and its arrays are the variables.

    xr.open_dataset("x.fs#run/7", engine="wendelin")     lazy: variables are views of the database
    import wendelin.xarray; ds.wendelin.save(...)        in one transaction

The dimensions of a variable are in the attributes of its array: see layout. It needs
`pip install 'wendelin.core[xarray]'`, and no other module imports it, except as xarray's engine.

Organization
------------
    layout   names and attributes: what of a group is a dataset
    reading  the engine, which xarray finds as an entry point
    saving   ds.wendelin
"""

from __future__ import annotations

try:
    import xarray as _  # noqa: F401  # asked for here, so that its absence has one message
except ImportError as e:
    raise ImportError(
        "wendelin.xarray needs xarray, which is not installed: pip install 'wendelin.core[xarray]'"
    ) from e

from wendelin.xarray.layout import DIMENSIONS
from wendelin.xarray.reading import Engine
from wendelin.xarray.saving import DatasetAccessor, save

__all__ = ["DIMENSIONS", "DatasetAccessor", "Engine", "save"]
