"""A ZEO server before a NEO cluster, so that clients of Python 3 reach NEO 1.12 (Python 2.7).

    python2.7 gateway.py CONFIGURATION      # as that of runzeo

Run by Python 2.7 with neoppod 1.12.0 and ZEO 5.4.1: see neo-gateway, which finds and starts it.
Six things are different from runzeo:

- Messages are msgpack, with text where Python 3 wants text: names of methods, keys, classes.
- Objects are asked for as requests come, many at a time and of all storage nodes, where NEO's own
  client asks for one, and waits for it. What is out of the ordinary goes through that one.
- Begin() of a transaction sees what other gateways have committed: the master is asked.
- A request for the tid of an object reads only that, not all of the object.
- ConflictErrors have the attribute that the ZEO server asks for.
- SHA-1 of objects, which NEO compares, is computed by libcrypto where this Python has none of its
  own that is fast: five times as fast, and threads run meanwhile.

At work are the loop of the server, the thread in which NEO's client receives, and threads of pools,
for SHA-1 of large objects, and for what NEO's own client does, which waits.

    loop                                  NEO's poll thread           storage node
    loadBefore: ask()  -------------------------------------------->  AskObject
    other requests, other nodes           put()  <------------------  AnswerObject
    answered(): checked, reply  <-------  call_soon_threadsafe()

The order of answers is what makes this delicate: a client takes what it gets as the newest
revision, until it is told of a newer one. So what was loaded while its object was invalidated is
loaded again, before it is sent:

    loop                        load                         NEO
    loadBefore(oid)             asks, gets revision 1
    invalidate(oid): noted,                                  commits revision 2
      goes to the client
    reply: noted since the
      load began: again         asks, gets revision 2
"""

from __future__ import absolute_import, print_function

import ctypes
import ctypes.util
import logging
import sys
import threading
import time
from collections import OrderedDict, deque
from multiprocessing.pool import ThreadPool

if sys.version_info[0] != 2:
    sys.exit("gateway.py is run by Python 2.7, as NEO 1.12 is: see neo-gateway")

from neo.client import app as neo_app
from neo.client.exception import NEOStorageNotFoundError
from neo.client.handlers import storage as neo_storage
from neo.lib import util
from neo.lib.compress import decompress_list
from neo.lib.connection import ConnectionClosed
from neo.lib.protocol import Packets
from ZEO import StorageServer, runzeo
from ZEO.asyncio import marshal, server
from ZODB.POSException import ConflictError, POSKeyError

LARGE = 64 << 10  # what others do not wait for [bytes]

# ---- SHA-1 ----


def sha1_of_libcrypto():
    """Return what makeChecksum() does, by OpenSSL."""
    name = ctypes.util.find_library("crypto")
    # threads run meanwhile; which is not worth it for what takes some microseconds
    large, small = ctypes.CDLL(name).SHA1, ctypes.PyDLL(name).SHA1
    for sha1 in large, small:
        sha1.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
        sha1.restype = ctypes.c_void_p

    def checksum(data):
        digest = ctypes.create_string_buffer(20)
        (small if len(data) < LARGE else large)(data, len(data), digest)
        return digest.raw

    return checksum


try:
    import _hashlib  # noqa: F401  # Python's own, of OpenSSL too
except ImportError:
    try:
        neo_app.makeChecksum = neo_storage.makeChecksum = util.makeChecksum = sha1_of_libcrypto()
    except (AttributeError, OSError, TypeError):
        pass  # there is none: slowly, then


# ---- text ----


def text(obj):
    """Return a string, or all strings in a structure, as text."""
    if isinstance(obj, bytes):
        return obj.decode("utf-8", "replace")
    if isinstance(obj, (tuple, list)):
        return tuple(text(x) for x in obj)
    if isinstance(obj, dict):
        return {text(k): text(v) for k, v in obj.items()}
    return obj


def with_text_keys(obj):
    """Return a structure whose dicts have text for keys; values stay bytes."""
    if isinstance(obj, (tuple, list)):
        return tuple(with_text_keys(x) for x in obj)
    if isinstance(obj, dict):
        return {text(k): with_text_keys(v) for k, v in obj.items()}
    return obj


