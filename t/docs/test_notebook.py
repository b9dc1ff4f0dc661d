"""The notebook of demo/ runs, in a real kernel; it is committed without what it printed."""

import json
import re
import shutil

import pytest
from support import pages

NOTEBOOK = pages.ROOT / "demo" / "sensors.ipynb"


def test_outputs_are_stripped():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
        assert not cell["metadata"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter
def test_notebook_runs(tmp_path):
    for package in "nbclient", "ipykernel", "matplotlib":
        pytest.importorskip(package, reason=f"{package} is not installed: tox -e docs has it")
    import nbclient
    import nbformat

    notebook = nbformat.read(shutil.copy(NOTEBOOK, tmp_path), as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    *off_by, was, now = map(float, re.findall(r"-?\d+\.\d*", text))
    assert off_by == [0, 0, 0, 2]
    assert (round(was, 2), round(now, 2)) == (17, 15)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "(864000, 4)" in str(outputs)  # the array shows itself
