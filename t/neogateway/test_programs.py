"""neo-cluster and neo-gateway, used by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import transaction
import trustme
from support import ROOT, SUPPORT, storages
from support.servers import answers, free_port, wait_until
from ZEO.Exceptions import ClientDisconnected

from wendelin.lib.zodb import dbclose, dbopen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.database,
    pytest.mark.formats,
]
of_neo = pytest.mark.only("neo")


GATEWAY = str(Path(sys.executable).with_name("neo-gateway"))


def tool(name, *args):
    command = [GATEWAY] if name == "neo-gateway" else [sys.executable, SUPPORT, name]
    command += args
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


@of_neo
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
        command = [GATEWAY, "--name=test", f"--masters={masters}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as gateway:
            try:
                assert get(gateway.stdout.readline().strip()) == 2
            finally:
                gateway.terminate()
    finally:
        stopped = tool("neo-cluster", "stop", "--remove", folder)
    assert stopped.returncode == 0, stopped.stderr
    assert not (tmp_path / "cluster").exists()


@of_neo
def test_a_gateway_with_tls_and_a_limit(testdb, tmp_path):
    """The configuration is the example of docs/cluster.md."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in "gateway", "client":
        cert = authority.issue_cert("localhost", common_name=name)
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for pem in cert.cert_chain_pems:
            pem.write_to_path(tmp_path / f"{name}.pem", append=True)
    text = (ROOT / "docs" / "cluster.md").read_text()
    example = text.split("```text\n%import neo.client\n")[1].split("```")[0]
    port = free_port()
    changes = {
        "10.0.0.5:9991": f"127.0.0.1:{port}",
        "10.0.0.1:10000 10.0.0.2:10000": storages.NeoDatabase.cluster.masters,
        "name sensors": "name test",
        # the cluster of the tests has no certificates
        example[example.index("  ca /etc/neo") : example.index("</NEOStorage>")]: "",
        "/etc/neo": str(tmp_path),
    }
    for old, new in changes.items():
        assert old in example
        example = example.replace(old, new)
    config = tmp_path / "gateway.conf"
    config.write_text(f"%import neo.client\n{example}")
    url = f"zeo://127.0.0.1:{port}?wait_timeout=5"
    options = f"&server_hostname=localhost&ca={tmp_path}/ca.pem"
    options += f"&cert={tmp_path}/client.pem&key={tmp_path}/client.key"
    command = [GATEWAY, f"--config={config}"]
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stderr=log) as gateway:
        try:
            wait_until(lambda: answers(port), "gateway", alive=lambda: gateway.poll() is None)
            put(url + options, 7)
            assert get(url + options) == get(testdb.url) == 7
            with pytest.raises(ClientDisconnected):
                get(url)
        finally:
            gateway.terminate()
    assert not answers(port), "it runs on"


WRONG = {
    "": "--masters",
    "--name=x": "--masters",
    "--config=/ --name=x": "/",
    "--config=/dev/zero --name=x": "--config",
    "--config=/not/there": "/not/there",
    "--name=x --masters=here": "'here' is not HOST:PORT",
    "--name=x --masters=a:1 --address=b:99999": "'b:99999' is not HOST:PORT",
    "--nme=x": "--nme",
}


@pytest.mark.parametrize("args", WRONG)
def test_a_call_that_is_wrong(args):
    """The program says so in a line, before it installs anything."""
    done = tool("neo-gateway", *args.split())
    assert done.returncode == 2
    assert WRONG[args] in done.stderr
    assert done.stderr.startswith("neo-gateway: ")
    assert done.stderr.count("\n") == 1


def test_the_gateway_without_python2(tmp_path):
    """The program says what to install."""
    done = subprocess.run(
        [GATEWAY, "--name=x", "--masters=127.0.0.1:1"],
        env={"XDG_CACHE_HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pyenv install 2.7" in done.stderr
    assert "Traceback" not in done.stderr