ERROR = 2  # flag of a reply that is an exception
encoder_of_zeo = marshal.encoder


def encoder(protocol, server=False):
    """See ZEO.asyncio.marshal."""
    encode = encoder_of_zeo(protocol, server)

    def encode_for_python3(message_id, flag, name, args):
        if flag == ERROR:
            class_, args = args
            args = with_text_keys(args)
            if isinstance(args, dict):
                for key in ("message", "class_name"):
                    if key in args:
                        args[key] = text(args[key])
            args = (text(class_), args)
        elif isinstance(args, (tuple, list, dict)):
            args = with_text_keys(args)
        return encode(message_id, flag, text(name), args)

    return encode_for_python3


marshal.encoder = server.encoder = encoder
ConflictError.data = None

get_info_of_zeo = StorageServer.ZEOStorage.get_info


def get_info(self):
    """See ZEOStorage; clients are told that undo does not work."""
    info = text(get_info_of_zeo(self))
    # NEO 1.12: some undos end all storage nodes (an AssertionError in findUndoTID)
    info["supportsUndo"] = False
    return info


StorageServer.ZEOStorage.get_info = get_info


# ---- loads ----


class Invalidated(object):
    """What was invalidated while loads are under way."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0  # of invalidations
        self.began = OrderedDict()  # count -> loads under way that began then; ascending
        self.notes = deque()  # (count, oids), that some of them are older than

    def load_begins(self):
        """Return what since() and load_ends() want."""
        with self.lock:
            self.began[self.count] = self.began.get(self.count, 0) + 1
            return self.count

    def load_ends(self, count):
        with self.lock:
            self.began[count] -= 1
            if not self.began[count]:
                del self.began[count]
            oldest = next(iter(self.began), self.count)
            while self.notes and self.notes[0][0] <= oldest:
                self.notes.popleft()

    def note(self, oids):
        with self.lock:
            self.count += 1
            if self.began:
                self.notes.append((self.count, frozenset(oids)))

    def since(self, count, oid):
        """Say whether an object was invalidated since load_begins()."""
        with self.lock:
            return any(n > count and oid in oids for n, oids in self.notes)


invalidated = Invalidated()
invalidate_of_zeo = StorageServer.StorageServer.invalidate


def invalidate(self, conn, storage_id, tid, oids=(), *args, **kw):
    """See StorageServer. Noted before any client is told."""
    invalidated.note(oids)
    return invalidate_of_zeo(self, conn, storage_id, tid, oids, *args, **kw)


class Asked(object):
    """What storage nodes were asked for, and have not answered yet; all of it in the loop.

    A node joins all that it has to send anew at each piece it sends: so a few large objects are
    under way at a time, and many small ones.
    """

    BYTES = 4 << 20  # under way from a node, about
    LEAST, MOST = 2, 64  # requests

    def __init__(self):
        self.under_way = {}  # connection -> number of requests
        self.size = 0  # of the last object [bytes]
        self.waiting = {}  # (storage, partition) -> loads, for one of its nodes to be free

    def connection(self, app, oid):
        """Return (connection of the node to ask, whether it may be asked now).

        (None, True): NEO's client is to find one.
        """
        best = None
        for cell in app.pt.getCellList(app.pt.getPartition(oid), True):
            node = cell.getNode()
            conn = node._connection
            if conn is None or not node._identified or conn.isClosed():
                failed_until = app._node_failure_dict.get(node.getUUID(), 0)
                if node.isRunning() and failed_until < time.time():
                    return None, True  # which connects to nodes
            elif best is None or self.under_way.get(conn, 0) < self.under_way.get(best, 0):
                best = conn
        if best is None:
            return None, True
        most = min(max(self.BYTES // max(self.size, 1), self.LEAST), self.MOST)
        return best, self.under_way.get(best, 0) < most

    def begin(self, conn):
        self.under_way[conn] = self.under_way.get(conn, 0) + 1

    def end(self, conn):
        self.under_way[conn] -= 1
        if not self.under_way[conn]:
            del self.under_way[conn]

    def wait(self, load, partition):
        """Ask for what a load wants, as soon as may be."""
        waiting = self.waiting.setdefault(partition, deque())
        waiting.append(load)
        if len(waiting) == 1:
            self.try_partition(partition)

    def try_partition(self, partition):
        waiting = self.waiting[partition]
        while waiting and waiting[0].ask():
            waiting.popleft()
        if not waiting:
            del self.waiting[partition]

    def go_on(self):
        """Ask for what waits, as far as may be; nobody waits for nodes that others wait for."""
        for partition in list(self.waiting):
            self.try_partition(partition)


asked = Asked()

# what waits in one is not waited for in another
checks = ThreadPool(2)
loads = ThreadPool(4)  # what NEO's client loads
tids = ThreadPool(4)
syncs = ThreadPool(2)


class Later(server.Delay):
    """The answer to what takes its time, in a thread of a pool."""

    def __init__(self, pool, work, *args):
        self.pool, self.work, self.args = pool, work, args

    def set_sender(self, message_id, protocol):
        """See Delay."""
        server.Delay.set_sender(self, message_id, protocol)
        self.pool.apply_async(self.run)

    def run(self):
        if not self.protocol.connected:
            return
        try:
            answer = self.reply, self.work(*self.args)
        except Exception:
            answer = self.error, sys.exc_info()
        self.protocol.call_soon_threadsafe(*answer)


def sync(storage):
    """Wait for what others have committed: the master answers after it has told us of that."""
    while True:
        try:
            return storage.sync()
        except ConnectionClosed:
            pass  # the next call waits for a master


def get_tid(storage, oid):
    """Return the tid of the last record of an object."""
    try:
        ((tid, size),) = storage.app._askStorageForRead(oid, Packets.AskObjectHistory(oid, 0, 1))
    except NEOStorageNotFoundError:
        size = 0
    if not size:  # or its creation was undone
        raise POSKeyError(oid)
    return tid


class LoadReply(server.Delay):
    """The answer to loadBefore; and the queue that NEO's client puts a node's answer into."""

    def __init__(self, storage, oid, tid):
        self.storage, self.oid, self.tid = storage, oid, tid

    def set_sender(self, message_id, protocol):
        """See Delay. It begins here, in the loop: then the receiver is known."""
        server.Delay.set_sender(self, message_id, protocol)
        self.begin()

    def begin(self):
        self.count = invalidated.load_begins()
        try:
            partition = self.storage.app.pt.getPartition(self.oid)
        except Exception:  # the cluster has none now
            partition = None
        asked.wait(self, (self.storage, partition))

    def is_gone(self):
        """Say whether nobody waits for it any more; then it has ended."""
        if not self.protocol.connected:
            invalidated.load_ends(self.count)
        return not self.protocol.connected

    def ask(self):
        """Ask a node; False: it has to wait."""
        if self.is_gone():
            return True
        try:
            self.conn, now = asked.connection(self.storage.app, self.oid)
            if not now:
                return False
            if self.conn is not None:
                self.conn.ask(Packets.AskObject(self.oid, None, self.tid), queue=self)
                asked.begin(self.conn)
                return True
        except Exception:  # the cluster has no such partition now, or the connection is gone
            pass
        loads.apply_async(self.load)
        return True

    def put(self, answer):
        """Take a node's answer. In NEO's poll thread, which has locks."""
        with putting:
            first = not answers
            answers.append((self, answer[1]))
        if first:
            self.protocol.call_soon_threadsafe(take_answers)

    def answered(self, packet):
        """In the loop."""
        asked.end(self.conn)
        if not isinstance(packet, Packets.AnswerObject):
            loads.apply_async(self.load)  # it knows what to do, and what to say
        elif asked.size < LARGE:
            self.checked(*self.check(packet))
        else:
            checks.apply_async(self.check_large, (packet,))

    def check_large(self, packet):
        """In a thread of the pool: the loop goes on meanwhile."""
        self.protocol.call_soon_threadsafe(self.checked, *self.check(packet))

    def check(self, packet):
        """Return (what is loaded, its size); or (None, LARGE), if it is not to be had so."""
        try:
            _, tid, next_tid, compression, checksum, data, _ = packet.decode()
            if data and checksum == util.makeChecksum(data):
                return (decompress_list[compression](data), tid, next_tid), len(data)
        except Exception:
            logging.exception("an answer of a storage node is not understood")
        return None, LARGE

    def checked(self, result, size):
        """In the loop."""
        asked.size = size
        if result is None:
            loads.apply_async(self.load)
        else:
            self.finish(result, None)

    def load(self):
        """Load by NEO's client: it waits, tries other nodes, raises. In a thread of the pool."""
        result = failure = None
        try:
            if self.protocol.connected:
                result = self.storage.loadBefore(self.oid, self.tid)
        except Exception:
            failure = sys.exc_info()
        self.protocol.call_soon_threadsafe(self.finish, result, failure)

    def finish(self, result, failure):
        """In the loop, where messages are sent in their order."""
        if self.is_gone():
            return
        again = invalidated.since(self.count, self.oid)
        invalidated.load_ends(self.count)
        if again:
            self.begin()
        elif failure is not None:
            self.error(failure)
        else:
            self.reply(result)


