"""Keys on disk: a program's own pair, the brokers it knows, and invitations to type.

    python -m dolmetsch.keys new PATH    make a key pair there, unless there is one; print its public key
    python -m dolmetsch.keys show PATH   print its public key

Keys are CURVE's (Curve25519, RFC 26 of ZeroMQ), written as Z85 (RFC 32): 40 characters. A pair is a certificate file
as czmq and pyzmq write it, mode 0600. ``known_brokers`` has a line ``ADDRESS PUBLICKEY`` for each broker joined; its
first one is where programs connect when nobody says otherwise.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import hashlib
import ipaddress
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgpack
import zmq
import zmq.auth
from zmq.utils import z85

from dolmetsch.config import KeysConfig, data_path
from dolmetsch.errors import ConfigError, KeyFileError
from dolmetsch.messages import TOKEN_BYTES

LOCAL_BROKER: Final = "tcp://127.0.0.1:5570"
KEY_CHARS: Final = 40  # of Z85
SUFFIX: Final = ".key_secret"
KNOWN_BROKERS: Final = "known_brokers"
MAX_KNOWN: Final = 64
MAX_FILE_BYTES: Final = 64 * 2**10  # of a key pair, which has 300, and of known_brokers
_INVITATION: Final = "dolmetsch-"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{4}(-[0-9a-f]{4}){3}", re.IGNORECASE)
_MAX_INVITATION_CHARS: Final = 1024


class KeyPair(NamedTuple):
    """``public`` may be shown to anybody; ``secret`` never leaves this computer. Both in Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


class Credentials(NamedTuple):
    """What a program needs to talk to a broker: its own pair, and the key that the broker must prove to have."""

    own: KeyPair
    broker: bytes


class Invitation(NamedTuple):
    """What ``broker.py invite`` prints: where the broker is, its key, and a token for one enrolment."""

    broker: str
    door: str
    key: bytes
    token: bytes

    def __repr__(self) -> str:
        return f"Invitation({self.broker})"

    def text(self) -> str:
        """In one word that survives shells, makefiles and chats; its checksum tells a cut or mistyped one."""
        packed: bytes = msgpack.packb([1, self.broker, self.door, z85.decode(self.key), self.token])
        body = packed + zlib.crc32(packed).to_bytes(4, "big")
        return _INVITATION + base64.urlsafe_b64encode(body).decode().rstrip("=")


def read_invitation(text: str) -> Invitation:
    """The invitation in ``text``. Raises ``ConfigError``."""
    text = text.strip()
    try:
        if not text.startswith(_INVITATION) or len(text) > _MAX_INVITATION_CHARS:
            raise ValueError
        coded = text.removeprefix(_INVITATION)
        body = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        packed, checksum = body[:-4], body[-4:]
        if zlib.crc32(packed).to_bytes(4, "big") != checksum:
            raise ValueError
        version, broker, door, key, token = msgpack.unpackb(packed)
        if version != 1 or len(key) != 32 or len(token) != TOKEN_BYTES:
            raise ValueError
        return Invitation(str(broker), str(door), z85.encode(key), bytes(token))
    except (ValueError, TypeError, binascii.Error, msgpack.UnpackException) as error:
        raise ConfigError(
            "this is not an invitation, or not all of it: copy the whole line that `python broker.py invite` printed"
        ) from error


def given_invitation(word: str) -> Invitation:
    """The one on the command line, or for ``-`` the one on a line of standard input. Raises ``ConfigError``.

    Every user of a computer can read the command lines on it. So the program begins anew, as the same process, with
    ``-`` in the place of the invitation, and finds that on its standard input.
    """
    if word == "-":
        line = b"" if sys.stdin is None else sys.stdin.buffer.readline(_MAX_INVITATION_CHARS + 1)
        return read_invitation(line.decode("ascii", "replace"))
    invitation = read_invitation(word)
    words = [f"{one.removesuffix(word)}-" if one.endswith(word) else one for one in sys.orig_argv]
    if words != sys.orig_argv:
        read, write = os.pipe()
        os.write(write, word.encode())  # a pipe holds more than an invitation may have
        os.close(write)
        os.dup2(read, 0)
        os.set_inheritable(0, True)  # where there was no standard input, ``read`` is 0
        os.execv(sys.executable, [sys.executable, *words[1:]])
    return invitation


def check_public(key: str) -> bytes:
    """``key`` as a public key. Raises ``ConfigError``."""
    try:
        if len(key) == KEY_CHARS and len(z85.decode(key.encode("ascii"))) == 32:
            return key.encode()
    except (ValueError, KeyError):  # whatever pyzmq says of a character that is not Z85's
        pass
    raise ConfigError(f"a public key has {KEY_CHARS} characters of Z85, and not {len(key)} such as these")


def fingerprint(public: bytes) -> str:
    """64 bits of the key's SHA-256, as people compare them: ``5e2f-90c1-7a44-0b3d``."""
    digest = hashlib.sha256(z85.decode(public)).hexdigest()
    return "-".join(digest[start : start + 4] for start in range(0, 16, 4))


def is_fingerprint(text: str) -> bool:
    """Whether ``text`` looks like one: no name may, or a stranger could be approved in the place of another."""
    return _FINGERPRINT.fullmatch(text) is not None


def folder(config: KeysConfig) -> Path:
    """Where this user's keys are."""
    return Path(config.dir).expanduser() if config.dir else data_path("keys")


