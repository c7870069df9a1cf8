"""What a request may be: its description for callers (OpenAPI), and the reading of it.

Bodies are JSON, URL-encoded or multipart forms, with the fields of LibreTranslate. Whatever a request holds, what comes
out is fields and a ``Wish``, or an ``HttpError`` with what is wrong.
"""

from __future__ import annotations

import io
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import bottle
import msgspec

from dolmetsch import __version__
from dolmetsch.config import HttpConfig
from dolmetsch.errors import DolmetschError

DESCRIPTION: Final = Path(__file__).with_name("httpspec.json")
MAX_FIELDS: Final = 5000  # of a form: a list q is many fields of one name

_BELOW_ZERO: Final = re.compile(r"-[0-9]+")
_DIGITS: Final = re.compile(r"[0-9]{1,20}")


class Request(NamedTuple):
    """What came: ``path`` decoded, ``query`` as it was sent."""

    method: str
    path: str
    query: bytes = b""
    kind: str = ""  # the header Content-Type
    body: bytes = b""
    address: str = ""  # of whoever connected
    forwarded: str = ""  # the header X-Forwarded-For


class HttpError(DolmetschError):
    """Raised when a request is answered with ``status`` and this text, instead of with what it asked for."""

    def __init__(self, status: int, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after_s = retry_after_s


class Wish(NamedTuple):
    """What a request to translate asks for, checked as far as that goes without knowing the cluster."""

    texts: list[str]
    batch: bool
    source: str
    target: str
    as_html: bool
    alternatives: int


def fields_of(request: Request) -> dict[str, Any]:
    """What the body and, with a form, the query say. Raises ``HttpError``."""
    kind = request.kind.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return _json_fields(request.body)
    form = _multipart(request) if kind == "multipart/form-data" else _form(request.body)
    return _form_fields([*form, *_form(request.query)])


def too_large(most: int) -> HttpError:
    return HttpError(413, f"the request has more than {most} bytes: send it in parts")


def wish_of(fields: Mapping[str, Any], config: HttpConfig) -> Wish:
    """Raises ``HttpError`` 400 with what is missing or wrong."""
    texts, batch = texts_of(fields)
    source, target = _word(fields, "source"), _word(fields, "target")
    alternatives = _number(fields.get("alternatives"))
    if alternatives > config.alternatives_limit:
        raise HttpError(400, f"Invalid request: alternatives must be <= {config.alternatives_limit}")
    if len(texts) > config.batch_limit:
        raise HttpError(400, f"Invalid request: request ({len(texts)}) exceeds text limit ({config.batch_limit})")
    longest = max(map(len, texts))
    if longest > config.char_limit:
        raise HttpError(400, f"Invalid request: request ({longest}) exceeds text limit ({config.char_limit})")
    form = fields.get("format")
    if form not in (None, "", "text", "html"):
        raise HttpError(400, "Invalid request: format is text or html")
    return Wish(texts, batch, source, target, form == "html", alternatives)


def texts_of(fields: Mapping[str, Any]) -> tuple[list[str], bool]:
    """``q``, and whether it is a list."""
    q = fields.get("q")
    if not q:
        raise HttpError(400, "Invalid request: missing q parameter")
    texts = q if isinstance(q, list) else [q]
    if not all(isinstance(text, str) for text in texts):
        raise HttpError(400, "Invalid request: q is a text or a list of texts")
    return texts, isinstance(q, list)


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not value:
        raise HttpError(400, f"Invalid request: missing {name} parameter")
    if not isinstance(value, str):
        raise HttpError(400, f"Invalid request: {name} is a language code")
    return value


def _number(value: Any) -> int:
    """``alternatives``: a whole number, written as one or as a string; one below 0 means none."""
    if value is None or value == "":
        return 0
    if isinstance(value, str) and _BELOW_ZERO.fullmatch(value):
        return 0
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return max(0, value)
    raise HttpError(400, "Invalid request: alternatives is not a number")


def _json_fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise HttpError(400, "Invalid request: the body is not JSON") from None
    if not isinstance(fields, dict):
        raise HttpError(400, "Invalid request: the body is not a JSON object")
    return fields


def _form(encoded: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(encoded.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:  # not UTF-8, before or behind the percent signs, or too many fields
        raise HttpError(400, "Invalid request: the form is not URL-encoded UTF-8") from None


class _Form(bottle.BaseRequest):  # type: ignore[misc]
    MEMFILE_MAX = 64 * 2**20  # the body's size has been looked at before


def _multipart(request: Request) -> list[tuple[str, str]]:
    try:
        form = _Form(
            {
                "REQUEST_METHOD": "POST",
                "CONTENT_TYPE": request.kind,
                "CONTENT_LENGTH": str(len(request.body)),
                "wsgi.input": io.BytesIO(request.body),
            }
        ).POST
        pairs = [(name, value) for name, value in form.allitems() if isinstance(value, str)]
        "".join([name + value for name, value in pairs]).encode()  # a charset may smuggle in what is no Unicode
        return pairs
    except (bottle.HTTPError, ValueError, LookupError, TypeError, AttributeError):
        raise HttpError(400, "Invalid request: the form is not multipart/form-data") from None


def _form_fields(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The first value of each name; of several q a list. Line ends become those of texts (forms send CR LF)."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name == "q":
            fields.setdefault("q", []).append(value.replace("\r\n", "\n"))
        else:
            fields.setdefault(name, value)
    if len(fields.get("q", ())) == 1:
        (fields["q"],) = fields["q"]
    return fields


def address_of(request: Request, proxies: Sequence[str]) -> str:
    """The caller's address, as far as it can be believed; of IPv6 the network, for a caller has a whole one."""
    address = request.address or "unknown"
    if address in proxies:
        for hop in reversed(request.forwarded.split(",")):
            if (hop := hop.strip()) not in proxies:
                address = hop or address
                break
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"  # a proxy that sends no address: all its callers are one
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


def described(config: HttpConfig, languages: list[str]) -> Any:
    """The API's description: ``{"$fill": NAME}`` in the file becomes the value of now."""
    values: dict[str, Any] = {
        "version": __version__,
        "sources": ["auto", *languages],
        "targets": languages or ["en"],  # an enum may not be empty
        "char_limit": config.char_limit,
        "batch_limit": config.batch_limit,
        "alternatives_limit": config.alternatives_limit,
        "alternatives_pattern": f"^(-[0-9]+|[0-{config.alternatives_limit}])?$",
    }

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return values[part["$fill"]] if "$fill" in part else {name: filled(value) for name, value in part.items()}
        return [filled(value) for value in part] if isinstance(part, list) else part

    return filled(json.loads(DESCRIPTION.read_text(encoding="utf-8")))
