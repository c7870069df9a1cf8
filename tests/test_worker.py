"""A child as a real process on a real socket: its protocol, its end, its memory."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from dolmetsch.config import EngineConfig
from dolmetsch.decoder import PATIENT_NICE
from dolmetsch.engine import ArgosEngine, Batch, EchoEngine, Outcome, Outputs
from dolmetsch.packages import open_package
from dolmetsch.worker import NICE, Worker
from tests.conftest import wait_until
from tests.embedded import GERMAN, GERMAN_MODEL

HOUSE = Path(__file__).parent.parent
ROUTE = "de→en"
LIMIT_S = 30.0  # far above what anything here takes


class Parent:
    """The node's side of one child."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.process = process
        self._unpacker = msgpack.Unpacker(raw=False, max_buffer_size=2**24)
        sock.settimeout(LIMIT_S)

    def send(self, *message: Any) -> None:
        self.sock.sendall(msgpack.packb(list(message)))

    def jobs(self, *jobs: tuple[bytes, list[str]], alone: bool = False) -> None:
        self.send("jobs", [[key, ROUTE, texts, False, alone, 0] for key, texts in jobs])

    def receive(self) -> list[Any]:
        for message in self._unpacker:
            assert isinstance(message, list)
            return message
        data = self.sock.recv(2**18)
        assert data, self.errors()
        self._unpacker.feed(data)
        return self.receive()

    def finish(self, *keys: bytes) -> dict[bytes, list[Any]]:
        """Receive until all of ``keys`` are done; begin and done must alternate."""
        answers: dict[bytes, list[Any]] = {}
        while set(keys) - set(answers):
            kind, begun = self.receive()
            assert kind == "begin" and begun
            kind, done = self.receive()
            assert kind == "done"
            assert {answer[0] for answer in done} <= set(begun)
            answers.update({answer[0]: answer[1:] for answer in done})
        return answers

    def end(self) -> int:
        self.sock.shutdown(socket.SHUT_WR)
        return self.process.wait(LIMIT_S)

    def errors(self) -> str:
        """Everything on its standard error, once it has ended."""
        return self.process.communicate(timeout=LIMIT_S)[1].decode()


Start = Callable[..., Parent]


@pytest.fixture
def start() -> Iterator[Start]:
    parents: list[Parent] = []

    def start_child(*options: str, program: Sequence[str] = ("-m", "dolmetsch.worker")) -> Parent:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *program, "--fd", str(theirs.fileno()), *options],
                pass_fds=[theirs.fileno()],
                cwd=HOUSE,
                stderr=subprocess.PIPE,
            )
        parents.append(Parent(ours, process))
        return parents[-1]

    yield start_child
    for parent in parents:
        parent.sock.close()
        parent.process.kill()
        parent.process.communicate(timeout=LIMIT_S)


@pytest.fixture
def argos(start: Start) -> Parent:
    parent = start("--packages", str(GERMAN.parent), "--core", str(min(os.sched_getaffinity(0))))
    kind, routes = parent.receive()
    assert kind == "ready" and routes[ROUTE] == GERMAN_MODEL
    return parent


@pytest.fixture
def echo(start: Start) -> Parent:
    parent = start("--engine", "echo", "--routes", "de→en,en→fr")
    assert parent.receive() == ["ready", {"de→en": "echo", "en→fr": "echo"}]
    return parent


def test_jobs_are_translated_on_the_given_core(argos: Parent) -> None:
    child = psutil.Process(argos.process.pid)
    assert child.cpu_affinity() == [min(os.sched_getaffinity(0))]
    assert child.nice() > psutil.Process().nice()
    argos.jobs((b"1", ["Ich bin müde.", ""]), (b"2", ["<@42>, wo ist der Bahnhof?"]))
    answers = argos.finish(b"1", b"2")
    assert answers[b"1"][0] == ["I'm tired.", ""]
    assert answers[b"1"][1] == GERMAN_MODEL and answers[b"1"][2:] == ["", ""]
    assert answers[b"2"][0][0].startswith("<@42>, ")
    assert argos.end() == 0
    assert "loaded de→en" in argos.errors()


def test_begin_names_the_jobs_of_its_batch(argos: Parent) -> None:
    argos.send("jobs", [[b"s", ROUTE, ["Hallo."], False, True, 0], [b"n", ROUTE, ["Hallo."], False, False, 0]])
    assert argos.receive() == ["begin", [b"s"]]
    assert argos.receive()[0] == "done"
    assert argos.receive() == ["begin", [b"n"]]
    assert argos.receive()[0] == "done"


