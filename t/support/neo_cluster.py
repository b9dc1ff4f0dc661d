"""neo-cluster: a NEO 1.12 cluster on this machine, to try things with; a gateway before it.

    neo-cluster start [--folder DIR] [--storages N] [--replicas N]
    neo-cluster kill-storage N | start-storage N | status | stop   [--folder DIR]

start installs NEO, the first time, starts a master, storage nodes with SQLite, an admin and a
gateway, and prints the URL for dbopen(). It goes on until stop. All of it is in the folder, by
default ./neo-test: databases, logs, and cluster.json with the pids.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from support.neocluster import Gateway, NeoCluster
from support.servers import NotStarted, Process
from wendelin.neogateway.environment import NoPython2, environment


def say(line):
    print(line, file=sys.stderr, flush=True)


def load(folder):
    """Return what start() has written."""
    path = folder / "cluster.json"
    if not path.exists():
        sys.exit(f"neo-cluster: nothing runs in {folder}: neo-cluster start --folder {folder}")
    return json.loads(path.read_text())


def runs(state, name):
    """Say whether a process runs; another process that now has its pid does not count."""
    with suppress(OSError):
        of = Path(f"/proc/{state['pids'][name]}/cmdline").read_bytes().decode().split("\0")
        return state["commands"][name][-1] in of
    return False


def start(args):
    folder = args.folder.resolve()
    if (folder / "cluster.json").exists():
        sys.exit(f"neo-cluster: {folder} has a cluster: neo-cluster stop --folder {args.folder}")
    folder.mkdir(parents=True, exist_ok=True)
    environment(say)
    cluster = NeoCluster(folder, args.storages, args.replicas)
    gateway = Gateway(folder, cluster.masters)
    state = {"pids": {}, "commands": {}, "logs": {}, "admin": cluster.admin_port}
    state["neo"] = cluster.url
    processes = {"master": cluster.master, "admin": cluster.admin}
    processes |= {f"storage {i}": p for i, p in enumerate(cluster.storages, 1)}
    for name, process in processes.items():
        process.outlives = True
        process.start()
        note(state, name, process, folder)
    cluster.wait()
    gateway.outlives = True
    gateway.start()
    state["url"] = gateway.url
    note(state, "gateway", gateway, folder)
    print(gateway.url)


def note(state, name, process, folder):
    """Write to cluster.json that a process runs."""
    state["pids"][name] = process.pid
    state["commands"][name] = process.command
    state["logs"][name] = str(process.log)
    (folder / "cluster.json").write_text(json.dumps(state, indent=1))


def storage_of(args):
    """Return the state, and the name of the storage node that the command is for."""
    state = load(args.folder)
    name = f"storage {args.number}"
    if name not in state["pids"]:
        sys.exit(f"neo-cluster: there is no {name} in {args.folder}")
    return state, name


def kill_storage(args):
    state, name = storage_of(args)
    if runs(state, name):
        os.kill(state["pids"][name], signal.SIGKILL)


def start_storage(args):
    state, name = storage_of(args)
    if runs(state, name):
        sys.exit(f"neo-cluster: {name} runs")
    process = Process(state["commands"][name], state["logs"][name])
    process.outlives = True
    process.start()
    note(state, name, process, args.folder)


def status(args):
    state = load(args.folder)
    for name, pid in state["pids"].items():
        print(f"{name}: pid {pid}, {'runs' if runs(state, name) else 'ended'}")
    ctl = [environment() / "neoctl", "-a", f"127.0.0.1:{state['admin']}", "print", "cluster"]
    print("cluster:", subprocess.run(ctl, capture_output=True, text=True).stdout.strip() or "?")
    print(state["neo"])
    print(state.get("url", "no gateway yet"))


def stop(args):
    state = load(args.folder)
    for name in reversed(state["pids"]):
        if runs(state, name):
            os.kill(state["pids"][name], signal.SIGTERM)
    end = time.monotonic() + 20
    for name in state["pids"]:
        while runs(state, name):
            if time.monotonic() > end:
                os.kill(state["pids"][name], signal.SIGKILL)
            time.sleep(0.05)
    (args.folder / "cluster.json").unlink()
    if args.remove:
        shutil.rmtree(args.folder)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in start, kill_storage, start_storage, status, stop:
        command = commands.add_parser(function.__name__.replace("_", "-"))
        command.add_argument("--folder", type=Path, default=Path("neo-test"))
        command.set_defaults(function=function)
        if function is start:
            command.add_argument("--storages", type=int, default=2)
            command.add_argument("--replicas", type=int, default=1)
        elif function is stop:
            command.add_argument("--remove", action="store_true", help="databases and logs, too")
        elif function is not status:
            command.add_argument("number", type=int, metavar="N")
    args = parser.parse_args()
    try:
        args.function(args)
    except (NotStarted, NoPython2, OSError) as e:
        sys.exit(f"neo-cluster: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(f"neo-cluster: {e}\n{(e.output or '')[-3000:]}")


if __name__ == "__main__":
    main()
