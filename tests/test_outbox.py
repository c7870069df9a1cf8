"""A gateway's side of the conversation: what waits to be sent, and when it looks again. Found by the simulation."""

from __future__ import annotations

import random

from dolmetsch import messages as m
from dolmetsch import outbox as o

ID = bytes(16)
WELCOME = m.Welcome(broker="b", heartbeat_s=1.0, edition=0, routes=())


class Desk:
    """An outbox and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.outbox = o.Outbox(gateway="g", incarnation="1", rng=random.Random(0), now=self.now)

    def handle(self, event: o.Event, after_s: float = 0.0) -> list[o.Effect]:
        self.now += after_s
        return self.outbox.handle(event, self.now)

    def hear(self, message: m.Message, after_s: float = 0.0) -> list[o.Effect]:
        return self.handle(o.FromBroker(message), after_s)

    def post(self) -> list[o.Effect]:
        return self.handle(o.Post((m.JobSpec(ID, "de→en", ("Hallo",), m.INTERACTIVE, "", 60.0, b""),)))


def sent(effects: list[o.Effect], kind: type[m.Message]) -> list[m.Message]:
    return [one.message for one in effects if isinstance(one, o.Send) and isinstance(one.message, kind)]


def test_a_refusal_takes_back_the_copy_that_waits_to_be_sent() -> None:
    desk = Desk()
    desk.hear(WELCOME)
    desk.post()
    assert sent(desk.handle(o.Tick()), m.Submit)
    desk.hear(WELCOME)  # the broker was restarted: everything is to be sent again
    refused = m.Rejected(jobs=(m.Refusal(ID, "overloaded", "later", 1.0),))
    assert [type(one) for one in desk.hear(refused)] == [o.Refuse]
    assert not sent(desk.handle(o.Tick(), 0.1), m.Submit)
    desk.post()
    assert sent(desk.handle(o.Tick(), 0.1), m.Submit)  # the gateway goes on


def test_without_a_broker_it_looks_seldom() -> None:
    desk = Desk()
    desk.hear(WELCOME)
    desk.post()
    desk.handle(o.Tick())
    turns = 0
    while desk.now < 1060.0:  # a minute of silence
        turns += 1
        desk.handle(o.Tick(), max(0.0, desk.outbox.next_deadline() - desk.now) + 0.001)
    assert turns < 400  # and not a thousand a second
