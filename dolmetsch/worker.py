"""One child: ``python -m dolmetsch.worker``, started by the node with one end of a UNIX stream socket.

The two talk in msgpack arrays. Parent to child:

* ``["jobs", [[key, route, [text, ...], urgent, alone, alternatives], ...]]``
* ``["drop", [key, ...]]``: forget these
* end of file: end now

Child to parent:

* ``["ready", {route: model version}]``, once, or ``["broken", detail]`` and exit status 3 when no engine can be opened
* ``["begin", [key, ...]]`` before each batch, so that the parent knows whom to blame when the child dies; its jobs are
  all urgent, or none is
* ``["done", [[key, [text, ...] or nil, model, code, detail], ...]]`` after each batch: the jobs that are complete now.
  A batch of urgent jobs may begin and be done while another is not

The thread count and the core are set before CTranslate2 is imported, which reads them once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import mmap
import os
import platform
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import msgpack
import msgspec

from dolmetsch import logs
from dolmetsch.config import EngineConfig
from dolmetsch.errors import ConfigError, DolmetschError, RemoteError
from dolmetsch.messages import MAX_ALTERNATIVES

if TYPE_CHECKING:
    from dolmetsch.engine import Batch, Engine, Outputs

READ_BYTES: Final = 256 * 2**10
READS: Final = 64  # reads between two batches, so that a parent that never stops writing does not stop the work
MAX_BUFFER_BYTES: Final = 16 * 2**20  # one unfinished message; the largest a node sends is half of it
SEND_LIMIT_S: Final = 30.0  # a parent reads all the time: one that does not for so long is stuck
BUG_STATUS: Final = 1
BROKEN_STATUS: Final = 3
PARENT_STATUS: Final = 4  # the parent sent nonsense, or stopped reading
NICE: Final = 5  # who hands out work, and carries results, goes before those who work: they need the core only shortly
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
M_TRIM_THRESHOLD: Final = -1  # malloc.h
M_MMAP_THRESHOLD: Final = -3
WEIGHTS_BYTES: Final = 64 * 2**10
KEEP_BYTES: Final = 32 * 2**20  # the most that glibc takes for M_MMAP_THRESHOLD on 64 bits

_JOBS: Final = list[tuple[bytes, str, list[str], bool, bool, Annotated[int, msgspec.Meta(ge=0, le=MAX_ALTERNATIVES)]]]

log = logging.getLogger(__name__)


class Background:
    """A thread that runs one batch at a time; inside ``with``, ``fd`` can be read when it is through."""

    def __init__(self, run: Callable[[Batch], Outputs]) -> None:
        self._run = run
        self._running: tuple[Batch, Future[Outputs]] | None = None

    def __enter__(self) -> Self:
        self._executor = ThreadPoolExecutor(1)
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown()
        os.close(self.fd)

    @property
    def busy(self) -> bool:
        """Whether it has a batch that ``take`` has not given back."""
        return self._running is not None

    def start(self, batch: Batch) -> None:
        """Begin with ``batch``; it must not be busy."""
        future = self._executor.submit(self._run, batch)
        self._running = batch, future
        future.add_done_callback(lambda _: os.eventfd_write(self.fd, 1))

    def take(self) -> tuple[Batch, Callable[[], Outputs]] | None:
        """The batch that it is through with, once, and a call that gives its outputs or raises what ``run`` raised."""
        if self._running is None or not self._running[1].done():
            return None
        (batch, future), self._running = self._running, None
        os.eventfd_read(self.fd)  # written at once after it was done
        return batch, future.result


class Worker:
    """The loop between the parent's socket and an engine.

    A patient batch is run in the background, and urgent ones beside it, which the kernel gives most of the core: people
    do not wait for the end of a batch of some file.
    """

    def __init__(self, sock: socket.socket, engine: Engine) -> None:
        self._sock = sock
        self._engine = engine
        self._background = Background(engine.run)
        self._packer = msgpack.Packer()
        self._unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=True, max_buffer_size=MAX_BUFFER_BYTES, ext_hook=_no_ext
        )
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def serve(self) -> None:
        """Work until the parent closes its side. Raises ``RemoteError`` for nonsense, ``OSError`` when it is gone."""
        self._send(["ready", dict(self._engine.routes)])
        with self._background as background:
            either = select.poll()
            either.register(self._sock, select.POLLIN)
            either.register(background.fd, select.POLLIN)
            while self._receive():
                if not self._work():
                    # Without a deadline: the end of the parent ends the wait, and an idle child has nothing else to do.
                    either.poll()

    def _work(self) -> bool:
        """Finish what the background is through with, and begin what can be begun; whether there was anything."""
        through = self._background.take()
        ended = [] if through is None else [self._end(*through)]
        batch = self._engine.next_batch(beside=self._background.busy)
        if batch is None:
            if ended:
                self._send(*ended)
            return False
        self._send(*ended, ["begin", batch.keys])  # in one write: each wakes the parent
        if batch.patient:
            self._background.start(batch)
        else:
            self._send(self._end(batch, partial(self._engine.run, batch)))
        return True

    def _end(self, batch: Batch, outputs: Callable[[], Outputs]) -> list[Any]:
        """What the parent is told once ``batch`` has been run."""
        try:
            outcomes = self._engine.finish(batch, outputs())
        except Exception as error:
            from dolmetsch.engine import Outcome

            log.error("a batch of %d jobs failed: %s", len(batch.keys), logs.trace(error))
            for key in batch.keys:
                self._engine.drop(key)
            outcomes = [Outcome(key, None, "", "engine_error", logs.trace(error)) for key in batch.keys]
        return ["done", outcomes]

    def _receive(self) -> bool:
        """Take what the parent has sent; False: it closed its side."""
        for _ in range(READS):
            if not self._readable.poll(0):
                return True
            data = self._sock.recv(READ_BYTES)
            if not data:
                return False
            self._feed(data)
        return True

    def _feed(self, data: bytes) -> None:
        try:
            self._unpacker.feed(data)
            for message in self._unpacker:
                self._take(message)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise _nonsense(type(error).__name__) from error

    def _take(self, message: Any) -> None:
        match message:
            case ["jobs", list(jobs)]:
                self._submit(jobs)
            case ["drop", list(keys)] if all(type(key) is bytes for key in keys):
                for key in keys:
                    self._engine.drop(key)
            case _:
                raise _nonsense("an unknown message")

    def _submit(self, jobs: list[Any]) -> None:
        try:
            checked = msgspec.convert(jobs, _JOBS, builtin_types=(bytes,))
        except msgspec.ValidationError:
            raise _nonsense("a job is not [key, route, texts, urgent, alone, alternatives]") from None
        for key, route, texts, urgent, alone, alternatives in checked:
            self._engine.submit(key, route, texts, urgent=urgent, alone=alone, alternatives=alternatives)

    def _send(self, *messages: list[Any]) -> None:
        self._sock.sendall(b"".join([self._packer.pack(message) for message in messages]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a child; return its exit status."""
    options = _options(arguments)
    logs.start(f"worker[{options.core}]")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the node's to handle
    os.nice(NICE)
    die_with_parent()
    with socket.socket(fileno=options.fd) as sock:
        sock.settimeout(SEND_LIMIT_S)
        try:
            return _serve(sock, options)
        except RemoteError as error:
            log.error("%s", error)
        except TimeoutError:
            log.error("the parent has not read for %g s", SEND_LIMIT_S)
        except ConnectionError as error:
            log.error("the parent is gone: %s", error.strerror)
        except Exception as error:  # a bug: Python's own report would print its message
            log.error("failed: %s", logs.trace(error))
            return BUG_STATUS
    return PARENT_STATUS


