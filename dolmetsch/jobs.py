"""A job, its states and the table of moves between them. Pure.

queued --lease--> leased --done--> done --ack--> settled
  ^  |               | |
  |  |               | `-- lease expired, node lost, given back --> queued
  |  `--- deadline --+---- attempts used up ----------------------> dead --requeued by an operator--> queued
  |
A settled job is gone: its text is deleted, only its id is remembered for a while.
"""

from __future__ import annotations

import enum
from typing import Final

from msgspec import Struct

from dolmetsch.errors import LocalError
from dolmetsch.reports import Entry

STORY_LINES: Final = 16  # enough for every attempt of a job that ends as a dead letter; a job costs memory


class State(enum.StrEnum):
    """Where a job stands; the values are the wire's words."""

    QUEUED = "queued"
    LEASED = "leased"
    DONE = "done"
    DEAD = "dead"
    SETTLED = "settled"

    __hash__ = str.__hash__  # an enum's own is a function in Python, and a job is looked up by its state at each move


TRANSITIONS: Final = frozenset(
    {
        (State.QUEUED, State.LEASED),  # dispatched, or re-presented by a node that held it all along
        (State.QUEUED, State.DONE),  # answered from the cache, or by a node that had been given up
        (State.QUEUED, State.DEAD),  # its deadline passed
        (State.QUEUED, State.SETTLED),  # cancelled
        (State.LEASED, State.QUEUED),  # lease expired, node lost, given back
        (State.LEASED, State.DONE),
        (State.LEASED, State.DEAD),
        (State.LEASED, State.SETTLED),
        (State.DONE, State.SETTLED),  # acked, or kept longer than results are kept
        (State.DEAD, State.QUEUED),  # an operator requeues a dead letter
        (State.DEAD, State.SETTLED),  # cancelled, or kept longer than dead letters are kept
    }
)


class Outcome(Entry, frozen=True):
    """How a job ended: translated ``texts``, or None with a ``code`` and a ``detail``."""

    texts: tuple[str, ...] | None
    code: str
    detail: str
    model: str
    cached: bool
    took_ms: int


class Times(Entry, frozen=True):
    """What a node says of the time it had a job: until its first batch began, and from then on."""

    wait_ms: int
    work_ms: int


class Job(Struct, kw_only=True, eq=False, gc=False):
    """One job in the broker. Mutable on purpose: the scheduler is its only owner, and there may be 100 000."""

    seq: int
    id: bytes
    gateway: str
    tenant: str
    lane: int
    route: str
    texts: tuple[str, ...]
    chars: int = 0
    reply_to: bytes
    deadline: float
    alternatives: int = 0
    waited_ms: int = 0  # at its gateway, before it came
    queued_at: float
    state: State = State.QUEUED
    attempt: int = 0  # leases so far: (id, attempt) names one
    given_up: int = 0  # the last attempt that its node gave back
    losses: int = 0  # leases that expired or whose node was lost
    failures: int = 0  # leases that ended in a child's crash or an engine's error
    node: str | None = None
    leased_at: float = 0.0
    lease_until: float = 0.0
    times: Times | None = None  # once a node has translated it
    outcome: Outcome | None = None
    acked: bool = False
    timer: set[bytes] | None = None  # slot of its timer: the deadline, or later the time it is given up
    story: list[tuple[float, str]] | None = None  # only jobs that were leased have something to tell

    def __post_init__(self) -> None:
        self.chars = sum(map(len, self.texts))

    def __repr__(self) -> str:
        return f"<job {self.id.hex()}>"  # no text of it gets into an error by chance

    def move(self, state: State, now: float, what: str) -> None:
        """Change the state along ``TRANSITIONS`` and write it in the story.

        Raises ``LocalError``, with the story, for a move that the table does not have.
        """
        if (self.state, state) not in TRANSITIONS:
            raise LocalError(f"job {self.id.hex()}: {self.state.value} -> {state.value} ({what})\n{self.tell()}")
        self.state = state
        if self.story is None:
            self.story = []
        self.story.append((now, what))
        if len(self.story) > STORY_LINES:
            del self.story[1]  # the beginning and the latest lines say most

    def tell(self) -> str:
        """The story, a line an event, in seconds since the job was queued."""
        lines = [f"{0.0:9.3f} s queued for {self.route} by {self.gateway}"]
        lines += [f"{at - self.queued_at:9.3f} s {what}" for at, what in self.story or ()]
        return "\n".join(lines)

    @property
    def wanted(self) -> int:
        """Translations that a result must have: of each text the best, and as many alternatives."""
        return len(self.texts) * (1 + self.alternatives)

    def measure(self) -> int:
        """Bytes of memory that the job takes now, roughly."""
        size = JOB_BYTES + len(self.reply_to)
        if self.texts:
            size += 2 * self.chars
        if self.outcome is not None and self.outcome.texts is not None:
            size += 2 * sum(map(len, self.outcome.texts))
        return size


JOB_BYTES: Final = 600  # measured: a queued job without its text
