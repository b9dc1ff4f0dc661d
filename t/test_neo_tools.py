"""neo-cluster and neo-gateway, as one uses them by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import storages
import transaction

from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [
    pytest.mark.database,
    pytest.mark.formats,
    pytest.mark.skipif(storages.kind() is not storages.NeoDatabase, reason="is of NEO"),
]
HERE = Path(__file__).parent


def tool(name, *args):
    command = [sys.executable, HERE / name, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def put(url, value):
    root = dbopen(url)
    root["x"] = value
    transaction.commit()
    dbclose(root)


def get(url):
    root = dbopen(url)
    value = root["x"]
    dbclose(root)
    return value


def test_a_cluster_by_hand(tmp_path):
    folder = f"--folder={tmp_path}/cluster"
    done = tool("neo-cluster", "status", folder)
    assert done.returncode != 0
    assert "nothing runs" in done.stderr
    started = tool("neo-cluster", "start", folder)
    try:
        assert started.returncode == 0, started.stderr
        url = started.stdout.strip()
        put(url, 1)
        assert tool("neo-cluster", "kill-storage", "2", folder).returncode == 0
        assert tool("neo-cluster", "kill-storage", "7", folder).returncode != 0
        put(url, 2)
        assert "storage 2: pid" in tool("neo-cluster", "status", folder).stdout
        assert tool("neo-cluster", "start-storage", "2", folder).returncode == 0
        status = tool("neo-cluster", "status", folder).stdout
        assert "cluster: RUNNING" in status
        assert "ended" not in status
        masters = status.split("neo://test@")[1].split()[0]
        command = [sys.executable, HERE / "neo-gateway", "--name=test", f"--masters={masters}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
            try:
                assert get(gateway.stdout.readline().strip()) == 2
            finally:
                gateway.terminate()
    finally:
        stopped = tool("neo-cluster", "stop", "--remove", folder)
    assert stopped.returncode == 0, stopped.stderr
    assert not (tmp_path / "cluster").exists()