#: (load, packet), for the loop: one call for many, as each wakes it up; changed with: putting
answers = deque()
putting = threading.Lock()


def take_answers():
    """In the loop: take all that have come."""
    with corked:
        while answers:
            load, packet = answers[0]
            try:
                load.answered(packet)
            except Exception:
                logging.exception("a client was not answered")
            # Removed last: until then, a thread that adds another one need not call. And not
            # between its look and its append: nobody would take that, nor what comes after it.
            with putting:
                answers.popleft()
        asked.go_on()


class Cork(object):
    """What is sent to clients goes out together, at the end of a with; all of it in the loop."""

    def __init__(self):
        self.lines = None  # transport -> what is to be sent

    def __enter__(self):
        self.lines = {}

    def __exit__(self, *exc):
        lines, self.lines = self.lines, None
        for transport, data in lines.items():
            try:
                self.send(transport, data)
            except Exception:
                logging.exception("a client cannot be written to")
                transport.abort()

    def send(self, transport, data):
        small = []
        for line in data:  # large ones as they are: to join them is to copy them
            if len(line) >= LARGE:
                transport.writelines(small)
                transport.write(line)
                small = []
            else:
                small.append(line)
        transport.writelines(small)


corked = Cork()


class Transport(object):
    """What ZEO writes to."""

    def __init__(self, transport):
        self.transport = transport

    def __getattr__(self, name):
        return getattr(self.transport, name)

    def writelines(self, data):
        """See WriteTransport."""
        if corked.lines is None:
            self.transport.writelines(data)
        else:
            corked.lines.setdefault(self.transport, []).extend(data)


