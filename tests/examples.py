"""One example of every message on the wire."""

from __future__ import annotations

from dolmetsch import messages as m

ID = bytes(range(16))


def every_message() -> list[m.Message]:
    """A list with each kind once, every field filled."""
    held = (m.HeldLease(ID, 2),)
    route = (m.Route("de→en", "de_en-1.0-0badcafe"),)
    child = m.ChildStatus(42, 1, "busy", 90_000_000, 12, 0, 3)
    node = m.NodeStatus("pi-1", "ready", ("de→en",), 3, 96, 3, 55.0, 40.5, 61.2, False, 1800.0, 12, 0.4)
    gateway = m.GatewayStatus("discord", "up", "discord", 2, 48.5, 1, 20, 3, 4, 0.4)
    return [
        m.Hello(gateway="discord", incarnation="a1"),
        m.Submit(jobs=(m.JobSpec(ID, "de→en", ("Grüß Gott 🍕", ""), 1, "guild", 30.0, b"reply"),)),
        m.Ack(jobs=(ID,)),
        m.Cancel(jobs=(ID,)),
        m.Requeue(jobs=()),
        m.Ping(edition=2),
        m.Ask(),
        m.Report(kind="cli", servers=0, latency_ms=m.NO_LATENCY_MS, queued=1, answered=20, failed=3),
        m.Accepted(jobs=(m.JobState(ID, "queued"),)),
        m.Rejected(jobs=(m.Refusal(ID, "overloaded", "overloaded: try again in 3 s", 3.0),)),
        m.Result(
            jobs=(
                m.Answer(ID, ("Hello",), "", "", "model", 1, False, 12, b"reply"),
                m.Answer(ID, None, "deadline", "too late", "", 3, False, 60_000, b""),
            )
        ),
        m.Routes(edition=2, routes=route),
        m.Status(
            routes=route, nodes=(node,), gateways=(gateway,), queued_interactive=1, queued_bulk=2, leased=3,
            undelivered=4, dead_letters=5, accepted=6, rejected=7, done=8, failed=9, cache_hits=10, bad_frames=11,
            median_ms=12.5, uptime_s=13.0, draining=False,
        ),
        m.Register(node="pi-1", incarnation="b2", routes=route, capacity=96, engine="argos", held=held),
        m.Heartbeat(
            held=held, capacity=96, draining=False, workers=3, queued=10, in_flight=4, chars_per_s=1800.0,
            cpu_percent=55.0, core_percent=(10.0, 100.0), ram_percent=40.5, ram_used_bytes=10**9, temperature_c=61.2,
            throttled=True, children=(child,),
        ),
        m.Done(jobs=(m.Finished(ID, 2, ("Hello",), "model"),)),
        m.Failed(jobs=(m.Failure(ID, 2, "child_crashed", "signal 9", True),)),
        m.Goodbye(),
        m.Welcome(broker="c3", heartbeat_s=1.0, edition=2, routes=route),
        m.Lease(jobs=(m.LeasedJob(ID, 2, "de→en", ("Grüß Gott",), 0, False),)),
        m.Received(jobs=held),
        m.Revoke(jobs=held),
        m.Reregister(),
        m.Pong(),
        m.Error(code="bad_message", detail="no"),
    ]  # fmt: skip
