"""Whole files: many lines through one client, results in the order of the lines, and nothing done twice after a Ctrl-C.

Short lines that stand one after the other in a file go as one job, a *pack*: then the broker's part in a line, and what
it writes to the disk for one, are a fraction. Where a pack fails, its lines go once more, each by itself.

A run that writes to a file keeps a small record beside it, ``OUT.progress``. The lines already in ``OUT`` are its
progress; a pack is acked only once all of it stands there. So the same command again goes on where the last one ended,
however that ended, with the same packs and job ids, and what the cluster has finished meanwhile is there at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from msgspec.structs import replace

from dolmetsch.client import BULK, Answer, Client, new_job_id
from dolmetsch.errors import DolmetschError, InputError, JobFailed, JobRejected, JobSettled
from dolmetsch.messages import JobSpec

WINDOW: Final = 4096  # lines on their way: full windows for the children of four Pis, little to lose
PACK_LINES: Final = 16  # in one job, at most: 8 cost the broker a quarter more, 32 a quarter less ...
PACK_CHARS: Final = 1600  # ... and a pack should end about as soon as a long message
MAX_LINE_BYTES: Final = 1 << 20  # a longer line is no line; the broker takes far less anyway
RETRIES: Final = 60  # times that an overloaded cluster is asked again for one pack

Numbered = tuple[int, str]  # a line's number, from 1, and its text
Pack = list[Numbered]  # lines that follow each other


@dataclass(frozen=True, slots=True)
class Line:
    """One line and what became of it: ``answer``, or ``error``, or neither for a blank line."""

    number: int  # from 1
    text: str
    answer: Answer | None = None
    error: DolmetschError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What all lines of a run have in common."""

    route: str
    tenant: str
    deadline_s: float
    run_id: str

    def job_id(self, pack: Pack) -> bytes:
        """The same lines of the same run are the same job."""
        name = f"{self.run_id}/{pack[0][0]}-{pack[-1][0]}"
        return hashlib.blake2b(name.encode(), digest_size=16).digest()


class LineRun:
    """Submits packs, ``WINDOW`` lines ahead or little more, and hands their lines to ``write`` in order.

    They are safe when ``write`` returns. The lines up to ``after`` are so already.
    """

    def __init__(
        self,
        client: Client,
        order: Order,
        write: Callable[[list[Line]], None],
        early: dict[bytes, Answer],
        after: int = 0,
    ) -> None:
        self._client = client
        self._order = order
        self._write = write
        self._early = early  # what the cluster had finished for the run before this one
        self._next = after + 1
        self._ahead = 0
        self._ended: dict[int, Line] = {}
        self._acks: dict[int, list[bytes]] = {}  # jobs to ack once this line is written
        self._changed = asyncio.Event()
        self._fatal: DolmetschError | OSError | None = None

    async def run(self, packs: AsyncIterator[Pack]) -> None:
        """All of ``packs``, which have no gap between them. Raises what makes going on senseless."""
        async for pack in packs:
            self._ahead += sum(number >= self._next for number, _ in pack)
            filled = [(number, text) for number, text in pack if text.strip()]
            if filled:
                self._begin(filled)
            self._end([Line(number, text) for number, text in pack if not text.strip()])
            await self._until(WINDOW - 1)
        await self._until(0)
        for job_id in self._early:  # lines that stood in the output already
            self._client.ack(job_id)

    def _begin(self, pack: Pack) -> None:
        job_id = self._order.job_id(pack)
        answer = self._early.pop(job_id, None)
        if answer is None:
            self._submit(pack, job_id, RETRIES)
        else:
            self._ending(pack, job_id, 0, answer)

    async def _until(self, ahead: int) -> None:
        while self._fatal is None and self._ahead > ahead:
            self._changed.clear()
            await self._changed.wait()
        if self._fatal is not None:
            raise self._fatal

    def _submit(self, pack: Pack, job_id: bytes, tries: int) -> None:
        order = self._order
        texts = tuple([text for _, text in pack])
        spec = JobSpec(job_id, order.route, texts, BULK, order.tenant, order.deadline_s, b"")
        self._client.submit(spec, lambda end: self._ending(pack, job_id, tries, end))

    def _ending(self, pack: Pack, job_id: bytes, tries: int, end: Answer | DolmetschError) -> None:
        match end:
            case Answer():
                if pack[-1][0] >= self._next:
                    self._acks.setdefault(pack[-1][0], []).append(job_id)
                else:  # written before the run that asked for it ended
                    self._client.ack(job_id)
                self._answered(pack, end)
            case JobRejected(retry_after_s=float(wait_s)) if tries:
                asyncio.get_running_loop().call_later(wait_s, self._submit, pack, job_id, tries - 1)
            case JobSettled():  # its result was acked, but is not in the file: somebody took the file away
                self._submit(pack, new_job_id(), tries)
            case JobRejected(code="too_large" | "empty_text"):
                self._failed(pack, end)
            case _:
                self._fatal = end
                self._changed.set()

    def _answered(self, pack: Pack, answer: Answer) -> None:
        if answer.texts is None:
            self._failed(pack, JobFailed(answer.code, answer.detail, answer.attempts))
            return
        each = [replace(answer, texts=(text,)) for text in answer.texts]
        self._end([Line(*line, answer=one) for line, one in zip(pack, each, strict=True)])

    def _failed(self, pack: Pack, error: DolmetschError) -> None:
        if len(pack) == 1 or (isinstance(error, JobFailed) and error.code == "deadline"):
            self._end([Line(*line, error=error) for line in pack])
            return
        for line in pack:  # which of them it was, the others need not suffer for
            if line[0] >= self._next:
                self._begin([line])

    def _end(self, lines: Iterable[Line]) -> None:
        self._ended |= {line.number: line for line in lines if line.number >= self._next}
        ready: list[Line] = []
        while (one := self._ended.pop(self._next, None)) is not None:
            ready.append(one)
            self._next += 1
        if not ready:
            return
        try:
            self._write(ready)
        except OSError as error:  # this is called by the client, which could do nothing about it
            self._fatal = error
            self._changed.set()
            return
        for one in ready:
            for job_id in self._acks.pop(one.number, ()):
                self._client.ack(job_id)
        self._ahead -= len(ready)
        self._changed.set()


