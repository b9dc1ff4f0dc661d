"""Messages of a ZEO server, as a transport gives them piece by piece, and as they are decoded."""

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ZEO.asyncio.marshal import encoder
from ZEO.Exceptions import ProtocolError
from ZODB.POSException import POSKeyError

from wendelin.lib.storage.zeoreceive import Receiver, decoder


class Protocol:
    """Takes messages, as a Protocol of ZEO and the protocol below it do."""

    def __init__(self, version=b"Z5"):
        self.protocol_version = version
        self.sm_protocol = self
        self.messages = []
        self.receive = self.take

    def take(self, message):
        self.messages.append(bytes(message))
        if message == b"fail":
            raise ValueError("fail")
        if message == b"close":
            self.receive = None

    def decode(self, message):
        return "by ZEO", bytes(message)


def feed(receiver, stream, pieces):
    """Give a stream of bytes as a transport does; pieces has the most at a time [bytes]."""
    at = 0
    for most in pieces:
        buffer = receiver.get_buffer(-1)
        assert len(buffer), "a read of nothing is the end of a stream"
        n = min(most, len(buffer), len(stream) - at)
        if n == 0:
            break
        buffer[:n] = stream[at : at + n]
        at += n
        receiver.buffer_updated(n)
    while at < len(stream):
        buffer = receiver.get_buffer(-1)
        n = min(len(buffer), len(stream) - at)
        assert n, "a read of nothing is the end of a stream"
        buffer[:n] = stream[at : at + n]
        at += n
        receiver.buffer_updated(n)


sizes = st.one_of(
    st.integers(0, 20),
    st.integers((64 << 10) - 10, (64 << 10) + 10),
    st.integers(0, 300_000),
)


@given(st.lists(sizes, max_size=8), st.lists(st.integers(1, 200_000), max_size=20))
def test_messages_are_those_that_were_sent(sizes, pieces):
    messages = [bytes([i]) * size for i, size in enumerate(sizes)]
    protocol = Protocol()
    feed(Receiver(protocol), b"".join(struct.pack(">I", len(m)) + m for m in messages), pieces)
    assert protocol.messages == messages


def test_a_very_large_message():
    message = bytes(20 << 20)
    protocol = Protocol()
    receiver = Receiver(protocol)
    for _ in range(2):
        feed(receiver, struct.pack(">I", len(message)) + message, [100, 5])
    assert protocol.messages == [message] * 2


def test_memory_grows_with_what_arrives_and_not_with_what_is_announced():
    tracemalloc.start()
    try:
        protocol = Protocol()
        receiver = Receiver(protocol)
        feed(receiver, struct.pack(">I", 3 << 30) + bytes(100_000), [1000, 30_000])
        arrived = 100_000
        while arrived < 40 << 20:
            buffer = receiver.get_buffer(-1)
            n = min(len(buffer), 1_000_000)
            assert n
            receiver.buffer_updated(n)
            arrived += n
            # the bytes that are there and, while they move, their old place
            assert tracemalloc.get_traced_memory()[1] <= 3 * arrived + (5 << 20)
            tracemalloc.reset_peak()
        assert not protocol.messages
    finally:
        tracemalloc.stop()


def test_a_message_that_the_buffer_grows_for_is_whole():
    message = bytes(range(251)) * 50_000  # 12 MB
    protocol = Protocol()
    receiver = Receiver(protocol)
    for m in message, b"small", message[:5_000_000], message:
        feed(receiver, struct.pack(">I", len(m)) + m, [7, 100_000])
    assert protocol.messages == [message, b"small", message[:5_000_000], message]


def test_a_message_that_fails_does_not_end_the_stream():
    protocol = Protocol()
    feed(Receiver(protocol), b"".join(struct.pack(">I", 4) + m for m in (b"fail", b"next")), [])
    assert protocol.messages == [b"fail", b"next"]


def test_after_the_end_nothing_is_given():
    protocol = Protocol()
    stream = struct.pack(">I", 5) + b"close" + struct.pack(">I", 4) + b"next"
    feed(Receiver(protocol), stream, [])
    assert protocol.messages == [b"close"]


@pytest.mark.parametrize("version", [None, b"Z5"])
def test_after_the_end_nothing_is_received(version):
    """No memory is taken for a large message, and no other failure is told."""
    protocol = Protocol(version)
    receiver = Receiver(protocol)
    stream = struct.pack(">I", 5) + b"close" + struct.pack(">I", 1 << 30) + bytes(200_000)
    feed(receiver, stream, [9, 2, 2, 2])
    assert protocol.messages == [b"close"]
    assert len(receiver.get_buffer(-1)) == 64 << 10


def test_a_server_of_another_kind_is_not_waited_for():
    """No memory is taken for a message as large as its first bytes say."""
    protocol = Protocol(None)
    protocol.client, failed = protocol, []
    protocol.register_failed = lambda of, why: failed.append((of, why))
    feed(Receiver(protocol), b"SSH-2.0-OpenSSH_9.2p1\r\n", [])
    assert not protocol.messages
    (of, why), *others = failed
    assert of is protocol
    assert isinstance(why, ProtocolError)
    assert "SSH-2.0" in str(why)
    assert not others


@pytest.mark.parametrize("size", [0, 100, 70_000, 3 << 20])
@pytest.mark.parametrize("last", [b"t" * 8, None, POSKeyError])
def test_large_messages_are_decoded_as_zeo_does(size, last):
    message = ((b"o" * 8, b"t" * 8), 0, ".reply", (b"x" * size, b"t" * 8, last))
    decode = decoder(Protocol())
    assert decode(memoryview(bytearray(encoder(b"Z5")(*message)))) == message


def test_zeo_decodes_what_it_does_not_allow():
    """Its own decoder says why."""
    import pickle

    evil = pickle.dumps((1, 0, ".reply", print), 3)
    assert decoder(Protocol())(memoryview(evil)) == ("by ZEO", evil)
    assert decoder(Protocol())(evil) == ("by ZEO", evil)


def test_other_protocols_are_left_to_zeo():
    protocol = Protocol(b"M5")
    assert decoder(protocol) == protocol.decode