def test_a_failed_job_is_answered_with_a_code(argos: Parent) -> None:
    argos.send("jobs", [[b"1", "tlh→en", ["nuqneH"], False, False, 0]])
    texts, model, code, detail = argos.finish(b"1")[b"1"]
    assert (texts, model, code) == (None, "", "no_route")
    assert "tlh→en" in detail


def test_dropped_jobs_are_not_answered(echo: Parent) -> None:
    job = [b"1", ROUTE, ["a"], False, False, 0]
    packed = [["jobs", [job, [b"2", *job[1:]]]], ["drop", [b"1", b"unknown"]], ["jobs", [[b"3", *job[1:]]]]]
    echo.sock.sendall(b"".join([msgpack.packb(message) for message in packed]))
    assert list(echo.finish(b"3")) == [b"2", b"3"]


LONG = "Wenn das Wetter morgen gut ist, gehen wir mit den Kindern in den Park und bleiben bis zum Abend, {} Mal."


def test_an_urgent_job_does_not_wait_for_the_batch_of_others(start: Start) -> None:
    core = str(min(os.sched_getaffinity(0)))
    child = start("--packages", str(GERMAN.parent), "--core", core, "--config-json", '{"batch_tokens": 16384}')
    assert child.receive()[0] == "ready"
    many = [number.to_bytes(2, "big") for number in range(300)]
    child.jobs(*[(key, [LONG.format(int.from_bytes(key))]) for key in many])
    kind, begun = child.receive()
    assert kind == "begin" and len(begun) == len(many)
    child.send("jobs", [[b"person", ROUTE, ["Guten Morgen."], True, False, 0]])
    assert child.receive() == ["begin", [b"person"]]
    kind, done = child.receive()
    assert kind == "done" and [answer[0] for answer in done] == [b"person"]
    kind, done = child.receive()
    assert kind == "done" and {answer[0] for answer in done} == set(many)
    assert all(answer[1] for answer in done)
    assert child.end() == 0


def threads(child: Parent) -> dict[str, tuple[int, int]]:
    """Niceness of each thread of ``child``, and the ticks it ran (man 5 proc_pid_stat: fields 19, 14 and 15)."""
    found = {}
    for thread in Path(f"/proc/{child.process.pid}/task").iterdir():
        fields = (thread / "stat").read_text().rpartition(") ")[2].split()
        found[thread.name] = int(fields[16]), int(fields[11]) + int(fields[12])
    return found


def test_the_thread_of_patient_batches_lets_all_others_go_first(start: Start) -> None:
    child = start("--packages", str(GERMAN.parent), "--config-json", '{"batch_tokens": 16384}')
    assert child.receive()[0] == "ready"
    usual = os.nice(0) + NICE

    def two() -> bool:  # the thread that made the nice one may be there for a moment more
        return sorted(nice for nice, _ in threads(child).values())[-2:] == [usual, PATIENT_NICE]

    wait_until(two, 5, "one thread for each kind of batch")
    before = threads(child)
    for urgent in (False, True):
        texts = [LONG.format(number + 1000 * urgent) for number in range(200)]
        child.send("jobs", [[b"job", ROUTE, texts, urgent, False, 0]])
        assert [child.receive()[0] for _ in range(2)] == ["begin", "done"]
        after = threads(child)
        busiest = max(before, key=lambda name: after[name][1] - before[name][1])
        assert before[busiest][0] == (usual if urgent else PATIENT_NICE)
        before = after
    assert child.end() == 0


def test_a_suspect_is_worked_on_with_nothing_beside_it(start: Start) -> None:
    child = start("--packages", str(GERMAN.parent), "--config-json", '{"batch_tokens": 16384}')
    assert child.receive()[0] == "ready"
    child.jobs(*[(bytes((number,)), [LONG.format(number)]) for number in range(100)])
    assert child.receive()[0] == "begin"
    child.send("jobs", [[b"suspect", ROUTE, ["Guten Morgen."], True, True, 0]])
    assert child.receive()[0] == "done"
    assert child.receive() == ["begin", [b"suspect"]]
    assert child.receive()[0] == "done"


class BrokenModel(ArgosEngine):
    """Fails while it translates, as a bug would."""

    def run(self, batch: Batch) -> Outputs:
        raise KeyError("Das bleibt unter uns")


