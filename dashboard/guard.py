"""The guard: who may read, and who may do something.

Reading needs no token, so that the page can stand on a screen or behind a public tunnel; but it must be asked for by a
name that is the dashboard's, or a web page elsewhere could have a browser read it (DNS rebinding). Doing needs the
token, or, where there is none, a request that was made on this computer and shows no sign of a proxy. A proxy that is
told to hide itself would not be noticed: who puts one in front sets a token. A web page elsewhere cannot have a browser
do anything: that takes a header which browsers send to other sites only if those allow it, and nothing here does.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from dashboard.snapshot import OFF, OPEN, TOKEN
from dolmetsch.apikeys import Allowance, Windows
from dolmetsch.errors import ConfigError

MIN_TOKEN_CHARS: Final = 16  # too many to be guessed
WRONG_TOKENS: Final = 20  # a minute, from one address; then none is looked at until the minute is over
ACTION_HEADER: Final = "HTTP_X_DOLMETSCH"
HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
# What proxies and tunnels add to a request; the prefixes stand for families of headers.
_FORWARDED: Final = frozenset({
    "HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP", "HTTP_X_CLIENT_IP", "HTTP_TRUE_CLIENT_IP", "HTTP_CDN_LOOP",
    "HTTP_X_ORIGINAL_HOST", "HTTP_X_ORIGINAL_URL", "HTTP_CLIENT_IP",
})  # fmt: skip
_FORWARDED_PREFIXES: Final = ("HTTP_X_FORWARDED", "HTTP_CF_", "HTTP_TAILSCALE_", "HTTP_X_ENVOY_", "HTTP_NGROK_")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]\s/@]+)(?::\d{1,5})?", re.IGNORECASE)

Environ = Mapping[str, Any]


class Refusal(NamedTuple):
    """Why something may not be done."""

    status: int
    words: str


@dataclass(frozen=True, slots=True)
class Guard:
    """``bound`` is the address listened at, ``hosts`` are further names, ``token`` is empty where there is none."""

    bound: str
    hosts: frozenset[str]
    token: str = ""
    _tries: Windows = field(default_factory=Windows)

    @property
    def local(self) -> bool:
        """Whether only this computer can reach the dashboard."""
        return is_loopback(self.bound)

    def knows(self, environ: Environ) -> bool:
        """Whether the request calls the dashboard by a name that is its own."""
        host = _host(environ)
        if host is None:
            return False
        if is_loopback(host) or host in self.hosts or host == self.bound:
            return True
        if self.local:
            return False
        # Beyond loopback this computer's names count, and its addresses: those no stranger's name server can give out.
        return host in _own_names() or (_is_wildcard(self.bound) and _address(host) is not None)

    def mode(self, environ: Environ) -> str:
        """What the one who asks may do: open, token or off."""
        if self.token:
            return TOKEN
        host = _host(environ)
        here = self.local and host is not None and is_loopback(host) and is_loopback(environ.get("REMOTE_ADDR", ""))
        return OPEN if here and not _was_forwarded(environ) else OFF

    def refusal(self, environ: Environ) -> Refusal | None:
        """Why the action that is asked for is not allowed; None: it is."""
        mode = self.mode(environ)
        if mode == OFF:
            return Refusal(403, "actions are off here: set DASHBOARD_TOKEN, or use the dashboard on its own computer")
        if mode == TOKEN:
            refused = self._judge_token(environ)
            if refused is not None:
                return refused
        if environ.get(ACTION_HEADER) != "1":
            return Refusal(403, "the header X-Dolmetsch: 1 is missing")
        if not _same_origin(environ):
            return Refusal(403, "the request comes from another site")
        return None

    def _judge_token(self, environ: Environ) -> Refusal | None:
        allowance, now = Allowance(WRONG_TOKENS, 0), time.monotonic()
        peer = str(environ.get("REMOTE_ADDR", ""))
        kind, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if kind.lower() != "bearer" or not given.strip():
            return Refusal(401, "this needs the token of the dashboard")
        if self._tries.full(peer, allowance, now):
            return Refusal(429, "too many wrong tokens: try again in a minute")
        # latin-1: a header's bytes as they came.
        if hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode()):
            return None
        self._tries.take(peer, allowance, 0, now)
        return Refusal(401, "this is not the token of the dashboard")


def check_token(token: str) -> str:
    """The token as it is used. Raises ``ConfigError``, which never shows it."""
    token = token.strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("DASHBOARD_TOKEN must be of letters, digits and signs, without spaces")
    if token and len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(
            f"DASHBOARD_TOKEN has fewer than {MIN_TOKEN_CHARS} characters and could be guessed: make one with"
            " python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def names(hosts: tuple[str, ...]) -> frozenset[str]:
    """``dashboard.hosts`` as hosts are compared. Raises ``ConfigError``."""
    found = [(text, _HOST.fullmatch(text.strip())) for text in hosts]
    for text, match in found:
        if match is None:
            raise ConfigError(f"dashboard.hosts: {text!r} is no name: it looks like cluster.example.org")
    return frozenset([_plain(match["name"]) for _, match in found if match is not None])


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this computer and never another one."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped if isinstance(mapped, ipaddress.IPv4Address) else found


def _is_wildcard(host: str) -> bool:
    address = _address(host)
    return address is not None and address.is_unspecified


def _own_names() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return name, f"{name.partition('.')[0]}.local"


def _host(environ: Environ) -> str | None:
    """The name that the request uses, without its port; None where it has none or it is no name."""
    match = _HOST.fullmatch(str(environ.get("HTTP_HOST", "")))
    return None if match is None else _plain(match["name"])


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


def _was_forwarded(environ: Environ) -> bool:
    """Whether a proxy stands between. nginx as it comes adds no header, but speaks HTTP/1.0, as no browser does."""
    return environ.get("SERVER_PROTOCOL") == "HTTP/1.0" or any(
        name in _FORWARDED or name.startswith(_FORWARDED_PREFIXES) for name in environ
    )


def _same_origin(environ: Environ) -> bool:
    """Whether the browser says that our own page asks; who is no browser says nothing."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return True
    try:
        netloc = urlsplit(str(origin)).netloc.lower()
    except ValueError:
        return False
    return bool(netloc) and netloc == str(environ.get("HTTP_HOST", "")).lower()
