"""How a package comes over the network: the index, and one file with resume. Nothing that arrives is trusted.

The index is a JSON list of package metadata with ``links``, as Argos Translate's index has it. There are no
checksums in it: what vouches for a file is TLS, then the checks of ``dolmetsch.archive``.

requests, tenacity and tqdm are imported inside the functions that need them: a node's child imports
``dolmetsch.packages`` (and so this module) only to find packages, and never downloads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from dolmetsch.archive import ARCHIVE_MAX_BYTES, CHUNK_BYTES, Metadata, one_line
from dolmetsch.errors import PackageError
from dolmetsch.store import require_space

if TYPE_CHECKING:
    from requests import Response, Session

DEFAULT_INDEX: Final = "https://raw.githubusercontent.com/argosopentech/argospm-index/main/index.json"
OFFLINE_HINT: Final = "with no network, give a file: python -m dolmetsch.packages install FILE.argosmodel"

CONNECT_LIMIT_S: Final = 10.0
READ_LIMIT_S: Final = 30.0  # seconds without a byte
INDEX_LIMIT_S: Final = 60.0
DOWNLOAD_LIMIT_S: Final = 2 * 3600.0  # one link altogether: a server that drips bytes ends here
ATTEMPTS: Final = 4  # of one link, when trying again may help
RETRY_WAIT_S: Final = 0.5  # before the second try, then doubled
LINKS_MAX: Final = 8
NOTE_SUFFIX: Final = ".validator"
INDEX_MAX_BYTES: Final = 8 << 20  # the official index has some 100 KB

Say = Callable[[str], None]
T = TypeVar("T")


class _Failed(Exception):
    """Raised when one link cannot be had; its text says why."""


class _Transient(_Failed):
    """Raised when trying the same link again may help."""


# --- the index ----------------------------------------------------------------------


def read_index(url: str, say: Say) -> list[Metadata]:
    """Every translation package in the index at ``url``; entries of other kinds are left out.

    Raises ``PackageError`` when it cannot be fetched or is no index.
    """
    try:
        with _session() as session:
            data = _with_retries(lambda: _fetch_small(session, url), say)
        entries = msgspec.json.decode(data, type=list[msgspec.Raw])
    except _Failed as error:
        raise PackageError(f"the package index cannot be fetched: {error}; {OFFLINE_HINT}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"{url} is not a package index: {one_line(error)}") from error
    packages = []
    for entry in entries:
        try:
            metadata = msgspec.json.decode(entry, type=Metadata)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # a kind this version does not know must not hide the others
        if metadata.type == "translate":
            packages.append(metadata)
    return packages


def _fetch_small(session: Session, url: str) -> bytes:
    with _explained(url), session.get(url, stream=True, timeout=(CONNECT_LIMIT_S, READ_LIMIT_S)) as response:
        _require_status(response, url, 200)
        data = bytearray()
        deadline = time.monotonic() + INDEX_LIMIT_S
        for chunk in response.iter_content(CHUNK_BYTES):
            data += chunk
            if len(data) > INDEX_MAX_BYTES:
                raise _Failed(f"{url} is larger than {INDEX_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise _Failed(f"{url} took longer than {INDEX_LIMIT_S:g} s")
        return bytes(data)


# --- one file, with resume ----------------------------------------------------------


class _Part:
    """A download under way: the bytes so far, and the validator (ETag or Last-Modified) they belong to."""

    def __init__(self, folder: Path, url: str) -> None:
        key = blake2b(url.encode(), digest_size=8).hexdigest()
        self.path = folder / f"{key}.part"
        self.note = self.path.with_suffix(NOTE_SUFFIX)

    def state(self) -> tuple[int, str]:
        """Bytes so far and their validator; (0, "") where there is nothing that can be resumed safely."""
        try:
            size, validator = self.path.stat().st_size, self.note.read_text(encoding="latin-1")
        except OSError:
            return 0, ""
        return (size, validator) if validator else (0, "")

    def restart(self, validator: str) -> None:
        forget(self.path)
        self.note.write_text(validator, encoding="latin-1")


def fetch(links: Sequence[str], folder: Path, say: Say, *, bar: bool) -> Path:
    """Download the first of ``links`` that can be had into ``folder``; http and https only.

    What an interrupted download left in ``folder`` is resumed (RFC 9110, sections 13.1.5 and 14). ``bar``
    shows a progress bar on a terminal's stderr. The caller ends with ``forget``. Raises ``PackageError``.
    """
    usable = [link for link in links if _is_http(link)][:LINKS_MAX]
    if not usable:
        raise PackageError(f"the index gives no http(s) link for this package; {OFFLINE_HINT}")
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    with _session() as session:
        for link in usable:
            try:
                return _fetch_link(session, link, folder, say, bar)
            except _Failed as error:
                failures.append(str(error))
    raise PackageError(f"the package cannot be fetched: {'; '.join(failures)}; {OFFLINE_HINT}")


def _fetch_link(session: Session, url: str, folder: Path, say: Say, bar: bool) -> Path:
    part = _Part(folder, url)
    deadline = time.monotonic() + DOWNLOAD_LIMIT_S
    _with_retries(lambda: _attempt(session, url, part, deadline, bar), say)
    return part.path


def forget(fetched: Path) -> None:
    """Delete a file that ``fetch`` returned; kept, the next ``fetch`` of its link would find it complete."""
    fetched.unlink(missing_ok=True)
    fetched.with_suffix(NOTE_SUFFIX).unlink(missing_ok=True)


def _attempt(session: Session, url: str, part: _Part, deadline: float, bar: bool) -> None:
    """Ask for what is missing of ``url`` and append it. Raises ``_Failed`` or ``_Transient``."""
    have, validator = part.state()
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with (
        _explained(url, began=have > 0),
        session.get(url, headers=headers, stream=True, timeout=(CONNECT_LIMIT_S, READ_LIMIT_S)) as response,
    ):
        if have and response.status_code in (206, 416):
            content_range = response.headers.get("Content-Range", "")
            if _validator(response) not in ("", validator):
                content_range = ""  # another file by now
            if response.status_code == 416 and content_range == f"bytes */{have}":
                return  # the last try ended after its last byte
            if not content_range.startswith(f"bytes {have}-"):
                forget(part.path)
                raise _Transient(f"{_host(url)} cannot continue this download")
        else:
            _require_status(response, url, 200)
            have = 0
            part.restart(_validator(response))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _Failed(f"{_host(url)} sent the file in an encoding nobody asked for")
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() and len(length) < 16 else None
        require_space(part.path.parent, (total or 0) - have)
        _receive(response, part.path, have, total, deadline, bar)


def _receive(response: Response, path: Path, have: int, total: int | None, deadline: float, bar: bool) -> None:
    from tqdm import tqdm

    if (total or 0) > ARCHIVE_MAX_BYTES:
        raise _Failed(f"{response.url} is larger than {ARCHIVE_MAX_BYTES} bytes")
    hidden = None if bar else True  # None: tqdm itself leaves the bar out where stderr is no terminal
    with (
        path.open("ab") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, leave=False, disable=hidden) as meter,
    ):
        for chunk in response.iter_content(CHUNK_BYTES):
            have += len(chunk)
            if have > ARCHIVE_MAX_BYTES:
                raise _Failed(f"{response.url} is larger than {ARCHIVE_MAX_BYTES} bytes")
            if time.monotonic() > deadline:
                raise _Failed(f"{response.url} took over {DOWNLOAD_LIMIT_S:g} s; the same command resumes it")
            file.write(chunk)
            meter.update(len(chunk))
    if total is not None and have != total:
        raise _Transient(f"the connection to {_host(response.url)} broke off")


def _session() -> Session:
    from requests import Session

    session = Session()
    session.headers["User-Agent"] = "dolmetsch"
    session.headers["Accept-Encoding"] = "identity"  # ranges and lengths count the file's own bytes
    return session


def _with_retries(attempt: Callable[[], T], say: Say) -> T:
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception_type,
        stop_after_attempt,
        wait_exponential,
    )

    def tell(state: RetryCallState) -> None:
        reason = state.outcome.exception() if state.outcome else None
        say(f"{reason}; trying again")

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=RETRY_WAIT_S, max=8),
        retry=retry_if_exception_type(_Transient),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(attempt)


@contextmanager
def _explained(url: str, *, began: bool = False) -> Iterator[None]:
    """Turn what requests raises into one sentence, and say whether trying again may help.

    A host that cannot be reached at all is tried again only for a download that ``began``: it was there a
    moment ago.
    """
    from requests import exceptions
    from urllib3.exceptions import LocationParseError, NameResolutionError, NewConnectionError

    host = _host(url)
    unreachable = _Transient if began else _Failed
    try:
        yield
    except exceptions.SSLError as error:
        raise _Failed(f"{host} has no certificate that holds; is this machine's clock right?") from error
    except exceptions.ProxyError as error:
        raise unreachable(f"the proxy for {host} does not answer") from error
    except exceptions.Timeout as error:
        raise _Transient(f"{host} does not answer") from error
    except exceptions.ConnectionError as error:
        cause = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(cause, NameResolutionError):
            raise unreachable(f"the name {host} cannot be resolved") from error
        if isinstance(cause, NewConnectionError):
            raise unreachable(f"no connection to {host}") from error
        raise _Transient(f"the connection to {host} broke off") from error
    except exceptions.ChunkedEncodingError as error:
        raise _Transient(f"the connection to {host} broke off") from error
    except (exceptions.RequestException, LocationParseError) as error:
        raise _Failed(f"{url} cannot be fetched: {one_line(error)}") from error


def _require_status(response: Response, url: str, wanted: int) -> None:
    status = response.status_code
    if status == wanted:
        return
    text = f"{url} answers {status} {response.reason or ''}".strip()
    raise (_Transient if status in (408, 429) or status >= 500 else _Failed)(text)


def _validator(response: Response) -> str:
    """What If-Range accepts: a strong ETag, else the date of the last change, else nothing."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return str(etag)
    return str(response.headers.get("Last-Modified", ""))


def _is_http(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or url
    except ValueError:
        return url
