"""neostorage of NEO 1.12 (Python 2.7) behind a proxy: it listens elsewhere than it says.

python2.7 neostorage.py PORT ARGUMENTS...   # of neostorage; -b is where the proxy is
"""

from __future__ import absolute_import

import sys

from neo.lib.connector import SocketConnector

port = int(sys.argv.pop(1))
bind = SocketConnector._bind
SocketConnector._bind = lambda self, addr: bind(self, (addr[0], port))

if __name__ == "__main__":
    from neo.scripts.neostorage import main

    sys.exit(main())
