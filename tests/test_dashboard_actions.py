"""The dashboard on a real cluster: its actions, which need the token, and what becomes of nodes and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from bench.cluster import Cluster
from dashboard import operator
from dolmetsch.client import Client
from dolmetsch.errors import JobFailed, NoBroker
from tests.conftest import wait_until
from tests.dashboards import ACTION, BEARER, GETS, QUICK_S, SECRET, TOKEN, Served, do, ready, serve, stranger
from tests.test_gate import Owner

# ---- a real cluster ----


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A broker, an echo node, and a dashboard with a token."""
    with Cluster(tmp_path_factory.mktemp("real")) as cluster:
        cluster.broker()
        for name in ("one", "two"):
            cluster.node(name, "--engine", "echo", "--max-workers", "1")
        served = serve(cluster, DASHBOARD_TOKEN=TOKEN)
        cluster.wait_ready(2, 2)
        wait_until(lambda: served.get("/readyz").status_code == 200, QUICK_S, "it is seen")
        yield served
        for name in list(cluster.programs):
            cluster.kill(name)


def node_state(served: Served, name: str) -> str:
    answer = served.get(f"/api/nodes/{name}")
    return str(answer.json()["state"]) if answer.status_code == 200 else ""


def test_actions_need_the_token(living: Served) -> None:
    assert living.now()["actions"] == "token"
    body = {"text": "Guten Morgen", "route": "de→en"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        answer = living.post("/api/translate", body, **ACTION, **headers)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert living.post("/api/translate", body, **BEARER).status_code == 403, "a token is no protection against forgery"
    for action in ("approve", "refuse"):
        path = f"/api/waiting/5e2f-90c1-7a44-0b3d/{action}"
        assert living.post(path, **ACTION).status_code == 401 and living.post(path, **BEARER).status_code == 403
        answer = do(living, path)
        assert answer.status_code == 404 and "has no keys" in answer.json()["error"]
    assert TOKEN not in living.log


def test_a_killed_node_is_lost_within_five_seconds(living: Served) -> None:
    assert node_state(living, "two") == "ready"
    living.cluster.kill("two")
    took_s = wait_until(lambda: node_state(living, "two") == "lost", 5.0, "it is lost")
    assert took_s < 5.0
    assert any(one["text"].startswith("two is lost: not heard for") for one in living.now()["problems"])
    assert node_state(living, "one") == "ready" and living.get("/readyz").status_code == 200


def test_a_translation_is_tried_and_its_text_is_nowhere_else(living: Served) -> None:
    answer = do(living, "/api/translate", {"text": SECRET, "route": "de→en"})
    assert answer.status_code == 200
    assert set(answer.json()) == {"translation", "model", "took_ms", "cached"}
    assert SECRET.split()[0] in answer.json()["translation"]
    assert do(living, "/api/translate", {"text": SECRET, "route": "fr→en"}).status_code == 404
    wait_until(lambda: living.get("/api/jobs").json()["jobs"] != [], QUICK_S, "the job is told of")
    job = living.get("/api/jobs").json()["jobs"][0]
    assert (job["state"], job["node"], job["chars"], job["lane"]) == ("done", "one", len(SECRET), "interactive")
    assert job["gateway"].startswith("dashboard-") and job["story"]
    for path in GETS:
        assert "Brombeer" not in living.get(path.replace("pi-1", "one")).text, path
    files = [path for path in living.cluster.folder.rglob("*") if path.is_file() and "ledger" not in path.name]
    assert len(files) >= 3 and not [path for path in files if b"Brombeer" in path.read_bytes()]


def fail_some(living: Served, number: int) -> None:
    """Jobs that nobody does in time."""

    async def run() -> None:
        async with Client(living.cluster.address, gateway="unlucky") as client:
            jobs = [client.translate(f"{SECRET} {one}", "de→en", deadline_s=0.2) for one in range(number)]
            ended = await asyncio.gather(*jobs, return_exceptions=True)
            assert all(isinstance(one, JobFailed) for one in ended)

    asyncio.run(run())


def test_a_node_is_drained_and_resumed_and_dead_letters_are_requeued_and_purged(living: Served) -> None:
    assert do(living, "/api/nodes/nobody/drain").status_code == 404
    here = ready(living)
    for name in here:
        assert do(living, f"/api/nodes/{name}/drain").json() == {"done": True, "count": 1}
    wait_until(lambda: {node_state(living, name) for name in here} == {"draining"}, QUICK_S, "nobody works")
    assert living.get("/readyz").json()["reason"] == "no node is ready"
    fail_some(living, 3)

    def letters() -> list[str]:
        return [str(job["id"]) for job in living.get("/api/jobs?kind=dead").json()["jobs"]]

    wait_until(lambda: len(letters()) == 3, QUICK_S, "three dead letters")
    assert "3 dead letters wait to be requeued or purged" in [one["text"] for one in living.now()["problems"]]
    first, second, _ = letters()
    assert do(living, "/api/jobs/purge", {"jobs": [first]}).json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/purge", {"jobs": [first]}).json() == {"done": True, "count": 0}
    for name in here:
        assert do(living, f"/api/nodes/{name}/resume").json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/requeue", {"jobs": [second]}).json() == {"done": True, "count": 1}
    assert do(living, "/api/jobs/purge", {"jobs": "all"}).json() == {"done": True, "count": 1}
    wait_until(lambda: letters() == [] and ready(living) == here, QUICK_S, "all work, and no letter is left")


def test_every_route_survives_what_its_description_allows_and_what_it_forbids(living: Served) -> None:
    schema: Any = schemathesis.openapi.from_dict(living.get("/openapi.json").json())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 23
    with requests.Session() as session:
        for operation in operations:
            fuzz(living, session, operation, GenerationMode.POSITIVE)
            if operation.body or operation.query:  # else there is nothing that could be wrong
                fuzz(living, session, operation, GenerationMode.NEGATIVE)
    assert living.get("/healthz").status_code == 200 and "a bug" not in living.log


def fuzz(living: Served, session: requests.Session, operation: Any, mode: GenerationMode) -> None:
    """Every answer is one that the description has; none is a 500."""
    posts = operation.method == "post"
    cases = operation.as_strategy(generation_mode=mode, headers=BEARER if posts else None)

    @settings(
        max_examples=6 if posts else 4, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def run(case: Any) -> None:
        case.validate_response(case.call(base_url=living.url, session=session, timeout=QUICK_S))

    run()


def test_after_the_brokers_restart_all_is_well(living: Served) -> None:
    living.cluster.kill("broker")
    living.cluster.broker()
    wait_until(lambda: living.now()["totals"]["accepted"] == 0, 10.0, "another broker counts anew")
    wait_until(lambda: living.get("/readyz").status_code == 200, 15.0, "a node can translate again")
    assert do(living, "/api/translate", {"text": SECRET, "route": "de→en"}).status_code == 200
    assert "Traceback" not in living.log and SECRET not in living.log


# ---- a broker with keys ----


def test_who_waits_is_let_in_or_turned_away(cluster: Cluster) -> None:
    owner = Owner(cluster)
    owner.start()
    served = serve(cluster, DASHBOARD_TOKEN=TOKEN)
    hostile = "<script>alert(1)</script> מחשב " + "x" * 97

    def waiting() -> set[tuple[str, ...]]:
        return {tuple(one.values()) for one in served.get("/api/waiting").json()["waiting"]}

    with stranger(owner) as (key, knock), stranger(owner) as (other_key, other_knock):
        assert knock("pi4") == other_knock(hostile) == "pending"
        both = {("pi4", "127.0.0.1", key), (hostile, "127.0.0.1", other_key)}
        wait_until(lambda: waiting() == both, QUICK_S, "both are shown")
        assert "2 computers wait to be let in" in [one["text"] for one in served.now()["problems"]]
        assert "\ndolmetsch_waiting_computers 2.0\n" in served.get("/metrics").text
        assert served.post(f"/api/waiting/{key}/approve", **ACTION).status_code == 401
        assert do(served, "/api/waiting/pi4/approve").status_code == 404, "a name is not enough"
        assert do(served, "/api/waiting/0000-0000-0000-0000/approve").status_code == 404
        assert knock("pi4") == "pending"
        assert do(served, f"/api/waiting/{key}/approve").json() == {"done": True, "count": 1}
        assert do(served, f"/api/waiting/{other_key}/refuse").json() == {"done": True, "count": 1}
        assert do(served, f"/api/waiting/{other_key}/approve").status_code == 404, "it does not wait any more"
        assert (knock("pi4"), other_knock("pi5")) == ("admitted", "refused")
        wait_until(lambda: waiting() == set(), QUICK_S, "nobody waits")
    assert "a bug" not in served.log and "Traceback" not in served.log + cluster.log("broker")


def test_a_broker_that_goes_away_in_the_middle_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        trouble = "the broker does not answer"

    monkeypatch.setattr(operator, "LOOK_S", 0.01)
    monkeypatch.setattr(operator, "AWAY_S", 0.03)

    async def run() -> None:
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        client: Any = Away()
        with pytest.raises(NoBroker):
            await operator._while_there(never, client, "tcp://pi-0:5570")
        client.trouble = ""
        asyncio.get_running_loop().call_later(0.1, never.set_result, None)
        await operator._while_there(never, client, "tcp://pi-0:5570")

    asyncio.run(run())
