"""What strangers do to an open port. Each attack takes some seconds, and leaves nothing open.

Some are open to whoever reaches the port. A broker without keys takes the others from everybody on its computer too,
one with keys only from those that it let in.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import zmq

from dolmetsch.errors import RemoteError
from dolmetsch.keys import Credentials, KeyPair
from dolmetsch.messages import (
    MAX_MESSAGE_BYTES,
    TOKEN_BYTES,
    Ack,
    Ask,
    Hello,
    JobSpec,
    Knock,
    Manage,
    Ping,
    Register,
    Status,
    Submit,
    batches,
)
from dolmetsch.transport import LINGER_MS, DealerPort
from dolmetsch.wire import PROTOCOL, decode, encode
from fuzz.mutate import mutants
from fuzz.storm import zmtp
from fuzz.targets import wire

HELD_S: Final = 0.5  # how long connections that lead nowhere are held open
ANSWER_S: Final = 10.0
PACE: Final = 50  # of a hundred that may wait in a listener's queue
SLOW_CHARS: Final = 2000
SLOW_JOBS: Final = 512


@dataclass(frozen=True, slots=True)
class Place:
    """A broker on loopback: its ports, and a gateway's credentials where it has keys. ``door`` is 0 where it has none.

    ``size`` is how much of everything: 1 is what a test has time for.
    """

    address: str
    main: int
    telemetry: int
    door: int
    keys: Credentials | None
    size: float
    rng: random.Random

    def times(self, count: int) -> int:
        return max(1, int(count * self.size))


Attack = Callable[[Place, int], None]  # the second is the port


@contextlib.contextmanager
def crowd(port: int, count: int, *says: bytes, pace: int = 0) -> Iterator[list[socket.socket]]:
    """So many connections at once, each of which says one of ``says``; some may be refused.

    Every ``pace`` of them wait until they were taken: one too many in the listener's queue waits a second.
    """
    there: list[socket.socket] = []
    try:
        for number in range(count):
            with contextlib.suppress(OSError):
                there.append(zmtp.connect(port))
                there[-1].sendall(says[number % len(says)] if says else b"")
                if pace and number % pace == 0:
                    there[-1].recv(1)
        yield there
    finally:
        for one in there:
            one.close()


# ---- whoever reaches the port ----


def random_bytes(place: Place, port: int) -> None:
    """Bytes that are no ZMTP, or begin like it."""
    begins = (b"", zmtp.SIGNATURE, zmtp.greeting(), zmtp.greeting() + zmtp.ready(b"DEALER"), b"GET / HTTP/1.1\r\n\r\n")
    for number in range(place.times(100)):
        zmtp.say(port, begins[number % len(begins)] + place.rng.randbytes(place.rng.randrange(4000)))


def half_open(place: Place, port: int) -> None:
    """Connections that greet, or begin to, and then keep silent."""
    says = (
        b"", zmtp.SIGNATURE[:5], zmtp.greeting()[:20], zmtp.greeting(), zmtp.greeting(b"CURVE"),
        zmtp.greeting(b"PLAIN"), zmtp.greeting() + zmtp.ready(b"DEALER")[:9],
        zmtp.greeting(b"CURVE") + zmtp.frame(b"\x05HELLO" + bytes(90), 4),
    )  # fmt: skip
    with crowd(port, place.times(200), *says):
        time.sleep(HELD_S)


def other_versions(place: Place, port: int) -> None:
    """Greetings of other ZMTPs, other mechanisms, other sockets."""
    says = [zmtp.greeting(major=major, minor=minor) for major in (0, 1, 2, 4, 255) for minor in (0, 255)]
    says += [zmtp.greeting(mechanism) for mechanism in (b"", b"GSSAPI", b"X" * 20)]
    says += [zmtp.greeting() + zmtp.ready(kind) for kind in (b"PUSH", b"ROUTER", b"", b"A" * 300)]
    for say in says * place.times(3):
        zmtp.say(port, say)


def one_after_the_other(place: Place, port: int) -> None:
    """Connections that are closed as soon as they are taken: the broker's greeting has begun."""
    for _ in range(place.times(10_000)):
        with contextlib.suppress(OSError), zmtp.connect(port) as one:
            one.recv(1)


def all_at_once(place: Place, port: int) -> None:
    """A thousand connections open at the same time."""
    with crowd(port, place.times(1000), pace=PACE) as there:
        time.sleep(HELD_S)
        assert len(there) >= 0.9 * place.times(1000), "the attack did not get through"


