"""The load: a gateway with a journal, so many jobs a second. It may be killed at any moment, and goes on where it was.

    python -m chaos.gateway JOURNAL --broker ADDRESS --per-s 20

It does what a gateway must that answers people once: write down what it sends before it is sent, and what it gets
before it is acked; after a kill, send what has no answer again, and take what comes for the process before it. At
SIGTERM it sends no more, and ends when all is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from chaos.journal import Tally, text_of
from dolmetsch import config
from dolmetsch.client import BULK, INTERACTIVE, Answer, Client
from dolmetsch.errors import DolmetschError, JobRejected
from dolmetsch.messages import JobSpec
from dolmetsch.transport import broker_of

NAME: Final = "chaos-load"
ROUTE: Final = "de→en"
DEADLINE_S: Final = 900.0  # longer than any fault and its recovery
TURN_S: Final = 0.1
MOST_WAITING: Final = 2000  # as a gateway has users, and users wait: no more is asked for while so much has no answer


def job_id(number: int) -> bytes:
    """The same number is the same job, in every process of this gateway."""
    return hashlib.blake2b(f"{NAME}/{number}".encode(), digest_size=16).digest()


class Gateway:
    """The jobs of all processes so far, as the journal has them, and this process's part."""

    def __init__(self, journal: IO[bytes], tally: Tally) -> None:
        self._journal = journal
        self._numbers = {job_id(number): number for number in range(len(tally.sent))}
        self._waiting = set(tally.waiting)
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    async def run(self, where: str, keys: Any, per_s: float) -> None:
        """Send and answer until it is to stop and nothing waits."""
        self._note(start=os.getpid())
        async with Client(where, gateway=NAME, keys=keys, on_stray=self._stray) as self._client:
            for number in sorted(self._waiting):
                self._submit(number)
            begin, first = time.monotonic(), len(self._numbers)
            while not self._stop.is_set() or self._waiting:
                due = first + int((time.monotonic() - begin) * per_s)
                while not self._stop.is_set() and len(self._numbers) < due and len(self._waiting) < MOST_WAITING:
                    self._send()
                await asyncio.sleep(TURN_S)

    def _send(self) -> None:
        number = len(self._numbers)
        self._numbers[job_id(number)] = number
        self._waiting.add(number)
        self._note(sent=number)
        self._submit(number)

    def _submit(self, number: int) -> None:
        lane = BULK if number % 2 else INTERACTIVE
        spec = JobSpec(job_id(number), ROUTE, (text_of(number),), lane, f"tenant-{number % 3}", DEADLINE_S, b"")
        self._client.submit(spec, lambda end: self._ended(number, end))

    def _ended(self, number: int, end: Answer | DolmetschError) -> None:
        if isinstance(end, Answer):
            self._take(number, end)
        elif isinstance(end, JobRejected) and end.retry_after_s:
            asyncio.get_running_loop().call_later(end.retry_after_s, self._submit, number)
        else:
            self._waiting.discard(number)
            self._note(failed=number, why=f"{type(end).__name__}: {end}")

    def _stray(self, answer: Answer) -> None:
        self._take(self._numbers[answer.job_id], answer)

    def _take(self, number: int, answer: Answer) -> None:
        self._waiting.discard(number)
        if answer.texts is None:
            self._note(failed=number, why=f"{answer.code}: {answer.detail}, attempts: {answer.attempts}")
        else:
            self._note(got=number, text=answer.texts[0], attempts=answer.attempts)
        self._client.ack(answer.job_id)

    def _note(self, **entry: Any) -> None:
        line = json.dumps({**entry, "at": time.monotonic()}, ensure_ascii=False).encode()
        self._journal.write(line + b"\n")
        self._journal.flush()  # with the operating system: a kill does not touch it


def _open(path: Path) -> IO[bytes]:
    """The journal without a half line at its end, to be added to."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
    return path.open("ab")


async def _run(arguments: argparse.Namespace) -> None:
    broker = broker_of(config.load(None, os.environ, {"node": {"broker": arguments.broker}}))
    with _open(arguments.journal) as journal:
        tally = Tally(arguments.journal)
        tally.read()
        gateway = Gateway(journal, tally)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, gateway.stop)
        await gateway.run(broker.where, broker.keys, arguments.per_s)


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos.gateway", description="A steady load with a journal.")
    parser.add_argument("journal", type=Path)
    parser.add_argument("--broker", required=True, metavar="ADDRESS")
    parser.add_argument("--per-s", type=float, default=20.0, metavar="N", help="jobs a second (20)")
    asyncio.run(_run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
