"""neostorage of NEO 1.12 (Python 2.7) behind a proxy: it does not listen where it says.

python2.7 neostorage.py PORT ARGUMENTS...   # of neostorage; -b is where the proxy is
"""

from __future__ import absolute_import

import sys

from neo.lib.connector import SocketConnector

port = int(sys.argv.pop(1))
bind = SocketConnector._bind


def bind_behind(self, addr):
    """Listen at the port, and say that it is at the address."""
    bind(self, (addr[0], port))
    self.getAddress = lambda: addr


SocketConnector._bind = bind_behind

if __name__ == "__main__":
    from neo.scripts.neostorage import main

    sys.exit(main())