def pair_at(path: Path, *, make: bool) -> KeyPair:
    """The key pair in ``path``, made if it is not there. Raises ``KeyFileError``."""
    with contextlib.suppress(FileNotFoundError):
        return _read_pair(path)
    if not make:
        raise KeyFileError(f"there is no key at {path}")
    pair = KeyPair(*zmq.curve_keypair())
    text = (
        "# A ZeroMQ CURVE certificate of dolmetsch. DO NOT give this file to anybody: it holds a secret key.\n\n"
        f'metadata\ncurve\n    public-key = "{pair.public.decode()}"\n    secret-key = "{pair.secret.decode()}"\n'
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of two programs that start at once, one makes the key and the other takes it.
        _write_whole(path, text, replace=False)
    except FileExistsError:
        return _read_pair(path)
    except OSError as error:
        raise KeyFileError(f"cannot write the key {path}: {error.strerror}") from error
    return pair


def _write_whole(path: Path, text: str, *, replace: bool) -> None:
    """The file with all of ``text`` and mode 0600, or none. Raises ``FileExistsError`` unless it may be replaced."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
        if replace:
            os.replace(name, path)
        else:
            os.link(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _read_pair(path: Path) -> KeyPair:
    """Raises ``FileNotFoundError`` when it is not there, and ``KeyFileError``."""
    try:
        about = path.stat()
        if about.st_size > MAX_FILE_BYTES:
            raise ValueError
        public, secret = zmq.auth.load_certificate(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not path.exists():
            raise FileNotFoundError from error  # pyzmq says so with another exception
        raise KeyFileError(f"cannot read the key {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise KeyFileError(f"{path} is not a key file: move it away, and a new one is made") from error
    if secret is None or len(public) != KEY_CHARS or len(secret) != KEY_CHARS:
        raise KeyFileError(f"{path} holds no key pair")
    if about.st_mode & 0o027:  # systemd's credentials are group-readable, through an access list
        raise KeyFileError(f"{path} can be read by others: chmod 600 it, or make a new key if somebody may have")
    return KeyPair(public, secret)


def is_loopback(where: str) -> bool:
    """Whether the address ``where`` (tcp://HOST:PORT) can only be this computer."""
    host = urlsplit(where).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def known_brokers(config: KeysConfig) -> dict[str, bytes]:
    """Address to public key, the first being the default. Raises ``KeyFileError``."""
    path = folder(config) / KNOWN_BROKERS
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read {path}: {getattr(error, 'strerror', 'not ASCII')}") from error
    if len(text) > MAX_FILE_BYTES:
        raise KeyFileError(f"{path} has more than {MAX_FILE_BYTES} bytes: that is no list of brokers")
    known: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines()[:MAX_KNOWN], 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            where, key = words
            known[where] = check_public(key)
        except (ValueError, ConfigError) as error:
            raise KeyFileError(f"{path}, line {number}: not ADDRESS PUBLICKEY") from error
    return known


def remember_broker(config: KeysConfig, where: str, public: bytes, *, first: bool) -> None:
    """Keep the key of the broker at ``where``; ``first`` makes it the default. Raises ``KeyFileError``."""
    known = known_brokers(config)
    if known.get(where) == public and (not first or next(iter(known)) == where):
        return
    known.pop(where, None)
    known = {where: public, **known} if first else {**known, where: public}
    path = folder(config) / KNOWN_BROKERS
    text = "".join(f"{one} {key.decode()}\n" for one, key in list(known.items())[:MAX_KNOWN])
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_whole(path, text, replace=True)
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error


def default_broker(config: KeysConfig) -> str:
    """Where to connect when nobody says where: to the broker joined last, else to one on this computer."""
    return next(iter(known_brokers(config)), LOCAL_BROKER)


def own_pair(config: KeysConfig) -> KeyPair:
    """This program's own pair, made if need be. Raises ``KeyFileError``."""
    if config.client:
        return pair_at(Path(config.client).expanduser(), make=False)  # whoever names a file means one that is there
    return pair_at(folder(config) / f"client{SUFFIX}", make=True)


def credentials(config: KeysConfig, where: str) -> Credentials | None:
    """What to talk to the broker at ``where`` with; None: without keys, as it is on this computer.

    Raises ``ConfigError`` for a broker elsewhere whose key is not known, and ``KeyFileError``.
    """
    if config.broker:
        return Credentials(own_pair(config), check_public(config.broker))
    public = known_brokers(config).get(where.replace("//localhost:", "//127.0.0.1:"))
    if public is not None:
        return Credentials(own_pair(config), public)
    if is_loopback(where):
        return None
    raise ConfigError(
        f"the key of the broker at {where} is not known here, and nothing is sent in the clear:"
        " ask its owner for an invitation (python broker.py invite), then python node.py --join '…'"
    )


def main(argv: Sequence[str]) -> int:
    """Make a pair or show one; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dolmetsch.keys", description="Key pairs for dolmetsch's programs.")
    parser.add_argument("action", choices=("new", "show"), help="new: make the pair unless it is there")
    parser.add_argument("path", type=Path, help=f"the file, by custom NAME{SUFFIX}")
    arguments = parser.parse_args(argv)
    try:
        print(pair_at(arguments.path, make=arguments.action == "new").public.decode())
    except KeyFileError as error:
        print(f"dolmetsch.keys: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