connection_made_of_zeo = server.ServerProtocol.connection_made


def connection_made(self, transport):
    """See ServerProtocol."""
    connection_made_of_zeo(self, Transport(transport))


def loadBefore(self, oid, tid):  # ZEO calls it so
    """See ZEOStorage."""
    self.stats.loads += 1
    return LoadReply(self.storage, oid, tid)


setup_delegation_of_zeo = StorageServer.ZEOStorage.setup_delegation


def setup_delegation(self):
    """See ZEOStorage."""
    setup_delegation_of_zeo(self)
    self.getTid = lambda oid: Later(tids, get_tid, self.storage, oid)


def ping(self):
    """See ZEOStorage. A client asks it when a transaction begins."""
    return Later(syncs, sync, self.storage)


send_reply_of_zeo = server.ServerProtocol.send_reply


def send_reply(self, message_id, result, *args, **kw):
    """See ServerProtocol, which sees that it is a Delay when it cannot be encoded."""
    if isinstance(result, server.Delay):
        result.set_sender(message_id, self)
    else:
        send_reply_of_zeo(self, message_id, result, *args, **kw)


StorageServer.StorageServer.invalidate = invalidate
StorageServer.ZEOStorage.loadBefore = loadBefore
StorageServer.ZEOStorage.setup_delegation = setup_delegation
StorageServer.ZEOStorage.ping = ping
server.ServerProtocol.send_reply = send_reply
server.ServerProtocol.connection_made = connection_made


def main():
    """Run until SIGTERM."""
    sys.setcheckinterval(1000)  # threads of Python 2 take the lock from each other too often
    options = runzeo.ZEOOptions()
    options.realize(["-C", sys.argv[1]])
    runzeo.ZEOServer(options).main()


if __name__ == "__main__":
    main()
