"""A ZEO server before a NEO cluster, so that clients of Python 3 reach NEO 1.12 (Python 2.7).

    python2.7 gateway.py CONFIGURATION      # as that of runzeo

Run by Python 2.7 with neoppod 1.12.0 and ZEO 5.4.1: see neo-gateway, which finds and starts it.
Three things are different from runzeo:

- Messages are msgpack, with text where Python 3 wants text: names of methods, keys, classes.
- Objects are loaded by several threads, each with a client of NEO of its own, as a client loads one
  object at a time: so all storage nodes work at once. Those that only load have no caches, which
  would be told of commits later than the one that commits; clients of ZEO have theirs.
- ConflictErrors have the attribute that the ZEO server asks for.

The order of answers is what makes loads by threads delicate: a client takes what it gets as the
newest revision, until it is told of a newer one. So what was loaded while its object was
invalidated is loaded again, before it is sent:

    loop                        thread of the load           NEO
    loadBefore(oid)             asks, gets revision 1
    invalidate(oid): noted,                                  commits revision 2
      goes to the client
    reply: noted since the
      load began: again         asks, gets revision 2
"""

from __future__ import absolute_import, print_function

import sys
import threading
from collections import deque
from multiprocessing.pool import ThreadPool

from Queue import Queue
from ZEO import StorageServer, runzeo
from ZEO.asyncio import marshal, server
from ZODB.POSException import ConflictError

THREADS = 4  # that load

if sys.version_info[0] != 2:
    sys.exit("gateway.py is run by Python 2.7, as NEO 1.12 is: see neo-gateway")


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
StorageServer.ZEOStorage.get_info = lambda self: text(get_info_of_zeo(self))


# ---- loads by threads ----


class Invalidated(object):
    """What was invalidated while loads are under way."""

    def __init__(self):
        self.lock = threading.Lock()
        self.loads = 0  # under way
        self.count = 0  # of invalidations
        self.notes = deque()  # (count, oids)

    def load_begins(self):
        """Return what since() wants."""
        with self.lock:
            self.loads += 1
            return self.count

    def load_ends(self):
        with self.lock:
            self.loads -= 1
            if not self.loads:
                self.notes.clear()

    def note(self, oids):
        with self.lock:
            self.count += 1
            if self.loads:
                self.notes.append((self.count, frozenset(oids)))

    def since(self, count, oid):
        """Say whether an object was invalidated since load_begins()."""
        with self.lock:
            return any(n > count and oid in oids for n, oids in self.notes)


invalidated = Invalidated()
pool = ThreadPool(THREADS)
loaders = Queue()  # storages, for whoever loads
openers = []  # of more of them


def more_loaders():
    """Open another one, in the background: it takes a second or so."""
    try:
        opener = openers.pop()
    except IndexError:
        return
    thread = threading.Thread(target=lambda: loaders.put(opener.open()))
    thread.daemon = True
    thread.start()


invalidate_of_zeo = StorageServer.StorageServer.invalidate


def invalidate(self, conn, storage_id, tid, oids=(), *args, **kw):
    """See StorageServer. Noted before any client is told."""
    invalidated.note(oids)
    return invalidate_of_zeo(self, conn, storage_id, tid, oids, *args, **kw)


class LoadReply(server.MTDelay):
    """The answer to loadBefore, when a thread has it."""

    def __init__(self, oid, tid):
        server.MTDelay.__init__(self)
        self.oid, self.tid = oid, tid
        self.begin()

    def begin(self):
        self.count = invalidated.load_begins()
        pool.apply_async(self.run)

    def run(self):
        if loaders.empty():
            more_loaders()
        storage = loaders.get()
        try:
            result, failure = storage.loadBefore(self.oid, self.tid), None
        except Exception:
            result, failure = None, sys.exc_info()
        finally:
            loaders.put(storage)
        self.ready.wait()
        self.protocol.call_soon_threadsafe(self.finish, result, failure)

    def finish(self, result, failure):
        """In the loop, where messages are sent in their order."""
        again = invalidated.since(self.count, self.oid)
        invalidated.load_ends()
        if again:
            self.begin()
        elif failure is not None:
            server.Delay.error(self, failure)
        else:
            server.Delay.reply(self, result)


def loadBefore(self, oid, tid):  # ZEO calls it so
    """See ZEOStorage."""
    self.stats.loads += 1
    return LoadReply(oid, tid)


StorageServer.StorageServer.invalidate = invalidate
StorageServer.ZEOStorage.loadBefore = loadBefore


class Server(runzeo.ZEOServer):
    """A ZEO server of one storage, and of others that load from the same cluster."""

    def open_storages(self):
        """See ZEOServer."""
        runzeo.ZEOServer.open_storages(self)
        (opener,) = self.options.storages
        loaders.put(self.storages[opener.name])
        opener.config.cache_size = 0
        openers.extend([opener] * (THREADS - 1))


if __name__ == "__main__":
    sys.setcheckinterval(1000)  # threads of Python 2 take the lock from each other too often
    options = runzeo.ZEOOptions()
    options.realize(["-C", sys.argv[1]])
    Server(options).main()