def test_an_error_in_the_background_costs_its_jobs_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as executor:
        worker = Worker(theirs, BrokenModel([open_package(GERMAN)], EngineConfig()))
        serving = executor.submit(worker.serve)
        parent = Parent(ours, subprocess.Popen([sys.executable, "-c", ""], stderr=subprocess.PIPE))
        try:
            assert parent.receive()[0] == "ready"
            for key in (b"1", b"2"):
                parent.jobs((key, ["Guten Morgen."]))
                texts, _, code, detail = parent.finish(key)[key]
                assert (texts, code) == (None, "engine_error") and detail.startswith("KeyError at test_worker.py:")
        finally:
            ours.shutdown(socket.SHUT_WR)
            parent.errors()
        serving.result(LIMIT_S)
    assert "unter uns" not in caplog.text


def test_every_job_of_many_comes_back_once(echo: Parent) -> None:
    keys = [number.to_bytes(16, "big") for number in range(5000)]
    answers = {}
    for begin in range(0, len(keys), 500):
        echo.jobs(*[(key, ["Hallo", key.hex()]) for key in keys[begin : begin + 500]])
        answers.update(echo.finish(*keys[begin : begin + 500]))
    assert [answers[key][0] for key in keys] == [["Hallo", key.hex()] for key in keys]
    assert echo.end() == 0
    assert "untranslated" in echo.errors()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xc1",
        msgpack.packb("hello"),
        msgpack.packb(["dance", []]),
        msgpack.packb(["jobs", [[b"1", ROUTE, "text", False, False, 0]]]),
        msgpack.packb(["jobs", [[b"1", ROUTE, [1], False, False, 0]]]),
        msgpack.packb(["jobs", [["1", ROUTE, [], False, False, 0]]]),
        msgpack.packb(["jobs", [[b"1", ROUTE, [], False, False, -1]]]),
        msgpack.packb(["jobs", [[b"1", ROUTE, [], False, False, 1000]]]),
        msgpack.packb(["drop", [[]]]),
        msgpack.packb(["jobs", msgpack.ExtType(1, b"")]),
        msgpack.packb(["jobs", msgpack.Timestamp(1)]),
        msgpack.packb(["jobs", [[b"1", b"\xff", [], False, False, 0]]]),
    ],
)
def test_nonsense_ends_the_child_with_one_line(echo: Parent, garbage: bytes) -> None:
    echo.sock.sendall(garbage)
    assert echo.process.wait(LIMIT_S) == 4
    *_, last = echo.errors().splitlines()
    assert "the parent sent what is not the protocol" in last and "error worker[-1]" in last


class BrokenEngine(EchoEngine):
    """Fails at the jobs that it is asked to fail at."""

    def finish(self, batch: Batch, outputs: Outputs) -> list[Outcome]:
        if b"bad" in batch.keys:
            raise KeyError("no such\nthing")
        return super().finish(batch, outputs)


def test_an_error_in_a_batch_costs_its_jobs_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(msgpack.packb(["jobs", [[b"bad", ROUTE, ["a"], True, False, 0]]]))
        ours.sendall(msgpack.packb(["jobs", [[b"good", ROUTE, ["a"], False, False, 0]]]))
        worker = Worker(theirs, BrokenEngine([ROUTE]))
        assert worker._receive()
        for _ in range(2):
            worker._work()
        unpacker = msgpack.Unpacker(raw=False)
        unpacker.feed(ours.recv(2**18))
        begin_bad, done_bad, *rest = list(unpacker)
        assert begin_bad == ["begin", [b"bad"]]
        key, texts, _, code, detail = done_bad[1][0]
        assert (key, texts, code) == (b"bad", None, "engine_error")
        assert detail.startswith("KeyError at test_worker.py:")
        assert rest == [["begin", [b"good"]], ["done", [[b"good", ["a"], "echo", "", ""]]]]
    # Where texts are handled, a library's message may quote one: no log and no detail repeats it.
    assert "no such" not in caplog.text + detail
    assert "a batch of 1 jobs failed: KeyError" in caplog.text


FAULTY = """
import sys
from dolmetsch import engine, worker

def next_batch(self, *, beside):
    if self._others: raise KeyError([outcome.texts for outcome in self._others.values()])

engine.EchoEngine.next_batch = next_batch
sys.exit(worker.main())
"""


def test_a_bug_ends_the_child_without_a_word_of_the_text(start: Start) -> None:
    parent = start("--engine", "echo", program=("-c", FAULTY))
    assert parent.receive()[0] == "ready"
    parent.jobs((b"1", ["Das bleibt unter uns."]))
    assert parent.process.wait(LIMIT_S) == 1
    *_, last = parent.errors().splitlines()
    assert "error worker[-1]: failed: KeyError at <string>:6, worker.py:" in last
    assert "unter uns" not in last and "Traceback" not in last


