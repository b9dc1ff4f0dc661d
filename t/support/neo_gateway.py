"""neo-gateway: a ZEO server before a NEO 1.12 cluster, for clients of Python 3.

    neo-gateway --name CLUSTER --masters "HOST:PORT HOST:PORT..." [--address HOST:PORT]
    neo-gateway --config FILE

Runs until it is interrupted. FILE is as runzeo's, for TLS and limits; without one, the URL for
dbopen() is printed. NEO's client is of Python 2.7: it is installed, the first time, into ~/.cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support.neocluster import Gateway, NoPython2, environment
from support.servers import NotStarted


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name")
    parser.add_argument("--masters")
    parser.add_argument("--address", help="by default a free port of 127.0.0.1")
    parser.add_argument("--config", metavar="FILE", help="see docs/cluster.md")
    args = parser.parse_args()
    if bool(args.config) == bool(args.name or args.masters or args.address):
        parser.error("it is either --name and --masters, or --config")
    if not args.config and not (args.name and args.masters):
        parser.error("it wants both --name and --masters")
    try:
        python = environment(lambda line: print(line, file=sys.stderr, flush=True)) / "python"
        if args.config:
            program = Path(__file__).resolve().with_name("gateway.py")
            os.execv(python, [str(python), str(program), args.config])  # signals are for it
        with tempfile.TemporaryDirectory(prefix="neo-gateway-") as folder:
            gateway = Gateway(folder, args.masters, args.name, args.address)
            gateway.start()
            print(gateway.url, flush=True)
            try:
                sys.exit(gateway.popen.wait() and gateway.output())
            finally:
                gateway.stop()
    except (NotStarted, NoPython2, OSError) as e:
        sys.exit(f"neo-gateway: {e}")
    except subprocess.CalledProcessError as e:
        sys.exit(f"neo-gateway: {e}\n{(e.output or '')[-3000:]}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
