"""ZEO's own tests of its client, on ours: one class of them. All: tox -e zeo-client."""

import os
import subprocess
import sys

import pytest
from support import SUPPORT


@pytest.mark.slow
@pytest.mark.once
def test_zeos_own_tests(tmp_path):
    suite = SUPPORT / "zeo_suite.py"
    done = subprocess.run(
        [sys.executable, "-P", suite, "MappingStorageTests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-10000:]
    ran = int(done.stdout.split("RAN")[1])
    assert ran >= 50