@dataclass(slots=True)
class Progress:
    """A run into a file: which input it belongs to, and how far it has come."""

    path: Path
    run_id: str
    source: str  # digest of input and route
    written: int = 0  # lines that stand in the output
    failed: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, out: Path, source: str, *, overwrite: bool) -> tuple[Progress, IO[str]]:
        """Go on with ``out`` if it belongs to ``source``, else begin it; ``InputError`` rather than spoil a file."""
        path = out.with_name(out.name + ".progress")
        before = None if overwrite else _read(path)
        if before is not None and before.source != source:
            raise InputError(f"{out} was begun from another input or route: finish that, or give --overwrite")
        if before is None and out.exists() and not overwrite:
            raise InputError(f"{out} exists: give --overwrite to replace it")
        try:
            if before is None or not out.exists():
                progress = cls(path, uuid.uuid4().hex, source)
                progress.save()
                return progress, out.open("w", encoding="utf-8", newline="\n")
            before.written = _keep_whole_lines(out)
            return before, out.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from error

    def save(self) -> None:
        """Write the record so that a crash leaves the old one or the new one."""
        record = {"run_id": self.run_id, "source": self.source, "failed": self.failed}
        spare = self.path.with_name(self.path.name + ".new")
        spare.write_text(json.dumps(record), encoding="utf-8")
        os.replace(spare, self.path)

    def close(self) -> None:
        """The run is complete."""
        with suppress(FileNotFoundError):
            self.path.unlink()


def _read(path: Path) -> Progress | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Progress(path, str(record["run_id"]), str(record["source"]), failed=[int(n) for n in record["failed"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_whole_lines(out: Path) -> int:
    """Cut a half-written last line off; how many lines are left."""
    count = end = 0
    with out.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count += 1
                end += len(line)
        file.truncate(end)
    return count


def check_input(path: Path, route: str) -> tuple[str, int]:
    """Digest and number of lines of a text file. Raises ``InputError`` where it is not UTF-8 or cannot be read."""
    digest = hashlib.blake2b(route.encode(), digest_size=16)
    count = 0
    try:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES):
                count += 1
                digest.update(raw)
                decode_line(raw, str(path), count)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest(), count


def decode_line(raw: bytes, name: str, number: int) -> str:
    """The text of a line, without its end. Raises ``InputError`` that says where it goes wrong."""
    if len(raw) >= MAX_LINE_BYTES:
        raise InputError(f"{name}, line {number}: longer than {MAX_LINE_BYTES} bytes; is this a text file?")
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x}); "
            "convert it first, for instance with iconv -f latin1 -t utf-8"
        ) from error


def packs(lines: Iterable[Numbered]) -> Iterator[Pack]:
    """``lines`` in packs of at most PACK_LINES, blank ones not counted, and PACK_CHARS if it is more than one."""
    pack: Pack = []
    filled = chars = 0
    for number, text in lines:
        if filled and text.strip() and (filled == PACK_LINES or chars + len(text) > PACK_CHARS):
            yield pack
            pack, filled, chars = [], 0, 0
        pack.append((number, text))
        filled += bool(text.strip())
        chars += len(text)
        if len(pack) == WINDOW:  # of blank lines
            yield pack
            pack, filled, chars = [], 0, 0
    if pack:
        yield pack


async def file_packs(path: Path, after: int) -> AsyncIterator[Pack]:
    """A file's packs, but those that end before line ``after`` or with it."""
    with path.open("rb") as file:
        for pack in packs(_decoded(file, str(path))):
            if pack[-1][0] > after:
                yield pack


async def pipe_packs(pipe: IO[bytes]) -> AsyncIterator[Pack]:
    """Lines as they arrive from a pipe or a terminal, each by itself, without blocking the loop.

    A plain file is read as it is.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    try:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    except ValueError:  # a plain file
        for pack in packs(_decoded(pipe, "standard input")):
            yield pack
        return
    number = 0
    try:
        while True:
            number += 1
            try:
                raw = await reader.readline()
            except ValueError:
                raw = b"x" * MAX_LINE_BYTES
            if not raw:
                return
            yield [(number, decode_line(raw, "standard input", number))]
    finally:
        transport.close()


def _decoded(file: IO[bytes], name: str) -> Iterator[Numbered]:
    for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
        yield number, decode_line(raw, name, number)
