"""gateway.py with faults that are rare otherwise: for test_gateway.py.

    python2.7 gateway_faults.py CONFIGURATION

WENDELIN_CORE_GATEWAY_FAULTS names the fault. "broken": answers of storage nodes cannot be read, and
nodes cannot be asked. "late": answers come some time after they were made. "busy": the gateway
needs time to take what others have committed. "interrupted": NEO's thread waits as it hands an
answer to the loop. On SIGUSR1, this program prints what is under way: "LEFT []" if nothing is.
"""

from __future__ import absolute_import, print_function

import itertools
import os
import signal
import sys
import threading
import time
from collections import deque

sys.path.insert(0, os.environ["WENDELIN_CORE_GATEWAY_FOLDER"])

import gateway

asked, read, checked, put = (itertools.count() for _ in range(4))
LATE = 0.03  # [s]


def every(count, n):
    return next(count) % n == n - 1


def connection(app, oid):
    if every(asked, 5):
        raise RuntimeError("a connection that is gone")
    return connection_of_gateway(app, oid)


class Unreadable(object):
    def decode(self):
        raise MemoryError


def check(load, packet):
    return check_of_gateway(load, Unreadable() if every(read, 7) else packet)


def make_checksum(data):
    return b"?" * 20 if every(checked, 11) else make_checksum_of_neo(data)


def put_late(load, answer):
    threading.Timer(LATE * (next(put) % 3), put_of_gateway, (load, answer)).start()


def invalidate_late(*args, **kw):
    time.sleep(LATE)
    return gateway.invalidate(*args, **kw)


class Interrupted(deque):
    def append(self, item):
        time.sleep(0.001)
        deque.append(self, item)


faults = os.environ["WENDELIN_CORE_GATEWAY_FAULTS"]
if faults == "broken":
    connection_of_gateway, gateway.asked.connection = gateway.asked.connection, connection
    check_of_gateway, gateway.LoadReply.check = gateway.LoadReply.check, check
    make_checksum_of_neo, gateway.util.makeChecksum = gateway.util.makeChecksum, make_checksum
elif faults == "late":
    put_of_gateway, gateway.LoadReply.put = gateway.LoadReply.put, put_late
elif faults == "busy":
    gateway.StorageServer.StorageServer.invalidate = invalidate_late
elif faults == "interrupted":
    gateway.answers = Interrupted()


def say_what_is_left(*_):
    notes = gateway.answers, gateway.invalidated.notes
    loads = gateway.invalidated.began, gateway.asked.under_way, gateway.asked.waiting
    print("LEFT", [list(x) for x in loads + notes if x])
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, say_what_is_left)
    gateway.main()