def test_a_parent_that_does_not_read_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(msgpack.packb(["jobs", [[b"%d" % n, ROUTE, ["a" * 20_000], False, False, 0] for n in range(5)]]))
        theirs.settimeout(0.1)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with pytest.raises(TimeoutError):
            Worker(theirs, EchoEngine([ROUTE])).serve()


def test_an_interrupt_in_the_terminal_does_not_end_it(echo: Parent) -> None:
    echo.process.send_signal(signal.SIGINT)
    echo.jobs((b"1", ["a"]))
    assert echo.finish(b"1")[b"1"][0] == ["a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--packages", "no/such/folder"], "no Argos package"),
        (["--packages", str(GERMAN.parent), "--routes", "fr→de"], "fr→de"),
        (["--packages", str(GERMAN.parent), "--config-json", '{"beam_size": 0}'], "beam_size"),
        (["--packages", str(GERMAN.parent), "--config-json", '{"compute_type": "int3"}'], "int3"),
        (["--core", "4095"], "core 4095 cannot be used"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(start: Start, options: list[str], words: str) -> None:
    parent = start(*options)
    kind, detail = parent.receive()
    assert kind == "broken" and words in detail and "\n" not in detail
    assert parent.process.wait(LIMIT_S) == 3
    assert "Traceback" not in parent.errors()


def test_a_broken_package_is_said_in_one_line(start: Start, tmp_path: Path) -> None:
    shutil.copytree(GERMAN, tmp_path / GERMAN.name)
    (tmp_path / GERMAN.name / "model" / "model.bin").write_bytes(b"\x00" * 100)
    parent = start("--packages", str(tmp_path))
    kind, detail = parent.receive()
    assert kind == "broken" and str(tmp_path) in detail and "\n" not in detail
    assert parent.process.wait(LIMIT_S) == 3


LAUNCHER = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
process = subprocess.Popen(
    [sys.executable, "-m", "dolmetsch.worker", "--fd", str(theirs.fileno()), "--engine", "echo"],
    pass_fds=[theirs.fileno()],
)
ours.recv(100)  # it is ready
print(process.pid, ours.fileno(), flush=True)
time.sleep(60)
"""


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_the_child_dies_with_its_parent() -> None:
    """Even when it is stopped and cannot see its socket close: the kernel does it."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], cwd=HOUSE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline().split()[0]))
        child.suspend()
        parent.kill()
        until = time.monotonic() + LIMIT_S
        while lives(child):
            assert time.monotonic() < until, "the child lives on"
            time.sleep(0.01)  # between two looks


SUBJECTS = ("Ich", "Mein Bruder", "Die Frau von nebenan", "Unser alter Lehrer", "Tom", "Das kleine Mädchen")
VERBS = ("sieht", "kennt", "sucht seit drei Tagen", "möchte morgen früh", "vergisst immer", "braucht")
OBJECTS = (
    "den Schlüssel",
    "ein neues Fahrrad, weil das alte kaputt ist",
    "die Bücher, die auf dem Tisch liegen",
    "das Haus am Ende der Straße, in dem früher seine Großeltern gewohnt haben",
    "eine gute Idee",
    "den Weg zum Bahnhof",
)
PLACES = ("", " in Berlin")


def test_memory_stays_within_its_bound(argos: Parent) -> None:
    """At most 2.5 times the package on disk plus 120 MiB, at its highest (VmHWM)."""
    words = itertools.product(SUBJECTS, VERBS, OBJECTS, PLACES)
    texts = [f"{who} {does} {what}{where}." for who, does, what, where in words][:400]
    keys = [b"%d" % number for number in range(len(texts))]
    argos.jobs(*[(key, [text]) for key, text in zip(keys, texts, strict=True)])
    answers = argos.finish(*keys)
    assert all(answers[key][0] for key in keys)
    status = Path(f"/proc/{argos.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    size = sum(file.stat().st_size for file in GERMAN.rglob("*") if file.is_file())
    assert peak <= 2.5 * size + 120 * 2**20


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CTranslate2 compiles its arithmetic on x86-64 only")
def test_where_memory_may_not_be_executable_it_says_so_and_translates_no_nonsense(start: Start) -> None:
    deny = "import ctypes, sys; sys.exit(3) if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) else None"  # PR_SET_MDWE
    if subprocess.run([sys.executable, "-c", deny], check=False, timeout=LIMIT_S).returncode:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    run = f"{deny}; import runpy; sys.argv.pop(0); runpy.run_module('dolmetsch.worker', run_name='__main__')"
    child = start("--packages", str(GERMAN), program=("-c", run, "worker"))
    kind, why = child.receive()
    assert kind == "broken" and "MemoryDenyWriteExecute" in why
