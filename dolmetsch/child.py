"""One child process as its parent sees it: its socket, the jobs in its hands, its place. Nothing here waits.

The two talk over a UNIX stream socket in msgpack arrays. Parent to child:

- ``["jobs", [[key, route, texts, urgent, alone, alternatives], ...]]``: work; answers may come in any order.
- ``["drop", [key, ...]]``: forget these; an answer to one is ignored.
- End of file: end now.

Child to parent:

- ``["ready", {route: model}]``, once: it can translate.
- ``["begin", [key, ...]]``, before each batch: whom to blame when it dies. A batch is of urgent jobs or of others, and
  one of each may be worked on at a time.
- ``["done", [[key, texts or nil, model, code, detail], ...]]``: answers; nil texts are a failure, code says
  which.
- ``["broken", detail]``, then exit status 3: it found nothing to translate with.

Which child gets which job, and when one must die, is decided in ``pool.py``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec
import psutil
from msgspec import Struct

from dolmetsch.config import EngineConfig
from dolmetsch.errors import RemoteError

READ_BYTES: Final = 64 * 2**10  # one read a turn keeps turns short; for more, glibc maps new memory each time
MAX_BUFFER_BYTES: Final = 16 * 2**20  # far above a window of translations: more is no answer
_ANSWERS: Final = list[tuple[bytes, tuple[str, ...] | None, str, str, str]]  # key, texts, model, code, detail
BROKEN_STATUS: Final = 3  # the exit status of a child that found no engine to open
BACKOFF_MIN_S: Final = 0.25  # before the first restart
BACKOFF_MAX_S: Final = 30.0
MAX_DETAIL_CHARS: Final = 400  # details travel to the broker, which takes 500

# A batch's buffers would go back to the kernel and be faulted in again for the next one: ten times the page faults,
# measured. glibc (mallopt(3)) is told to keep them; other C libraries know nothing of these names.
MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20)}

WORKER: Final = (sys.executable, "-m", "dolmetsch.worker")

_HOUSE: Final = str(Path(__file__).resolve().parent.parent)  # where a child finds this package


class PoolJob(Struct, frozen=True):
    """A job for a child, that came ``at``. ``chars``: of all ``texts``; ``alone``: suspected, in a batch of its own."""

    key: bytes
    route: str
    texts: tuple[str, ...]
    chars: int
    urgent: bool
    alone: bool
    at: float = 0.0
    alternatives: int = 0


class PoolOutcome(Struct, frozen=True):
    """How a job ended. ``texts`` is None when it failed; ``retry``: another attempt may go better.

    It waited ``wait_s`` seconds for its first batch, and was worked on for ``work_s``.
    """

    key: bytes
    texts: tuple[str, ...] | None
    model: str
    code: str
    detail: str
    retry: bool
    wait_s: float = 0.0
    work_s: float = 0.0


class _Lane:
    """The urgent jobs in a child's hands, or the others."""

    __slots__ = ("batch", "jobs", "moved_at")

    def __init__(self, now: float) -> None:
        self.jobs = 0
        self.batch: tuple[bytes, ...] = ()
        self.moved_at = now