def huge_frames(place: Place, port: int) -> None:
    """Frames that say that they are endless, and one that is larger than any may be."""
    start = zmtp.greeting() + zmtp.ready(b"DEALER")
    for size in (MAX_MESSAGE_BYTES + 1, 2**40, 2**63, 2**64 - 1):
        zmtp.say(port, start + bytes((zmtp.LONG,)) + size.to_bytes(8, "big") + bytes(100_000))
    zmtp.say(port, start + zmtp.frame(bytes(MAX_MESSAGE_BYTES + 1)))
    zmtp.say(port, start + zmtp.frame(b"x", zmtp.MORE) * place.times(50_000))  # parts of a message that never ends


def subscriptions(place: Place, port: int) -> None:
    """Topics without end, at a socket that publishes."""
    start = zmtp.greeting() + zmtp.ready(b"SUB")
    zmtp.say(port, start + b"".join(zmtp.subscription(PROTOCOL + b"%d" % n) for n in range(place.times(20_000))))
    for size in (10_000, 300_000):
        zmtp.say(port, start + zmtp.subscription(PROTOCOL + bytes(size)))


# ---- who speaks ZeroMQ ----


@contextlib.contextmanager
def _dealer(place: Place, port: int, name: str, keys: Credentials | None) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = DealerPort(context, f"tcp://127.0.0.1:{port}", name, keys)
    dealer.socket.setsockopt(zmq.LINGER, 0)
    try:
        yield dealer.socket
    finally:
        dealer.close()
        context.term()


def unknown_keys(place: Place, port: int) -> None:
    """Whoever knows the broker's public key, with keys of their own that nobody let in."""
    assert place.keys is not None
    for number in range(place.times(10)):
        keys = Credentials(KeyPair(*zmq.curve_keypair()), place.keys.broker)
        with _dealer(place, port, f"stranger-{number}", keys) as dealer:
            for token in (b"", bytes(TOKEN_BYTES)):
                dealer.send_multipart(encode(Knock(name=f"stranger-{number}", token=token)))
            dealer.send_multipart([PROTOCOL, b"KNOCK", place.rng.randbytes(100)])
            dealer.poll(int(HELD_S * 100))


def random_frames(place: Place, port: int) -> None:
    """Messages that are none, of another version, or almost right; the broker must still answer after them."""
    number = place.rng.randrange(2**32)
    inputs = mutants(wire.seeds(), wire.TOKENS, wire.MOST_BYTES, place.times(2000), number)
    with _dealer(place, port, f"random-{number}", place.keys) as dealer:
        for count, data in enumerate(inputs):
            frames = [PROTOCOL, wire.kind(data), data[1:]] if count % 4 else [data[:20], b"HELLO", data]
            if _harmless(frames):
                dealer.send_multipart(frames)
        dealer.send_multipart(encode(Ask()))
        until = time.monotonic() + ANSWER_S
        while dealer.poll(max(0, int(1000 * (until - time.monotonic())))):
            if isinstance(decode(dealer.recv_multipart()), Status):
                return
    raise AssertionError(f"the broker did not answer within {ANSWER_S:g} s of nonsense")


def _harmless(frames: list[bytes]) -> bool:
    """Whether it is no order of an operator, no node that would be lost again, and not what the attack waits for."""
    try:
        return not isinstance(decode(frames), Manage | Register | Ask)
    except RemoteError:
        return True


def slow_reader(place: Place, port: int) -> None:
    """A gateway that asks for much, says that it is there, and never reads."""
    name = uuid.uuid4().hex
    with _dealer(place, port, name, place.keys) as dealer:
        dealer.disconnect(dealer.getsockopt_string(zmq.LAST_ENDPOINT))
        dealer.setsockopt(zmq.RCVHWM, 1)  # it counts from the next connection on
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart(encode(Hello(gateway=name, incarnation=name)))
        ids = [uuid.uuid4().bytes for _ in range(place.times(SLOW_JOBS))]
        for some in batches(ids, weigh=lambda _: SLOW_CHARS):
            jobs = [JobSpec(one, "de→en", ("x" * SLOW_CHARS,), 1, name, 60.0, b"") for one in some]
            dealer.send_multipart(encode(Submit(jobs=tuple(jobs))))
        for _ in range(place.times(3)):
            dealer.send_multipart(encode(Ping()))
            time.sleep(1.0)
        for some in batches(ids):  # or the broker would keep the results for a day
            dealer.send_multipart(encode(Ack(jobs=tuple(some))))
        dealer.setsockopt(zmq.LINGER, LINGER_MS)


STRANGERS: Final[tuple[Attack, ...]] = (random_bytes, half_open, other_versions, all_at_once, huge_frames)