def _serve(sock: socket.socket, options: argparse.Namespace) -> int:
    try:
        engine = open_engine(options)
    except (DolmetschError, ImportError) as error:
        log.error("%s", error)
        sock.sendall(msgpack.packb(["broken", str(error)]))
        return BROKEN_STATUS
    gc.freeze()  # what is here now stays: Python need not go through it again and again for what may be thrown away
    Worker(sock, engine).serve()
    return 0


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies, even in the middle of a batch (man 2 prctl).

    A parent that died before this call has closed its end of the socket, which ends the child too.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def steady_heap() -> Iterator[None]:
    """Load models inside: their weights get pages of their own, and the memory of a batch is kept for the next one.

    Weights on whole pages are alike in all children, so that the kernel can merge them where it is told to (KSM); and
    a heap that is not given back and asked for again, batch after batch, saves 3 to 4 % (man 3 mallopt; glibc alone).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    mallopt(M_MMAP_THRESHOLD, WEIGHTS_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)


def check_executable_memory() -> None:
    """Raises ``ConfigError`` where memory may not be made executable (systemd's MemoryDenyWriteExecute, for instance).

    CTranslate2's int8 arithmetic on x86-64 is compiled as it runs. Where that is denied it reports no error: it
    translates to nonsense.
    """
    if platform.machine() != "x86_64":
        return
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        raise ConfigError(
            "memory may not be made executable here, and CTranslate2 would translate to nonsense:"
            " take MemoryDenyWriteExecute away"
        ) from error


def open_engine(options: argparse.Namespace) -> Engine:
    """Pin this process and open the engine that ``options`` asks for. Raises ``ConfigError`` or ``PackageError``."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.core >= 0:
        try:
            os.sched_setaffinity(0, {options.core})
        except OSError as error:
            raise ConfigError(f"core {options.core} cannot be used: {error.strerror}") from error
    try:
        config = msgspec.json.decode(options.config_json, type=EngineConfig)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--config-json: {error}") from error
    from dolmetsch.engine import ArgosEngine, EchoEngine

    routes = options.routes.split(",") if options.routes else None
    if options.engine == "echo":
        return EchoEngine(routes or ["de→en"])
    check_executable_memory()
    from dolmetsch.packages import find_packages

    with steady_heap():
        engine = ArgosEngine(find_packages(options.packages), config, only=routes)
    engine.warm()
    return engine


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dolmetsch.worker", description="One child of a node.")
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of the node's socket")
    parser.add_argument("--core", type=int, default=-1, help="the core to stay on; -1: any")
    parser.add_argument("--engine", choices=("argos", "echo"), default="argos")
    parser.add_argument("--config-json", default="{}", help="the [engine] section of the configuration")
    parser.add_argument("--routes", default="", help="the routes to serve, such as de→en,en→fr; all if empty")
    parser.add_argument("--packages", type=Path, nargs="+", help="folders to look for packages in")
    return parser.parse_args(arguments)


def _no_ext(code: int, data: bytes) -> Any:
    raise _nonsense(f"a msgpack extension of type {code}")


def _nonsense(what: str) -> RemoteError:
    return RemoteError("bad_message", f"the parent sent what is not the protocol: {what}")


if __name__ == "__main__":
    sys.exit(main())