class Child:
    """A running child. The parent reads its fields; only the methods change them.

    ``hand`` holds the jobs it was given and has not answered, oldest first; ``batch`` the keys it began last. Urgent
    jobs and others are worked on side by side, so each of these two lanes has a batch that was begun last, and a time
    at which it moved, or got its first job. Times are monotonic seconds.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, core: int, now: float) -> None:
        self.process = process
        self.sock = sock
        self.fd = sock.fileno()
        self.core = core
        self.started_at = now
        self.ready_at: float | None = None
        self.idle_since = now
        self.kill_at = now  # once it was told to end: when to stop being polite
        self.eof_at: float | None = None
        self.broken: str | None = None
        self.routes: dict[str, str] = {}
        self.hand: dict[bytes, PoolJob] = {}
        self.hand_chars = 0
        self._lanes = {True: _Lane(now), False: _Lane(now)}  # urgent, others
        self._begun: dict[bytes, float] = {}  # jobs in hand of which a batch was begun, and when
        self.jobs_done = 0
        self.out = bytearray()
        self._busy_s = 0.0
        self._mark = now  # busy time is counted up to here
        self._packer = msgpack.Packer()
        self._unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=True, max_buffer_size=MAX_BUFFER_BYTES, ext_hook=_no_ext
        )
        self._usage: psutil.Process | None = None

    # ---- talking ----

    def give(self, jobs: Sequence[PoolJob]) -> None:
        """Send ``jobs``, which ``hold`` has already put into its hands."""
        self._send(["jobs", [_wire(job) for job in jobs]])

    def hold(self, job: PoolJob, now: float) -> None:
        """Count ``job`` as in its hands."""
        if not self.hand:
            self._mark = now
        lane = self._lanes[job.urgent]
        if not lane.jobs:
            lane.moved_at = now
        lane.jobs += 1
        self.hand[job.key] = job
        self.hand_chars += job.chars

    def drop(self, keys: Iterable[bytes], now: float) -> None:
        """Forget ``keys`` and tell the child to; an answer that is already on its way is ignored."""
        gone = [key for key in keys if self._release(key, now) is not None]
        if gone:
            self._send(["drop", gone])

    def flush(self) -> None:
        """Write what the socket takes now; what is left waits for ``on_writable``."""
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            pass
        except OSError:
            self.out.clear()  # it is gone: reading its end of file tells the rest

    def receive(self, now: float, outcomes: list[PoolOutcome], reads: int = 1) -> int:
        """Read, at most ``reads`` times, what is there: answers go to ``outcomes``; return their characters.

        Raises RemoteError when the child sent something that is not the protocol; ``outcomes`` then still
        holds every answer before that.
        """
        chars = 0
        try:
            for _ in range(reads):
                data = self._read(now)
                if not data:
                    break
                self._unpacker.feed(data)
                for message in self._unpacker:
                    chars += self._take(message, now, outcomes)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise _nonsense(type(error).__name__) from error  # its message may quote a text
        return chars

    def _read(self, now: float) -> bytes:
        try:
            data = self.sock.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.eof_at = now
        return data

    def _take(self, message: Any, now: float, outcomes: list[PoolOutcome]) -> int:
        match message:
            case ["begin", list() as keys]:
                self._begin(keys, now)
            case ["done", list() as answers]:
                return self._answered(answers, now, outcomes)
            case ["ready", dict() as routes] if _all_str(routes) and _all_str(routes.values()):
                self.routes = routes
                self.ready_at = self.idle_since = now
            case ["broken", str() as detail]:
                self.broken = detail[:MAX_DETAIL_CHARS]
            case _:
                raise _nonsense("an unknown message")
        return 0

    def _begin(self, keys: list[Any], now: float) -> None:
        jobs = [self.hand[key] for key in keys if key in self.hand]
        for key in keys:
            self._begun.setdefault(key, now)
        if jobs:  # not all dropped; and they are of one lane
            lane = self._lanes[jobs[0].urgent]
            lane.batch = tuple(keys)
            lane.moved_at = now

    def _answered(self, answers: list[Any], now: float, outcomes: list[PoolOutcome]) -> int:
        chars = 0
        try:
            checked = msgspec.convert(answers, _ANSWERS, builtin_types=(bytes,))
        except msgspec.ValidationError:
            raise _nonsense("an answer is not [key, texts, model, code, detail]") from None
        for key, texts, model, code, detail in checked:
            job = self.hand.get(key)
            if job is None:
                continue
            self._lanes[job.urgent].moved_at = now
            if texts is not None:
                wanted = len(job.texts) * (1 + job.alternatives)
                if len(texts) != wanted:
                    raise _nonsense(f"{len(texts)} texts for a job of {wanted}")
                chars += job.chars
            begun = self._begun.get(key, now)
            self._release(key, now)
            self.jobs_done += 1
            outcomes.append(PoolOutcome(key, texts, model, code, detail, False, begun - job.at, now - begun))
        return chars

    def _release(self, key: bytes, now: float) -> PoolJob | None:
        self._begun.pop(key, None)
        job = self.hand.pop(key, None)
        if job is not None:
            self.hand_chars -= job.chars
            self._lanes[job.urgent].jobs -= 1
            if not self.hand:
                self.idle_since = now
                self._busy_s += now - self._mark
                self._mark = now
        return job

    def _send(self, message: list[Any]) -> None:
        self.out += self._packer.pack(message)
        self.flush()

    # ---- watching ----

    @property
    def state(self) -> str:
        """One of starting, idle, busy and ending."""
        if self.eof_at is not None:
            return "ending"
        if self.ready_at is None:
            return "starting"
        return "busy" if self.hand else "idle"

    def busy_s(self, now: float) -> float:
        """Return the seconds it has had work in its hands since it was started."""
        return self._busy_s + (now - self._mark if self.hand else 0.0)

    @property
    def batch(self) -> tuple[bytes, ...]:
        """Whom to blame when it dies."""
        return self._lanes[True].batch + self._lanes[False].batch

    @property
    def urgent(self) -> int:
        """Urgent jobs in its hands."""
        return self._lanes[True].jobs

    def stalled_s(self, now: float) -> float:
        """Return the seconds it has had work of a lane in its hands and not moved there."""
        return max((now - lane.moved_at for lane in self._lanes.values() if lane.jobs), default=0.0)

    def exited(self) -> bool:
        """Reap the process if it has ended, without waiting, and say whether it has."""
        return self.process.poll() is not None

    def epitaph(self) -> str:
        """Say in words how the process ended."""
        status = self.process.returncode
        if status is None:
            return "closed its socket and did not end"
        if status < 0:
            try:
                return f"was killed by {signal.Signals(-status).name}"
            except ValueError:
                return f"was killed by signal {-status}"
        return f"ended with exit status {status}" + (f": {self.broken}" if self.broken else "")

    def rss_bytes(self) -> int:
        """Return its resident memory, 0 when it has just ended."""
        try:
            if self._usage is None:
                self._usage = psutil.Process(self.process.pid)
            return int(self._usage.memory_info().rss)
        except psutil.Error:
            return 0

    # ---- ending ----

    def end(self, kill_at: float) -> None:
        """Tell it to end now; the parent kills it at ``kill_at`` if it has not."""
        self.kill_at = kill_at
        with contextlib.suppress(OSError):  # it closed its side first
            self.sock.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill it at once; ``exited`` reaps it."""
        self.process.kill()  # does nothing when it was reaped already
        self.sock.close()


