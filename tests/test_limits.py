"""Inputs that have no other test of their limits: files of keys, lists of grants, announcements of strangers."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import IPVersion, ServiceInfo, Zeroconf
from zeroconf._dns import DNSPointer
from zeroconf._protocol.outgoing import DNSOutgoing

from dolmetsch import config, discovery, keys
from dolmetsch.config import KeysConfig
from dolmetsch.errors import ConfigError, InputError, KeyFileError, NodeError
from dolmetsch.keyring import MAX_GRANTS, read_grants
from tests.conftest import wait_until

PUBLIC = b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


def test_a_list_of_brokers_ends(tmp_path: Path) -> None:
    config = KeysConfig(dir=str(tmp_path))
    lines = [f"tcp://10.0.{number // 250}.{number % 250}:5570 {PUBLIC.decode()}\n" for number in range(200)]
    (tmp_path / keys.KNOWN_BROKERS).write_text("".join(lines))
    assert len(keys.known_brokers(config)) == keys.MAX_KNOWN
    (tmp_path / keys.KNOWN_BROKERS).write_text("# no end\n" * keys.MAX_FILE_BYTES)
    with pytest.raises(KeyFileError, match="no list of brokers"):
        keys.known_brokers(config)


def test_a_key_file_ends(tmp_path: Path) -> None:
    path = tmp_path / f"client{keys.SUFFIX}"
    keys.pair_at(path, make=True)
    with path.open("a") as file:
        file.write("#" * keys.MAX_FILE_BYTES)
    with pytest.raises(KeyFileError, match="is not a key file"):
        keys.pair_at(path, make=False)


def test_a_deployment_ends() -> None:
    line = f"node pi {PUBLIC.decode()}\n"
    assert len(read_grants(line * MAX_GRANTS)) == MAX_GRANTS
    with pytest.raises(InputError, match=f"line {MAX_GRANTS + 1}: more than"):
        read_grants(line * (MAX_GRANTS + 1))


def test_an_invitation_ends() -> None:
    with pytest.raises(ConfigError, match="not an invitation"):
        keys.read_invitation("dolmetsch-" + "A" * 2**20)


@given(
    st.dictionaries(st.sampled_from([b"v", b"key", b"door", b"x"]), st.none() | st.binary(max_size=60)),
    st.integers(0, 65535), st.lists(st.binary(min_size=4, max_size=4), max_size=3),
)  # fmt: skip
def test_whatever_is_announced_is_a_broker_or_nothing(
    properties: dict[bytes, bytes | None], port: int, addresses: list[bytes]
) -> None:
    name = f"x.{discovery.SERVICE}"
    info = ServiceInfo(discovery.SERVICE, name, port=port, properties=properties, addresses=addresses)
    assert discovery._read(info) == []  # no chance finds a key


def test_strangers_who_announce_nonsense_hide_no_broker() -> None:
    """A name that the library refuses, and many behind which nobody answers."""
    here = ["127.0.0.1"]

    def ours() -> int:
        return sum(one.key == PUBLIC for one in discovery.find(interfaces=here))

    announcer = discovery.Announcer(lambda: "tcp://10.0.0.2:5570", "tcp://10.0.0.2:5572", PUBLIC, here)
    announcer.start()
    try:
        with Zeroconf(interfaces=here, ip_version=IPVersion.V4Only) as stranger:
            ended = threading.Event()
            names = ["a\x1b[2Jb", *(f"{number}{'x' * 50}" for number in range(discovery.MAX_FOUND - 4))]

            def speak() -> None:
                while not ended.wait(0.2):
                    out = DNSOutgoing(0x8400)  # an answer, with authority
                    for name in names:
                        pointer = DNSPointer(discovery.SERVICE, 12, 1, 120, f"{name}.{discovery.SERVICE}")
                        out.add_answer_at_time(pointer, 0)
                    stranger.send(out)

            thread = threading.Thread(target=speak)
            thread.start()
            try:
                wait_until(lambda: ours() == 1, 60, "the broker is found")
                started = time.monotonic()
                assert ours() == 1
                assert time.monotonic() - started < 10
            finally:
                ended.set()
                thread.join(10)
    finally:
        announcer.close()


def test_of_several_brokers_none_is_taken() -> None:
    found = [discovery.Found(f"b{one}", f"tcp://10.0.0.{one}:1", f"tcp://10.0.0.{one}:3", PUBLIC) for one in range(3)]
    with pytest.raises(NodeError, match="say which"):
        discovery.the_broker(found, None)


def test_a_configuration_without_an_end() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        config.load(Path("/dev/zero"), {}, {})
    with pytest.raises(ConfigError, match="longer than"):
        config.environment(Path("/dev/zero"))
