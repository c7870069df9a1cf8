"""One example of every message on the wire."""

from __future__ import annotations

from dolmetsch import messages as m
from dolmetsch import reports as r

ID = bytes(range(16))


def every_message() -> list[m.Message]:
    """A list with each kind once, every field filled."""
    held = (m.HeldLease(ID, 2),)
    route = (r.Route("de→en", "de_en-1.0-0badcafe"),)
    child = r.ChildStatus(42, 1, "busy", 90_000_000, 12, 0, 3)
    node = r.NodeStatus("pi-1", "ready", ("de→en",), 3, 96, 3, 55.0, 40.5, 61.2, False, 1800.0, 12, 0.4)
    gateway = r.GatewayStatus("discord", "up", "discord", 2, 48.5, 1, 20, 3, 4, 0.4)
    about = r.About("pi-1", "Raspberry Pi 5 Model B Rev 1.0", "Debian 12", "0.1.0", 4, 8 * 2**30, 86_400.5)
    report = r.NodeReport(
        "pi-1", "b2", "ready", "argos", about, 86_500.0, 99.5, 0.4, route, 96, 3, 12, 3, 10, 4, 1800.0, 55.0,
        (10.0, 100.0), 40.5, 10**9, 61.2, True, (child,),
    )  # fmt: skip
    story = (r.StoryLine(3, "leased to pi-1"), r.StoryLine(47, "done"))
    job = r.JobReport(
        ID, "done", "discord", 0, "de→en", 20, "pi-1", "model", 1, False, "", "", 0.3, 45, 3, 1, 2, 40, 8, story,
    )  # fmt: skip
    counts = r.Counts(*range(1, len(r.Counts.__struct_fields__) + 1))
    histogram = r.Histogram(tuple(range(len(r.LATENCY_MS) + 1)), 4711)
    return [
        m.Hello(gateway="discord", incarnation="a1"),
        m.Submit(jobs=(m.JobSpec(ID, "de→en", ("Grüß Gott 🍕", ""), 1, "guild", 30.0, b"reply", 2, 45),)),
        m.Ack(jobs=(ID,)),
        m.Cancel(jobs=(ID,)),
        m.Manage(action=m.DRAIN, node="pi-1"),
        m.Manage(action=m.PURGE, jobs=(ID,)),
        m.Ping(edition=2),
        m.Ask(),
        m.Report(kind="cli", servers=0, latency_ms=r.NO_LATENCY_MS, queued=1, answered=20, failed=3),
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
        m.Managed(action=m.DRAIN, node="pi-1", count=1, problem=""),
        m.Telemetry(
            broker="c3", up_s=13.0, draining=False,
            health=r.BrokerHealth(
                "pi-0", "0.1.0", 42, 1.5, 60_000_000, 4096, 10**10, (r.Waiting("pi4", "192.0.2.4", "5e2f-90c1"),)
            ), counts=counts,
            latency=(histogram, histogram), routes=route, nodes=(report,),
            departed=(r.Departed("pi-2", "lost", "pi-2 was lost", 4.0),), gateways=(gateway,), jobs=(job,), dead=(job,),
        ),
        m.Register(node="pi-1", incarnation="b2", routes=route, capacity=96, engine="argos", about=about, held=held),
        m.Heartbeat(
            held=held, capacity=96, draining=False, workers=3, queued=10, in_flight=4, chars_per_s=1800.0,
            cpu_percent=55.0, core_percent=(10.0, 100.0), ram_percent=40.5, ram_used_bytes=10**9, temperature_c=61.2,
            throttled=True, children=(child,),
        ),
        m.Done(jobs=(m.Finished(ID, 2, ("Hello",), "model", 12, 34),)),
        m.Failed(jobs=(m.Failure(ID, 2, "child_crashed", "signal 9", True),)),
        m.Goodbye(),
        m.Welcome(broker="c3", heartbeat_s=1.0, edition=2, routes=route),
        m.Lease(jobs=(m.LeasedJob(ID, 2, "de→en", ("Grüß Gott",), 0, False, 1),)),
        m.Received(jobs=held),
        m.Revoke(jobs=held),
        m.Order(action=m.RESTART),
        m.Knock(name="pi4", token=b"t" * m.TOKEN_BYTES),
        m.Verdict(state="pending", detail="waits for approval"),
        m.Reregister(),
        m.Pong(),
        m.Error(code="bad_message", detail="no"),
    ]  # fmt: skip