class ChildInfo(Struct, frozen=True):
    """One child for the heartbeat. ``state``: starting, idle, busy, ending, or waiting to restart (pid 0).

    ``busy_percent`` is the share of the last second or so with work in hand; ``stalled_s`` how long it has
    had work and not moved.
    """

    pid: int
    core: int
    state: str
    rss_bytes: int
    in_flight: int
    jobs_done: int
    restarts: int
    busy_percent: float
    stalled_s: float


class Slot:
    """The place of one child: it keeps its core and its record when the child is replaced."""

    def __init__(self, core: int, now: float) -> None:
        self.core = core
        self.child: Child | None = None
        self.restart_at = now
        self.failures = 0  # in a row, for the backoff
        self.restarts = 0
        self.jobs_done = 0  # by earlier children
        self.busy_percent = 0.0
        self.busy_mark_s = 0.0  # busy seconds already counted in busy_percent
        self.rated_s = 0.0  # busy seconds already counted in the rate

    @property
    def ready(self) -> Child | None:
        """Its child, if that can be given work."""
        child = self.child
        return child if child is not None and child.ready_at is not None and child.eof_at is None else None

    def back_off(self, now: float, rng: random.Random) -> None:
        """Set the time of the next start: doubling, with jitter so that children do not start in step."""
        delay_s = min(BACKOFF_MIN_S * 2.0 ** min(self.failures, 16), BACKOFF_MAX_S)
        self.restart_at = now + min(delay_s * (1 + rng.random() / 4), BACKOFF_MAX_S)
        self.failures += 1

    def describe(self, now: float) -> ChildInfo:
        """Return its state for the heartbeat."""
        child = self.child
        if child is None:
            return ChildInfo(0, self.core, "waiting", 0, 0, self.jobs_done, self.restarts, 0.0, 0.0)
        return ChildInfo(
            pid=child.process.pid,
            core=self.core,
            state=child.state,
            rss_bytes=child.rss_bytes(),
            in_flight=len(child.hand),
            jobs_done=self.jobs_done + child.jobs_done,
            restarts=self.restarts,
            busy_percent=self.busy_percent,
            stalled_s=child.stalled_s(now),
        )


def spawn(command: Sequence[str], core: int, now: float) -> Child:
    """Start a child for ``core``; raises OSError when the system has no process or descriptor left.

    It is started by exec, never a bare fork: CTranslate2 and zmq are not fork-safe. It gets a process group
    of its own, so that Ctrl-C in a terminal reaches the node alone, which then lets its children finish.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno()), "--core", str(core)],
                stdin=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                process_group=0,
            )
        ours.setblocking(False)
    except BaseException:
        ours.close()
        raise
    return Child(process, ours, core, now)


def worker_command(
    worker: Sequence[str], engine: EngineConfig, kind: str, routes: Sequence[str], packages: Sequence[Path]
) -> tuple[str, ...]:
    """Return the command line of a child, less what ``spawn`` adds for each one."""
    command = [*worker, "--engine", kind, "--config-json", msgspec.json.encode(engine).decode()]
    if routes:
        command += ["--routes", ",".join(routes)]
    if packages:
        command += ["--packages", *map(str, packages)]
    return tuple(command)


def _environment() -> dict[str, str]:
    path = os.environ.get("PYTHONPATH")
    return {
        **MALLOC,
        **os.environ,
        "OMP_NUM_THREADS": "1",  # one child is one core; libgomp's own threads can also deadlock at exit
        "PYTHONPATH": f"{_HOUSE}{os.pathsep}{path}" if path else _HOUSE,
    }


def _wire(job: PoolJob) -> list[Any]:
    return [job.key, job.route, job.texts, job.urgent, job.alone, job.alternatives]


def _all_str(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


def _no_ext(code: int, data: bytes) -> Any:
    raise _nonsense(f"a msgpack extension of type {code}")


def _nonsense(what: str) -> RemoteError:
    return RemoteError("child_crashed", f"sent what is not the protocol: {what}")
