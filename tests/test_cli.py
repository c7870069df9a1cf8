"""The terminal gateway as a person meets it, and the one clear line for everything that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from bench.cluster import HOUSE, Cluster, command, free_port
from dolmetsch.messages import Error
from dolmetsch.packages import EMBEDDED
from dolmetsch.wire import decode, encode
from tests.conftest import wait_until
from tests.embedded import GERMAN

TAXI = "Rufen Sie bitte ein Taxi, sonst verpasse ich meinen Flug."


@pytest.fixture
def model(cluster: Cluster) -> Cluster:
    """A cluster that translates with the embedded model."""
    cluster.broker()
    cluster.node("one", "--packages", str(EMBEDDED), "--max-workers", "1")
    cluster.wait_ready(1, 1)
    return cluster


def cli(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("gateway_cli.py", "--broker", cluster.address, *arguments, cluster=cluster)


def assert_one_clear_line(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """A non-zero exit, and on standard error one line that holds all the words; no traceback."""
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    for word in words:
        assert word in lines[0]


def test_a_sentence(model: Cluster) -> None:
    ended = cli(model, TAXI)
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert "taxi" in ended.stdout
    assert "plane" in ended.stdout or "flight" in ended.stdout
    assert ended.stdout.count("\n") == 1


def test_protected_spans_come_out_byte_for_byte(model: Cluster) -> None:
    text = (
        "<@123456789> schau mal in <#42> <:party_blob:987>: um <t:1700000000:R> treffen wir uns, "
        "siehe https://example.org/a?b=c#d und tippe `rm -rf` 🍕"
    )
    spans = (
        "<@123456789>",
        "<#42>",
        "<:party_blob:987>",
        "<t:1700000000:R>",
        "https://example.org/a?b=c#d",
        "`rm -rf`",
        "🍕",
    )
    ended = cli(model, text)
    assert ended.returncode == 0
    for span in spans:
        assert ended.stdout.count(span) == 1, ended.stdout


def test_json(model: Cluster) -> None:
    record = json.loads(cli(model, "--json", "Guten Morgen").stdout)
    assert record["text"] == "Guten Morgen"
    assert "morning" in record["translation"].lower()
    assert set(record) == {"route", "text", "translation", "model", "cached", "attempts", "took_ms"}
    assert json.loads(cli(model, "--json", "Guten Morgen").stdout)["cached"] is True


def test_standard_input_line_by_line(echo: Cluster) -> None:
    ended = subprocess.run(
        [sys.executable, "gateway_cli.py", "--broker", echo.address],
        input=b"eins\n\n  zwei \r\ndrei", cwd=HOUSE, env=echo.environment, capture_output=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.decode()) == (0, "eins\n\n  zwei \ndrei\n")


def test_standard_input_from_a_file_and_from_a_pipe_that_stays_open(echo: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("eins\nzwei\n")
    arguments = [sys.executable, "gateway_cli.py", "--broker", echo.address]
    with (tmp_path / "in").open() as file:
        ended = subprocess.run(
            arguments, stdin=file, cwd=HOUSE, env=echo.environment, capture_output=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stdout) == (0, b"eins\nzwei\n")
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HOUSE, env=echo.environment
    ) as talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        for word in (b"eins\n", b"zwei\n"):
            talk.stdin.write(word)
            talk.stdin.flush()
            assert talk.stdout.readline() == word  # an answer before the next question
        talk.stdin.close()
        assert talk.wait(30) == 0


def test_files_keep_their_order_and_their_blank_lines(echo: Cluster, tmp_path: Path) -> None:
    lines = [f"Zeile {n}" if n % 7 else "" for n in range(3000)]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    ended = cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"))
    assert (ended.returncode, ended.stderr) == (0, f"3000 lines, {tmp_path}/out.txt\n")
    assert (tmp_path / "out.txt").read_text().splitlines() == lines
    assert sorted(path.name for path in tmp_path.glob("*.txt*")) == ["in.txt", "out.txt"]
    again = cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"))
    assert_one_clear_line(again, "out.txt exists", "--overwrite")
    assert (
        cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"), "--overwrite").returncode == 0
    )


def test_a_run_goes_on_after_ctrl_c(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broker()
    cluster.node("one", "--engine", "echo", "--max-workers", "1")
    cluster.wait_ready(1, 1)
    lines = [f"Zeile {n}" for n in range(60_000)]
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    out = tmp_path / "out.txt"
    arguments = ("gateway_cli.py", "--broker", cluster.address, "--file", str(tmp_path / "in.txt"), "--out", str(out))
    run = cluster.start("gateway", *arguments)
    wait_until(lambda: out.exists() and out.stat().st_size > 20_000, 30, "some lines")
    run.send_signal(signal.SIGINT)
    assert run.wait(20) == 130
    assert cluster.log("gateway").splitlines()[-1] == "interrupted: run the same command again to go on"
    written = out.read_bytes().count(b"\n")
    assert 0 < written < len(lines)
    ended = command(*arguments, cluster=cluster)
    assert ended.returncode == 0
    assert ended.stderr.startswith(f"going on behind line {written} of 60000")
    assert out.read_text().splitlines() == lines


def test_lines_that_fail_are_named_and_the_exit_says_so(echo: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("gut\n" + "x" * 30_000 + "\nauch gut\n")
    ended = cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"))
    assert ended.returncode == 1
    assert "line 2: the text has 30000 characters" in ended.stderr
    assert "1 line not translated: 2" in ended.stderr
    assert (tmp_path / "out.txt").read_text() == "gut\n\nauch gut\n"


def test_an_output_that_cannot_be_written_ends_the_run(echo: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"Zeile {n}\n" for n in range(20_000)))
    arguments = [sys.executable, "gateway_cli.py", "--broker", echo.address, "--file", str(tmp_path / "in.txt")]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            arguments, stdout=full, stderr=subprocess.PIPE, text=True, cwd=HOUSE, env=echo.environment, timeout=60,
            check=False,
        )  # fmt: skip
    assert_one_clear_line(ended, "cannot write the output", "No space left")
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HOUSE, env=echo.environment
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"Zeile 0\n"
        run.stdout.close()
        assert run.wait(30) == 1
        assert run.stderr.read() == b""


def test_an_output_of_another_input_is_not_spoilt(echo: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("eins\n")
    (tmp_path / "out.txt").write_text("half")
    (tmp_path / "out.txt.progress").write_text('{"run_id": "x", "source": "another", "failed": []}')
    ended = cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"))
    assert_one_clear_line(ended, "begun from another input")
    assert (tmp_path / "out.txt").read_text() == "half"


def test_status(echo: Cluster) -> None:
    shown = cli(echo, "--status")
    assert shown.returncode == 0
    assert "node     one: ready, 1 worker," in shown.stdout
    assert json.loads(cli(echo, "--status", "--json").stdout)["nodes"][0]["name"] == "one"


def test_waiting_says_ready(echo: Cluster) -> None:
    ended = cli(echo, "--wait", "20")
    assert ended.returncode == 0
    assert ended.stdout.startswith("dolmetsch is ready: de→en, 1 node, 1 worker. Now type:")


def test_requeue_dead_letters(echo: Cluster) -> None:
    assert cli(echo, "--requeue-dead").stdout == "0 dead letters requeued\n"


# ---- what can go wrong ----


def test_empty_text(echo: Cluster) -> None:
    assert_one_clear_line(cli(echo, "  "), "no text")


def test_a_megabyte(echo: Cluster) -> None:
    text = ["x" * 100_000] * 10
    assert_one_clear_line(cli(echo, *text), "characters, more than 20000", "file")


def test_an_unknown_route(echo: Cluster) -> None:
    assert_one_clear_line(cli(echo, "--route", "it-en", "Ciao"), "no node offers it→en; there is de→en")
    assert_one_clear_line(cli(echo, "--route", "klingon", "nuqneH"), "cannot understand the route", "de→en")


def test_text_that_is_not_utf_8(echo: Cluster, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"gut\nM\xfcnchen\n")
    ended = cli(echo, "--file", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.txt"))
    assert_one_clear_line(ended, "line 2: not UTF-8 (byte 0xfc)", "iconv")
    assert not (tmp_path / "out.txt").exists()
    ended = subprocess.run(
        [sys.executable, "gateway_cli.py", "--broker", echo.address, b"M\xfcnchen"],
        cwd=HOUSE, env=echo.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert_one_clear_line(ended, "not UTF-8")
    ended = subprocess.run(
        [sys.executable, "gateway_cli.py", "--broker", echo.address],
        input=b"M\xfcnchen\n", cwd=HOUSE, env=echo.environment, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert b"standard input, line 1: not UTF-8" in ended.stderr


def test_a_file_that_is_not_there(echo: Cluster, tmp_path: Path) -> None:
    assert_one_clear_line(cli(echo, "--file", str(tmp_path / "none")), "cannot read", "No such file")


def test_no_broker_to_reach(cluster: Cluster) -> None:
    assert_one_clear_line(cli(cluster, "Hallo"), "no broker answered at tcp://127.0.0.1", "broker.py")


def test_a_node_with_no_broker_says_so_and_joins_when_there_is_one(cluster: Cluster) -> None:
    node = cluster.node("one", "--engine", "echo", "--max-workers", "1")
    wait_until(lambda: "does not answer" in cluster.log("one"), 30, "the node says what is missing")
    assert node.poll() is None
    cluster.broker()
    cluster.wait_ready(1)
    assert cluster.log("one").count("does not answer") == 1


def test_an_address_that_is_none(cluster: Cluster) -> None:
    for program in ("gateway_cli.py", "node.py"):
        arguments = (program, "--broker", "http://host/path", *(["Hallo"] if program == "gateway_cli.py" else []))
        assert_one_clear_line(command(*arguments, cluster=cluster), "cannot understand the address")


def test_a_port_in_use(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broker()
    cluster.wait_listening()
    ended = command("broker.py", "--bind", cluster.address, "--ledger", str(tmp_path / "other"), cluster=cluster)
    assert_one_clear_line(ended, "is in use", "--bind")
    ended = command(
        "broker.py", "--bind", f"tcp://127.0.0.1:{free_port()}", "--ledger", str(cluster.ledger), cluster=cluster
    )
    assert_one_clear_line(ended, "in use by another broker", "--ledger")


def test_nothing_is_sent_in_the_clear_beyond_this_computer(cluster: Cluster) -> None:
    for program in (("gateway_cli.py", "Hallo"), ("node.py",)):
        ended = command(*program, "--broker", "tcp://192.0.2.1", cluster=cluster)
        assert_one_clear_line(ended, "the key of the broker at tcp://192.0.2.1:5570 is not known here", "--join")


def test_a_broken_package(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "models")
    weights = tmp_path / "models" / GERMAN.name / "model" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    ended = command(
        "node.py", "--broker", cluster.address, "--packages", str(tmp_path / "models"), cluster=cluster, timeout_s=60
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert GERMAN.name in ended.stderr.splitlines()[-1]


def test_no_package_at_all(cluster: Cluster, tmp_path: Path) -> None:
    ended = command("node.py", "--broker", cluster.address, "--packages", str(tmp_path), cluster=cluster)
    assert ended.returncode == 1
    assert "package" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("protocol", [b"dolm1", b"dolm2"])
@pytest.mark.parametrize("program", ["gateway_cli.py", "node.py"])
def test_another_version_of_the_wire(cluster: Cluster, program: str, protocol: bytes) -> None:
    """A broker of another version refuses in words of ours, or in its own, which only its first frame tells."""
    more = ("Hallo",) if program == "gateway_cli.py" else ("--engine", "echo", "--max-workers", "1")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    future = context.socket(zmq.ROUTER)
    try:
        future.bind(cluster.address)
        run = cluster.start("program", program, "--broker", cluster.address, *more)
        assert future.poll(10_000)
        peer, *frames = future.recv_multipart()
        assert decode(frames)
        _, kind, body = encode(Error(code="wrong_version", detail="this side speaks protocol dolm2"))
        future.send_multipart([peer, protocol, kind, body])
        assert run.wait(20) == 1
        assert "this side speaks protocol dolm" in cluster.log("program").splitlines()[-1]
        assert "Traceback" not in cluster.log("program")
    finally:
        future.close(0)
        context.term()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[pool]\nmin_workers = 0\n", ("pool.min_workers", "expected `int` >= 1")),
        ("[pool]\nmin_worker = 1\n", ("unknown field `min_worker`",)),
        ("[engine\n", ("not valid TOML",)),
        ("pool = 3\n", ("must be a table",)),
    ],
)
def test_a_configuration_that_cannot_be_used(cluster: Cluster, tmp_path: Path, content: str, words: tuple[str]) -> None:
    (tmp_path / "c.toml").write_text(content)
    ended = command("node.py", "--config", str(tmp_path / "c.toml"), cluster=cluster)
    assert_one_clear_line(ended, "c.toml", *words)


def test_configuration_comes_from_file_then_environment_then_flags(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[pool]\nmin_workers = 2\nmax_workers = 3\ncores = [0]\nidle_s = 5\n")
    cluster.environment |= {"DOLMETSCH_POOL_MAX_WORKERS": "4", "MAX_CPU": "50", "DOLMETSCH_POOL_IDLE_S": "6.5"}
    ended = command(
        "node.py", "--config", str(tmp_path / "c.toml"), "--max-workers", "5", "--show-config", cluster=cluster
    )
    assert ended.returncode == 0
    for line in ("min_workers = 2 ", "max_workers = 5 ", "max_cpu = 50.0 ", "idle_s = 6.5 ", "cores = [0] "):
        assert line in ended.stdout
    cluster.environment["MAX_RAM"] = "much"
    ended = command("node.py", "--show-config", cluster=cluster)
    assert_one_clear_line(ended, "the environment: pool.max_ram")


def test_a_core_that_is_not_there(cluster: Cluster) -> None:
    assert_one_clear_line(command("node.py", "--cores", "4000", cluster=cluster), "may not use core 4000")


def test_programs_find_their_environment_by_themselves(tmp_path: Path) -> None:
    bare = [
        sys.executable,
        "-S",
        "-c",
        "import sys; sys.argv = ['x']; from dolmetsch.bootstrap import in_venv; in_venv()",
    ]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HOUSE)}
    shutil.copytree(HOUSE / "dolmetsch", tmp_path / "dolmetsch", ignore=shutil.ignore_patterns("__pycache__"))
    environment["PYTHONPATH"] = str(tmp_path)
    ended = subprocess.run(bare, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert_one_clear_line(ended, "make env")


def test_ctrl_c_while_a_program_imports_leaves_no_traceback() -> None:
    first = "from dolmetsch.bootstrap import in_venv; in_venv(); "
    ended, failed = (
        subprocess.run(
            [sys.executable, "-c", f"{first} raise {what}"], cwd=HOUSE, capture_output=True, timeout=30, check=False
        )
        for what in ("KeyboardInterrupt", "ValueError")
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
    assert failed.returncode == 1 and failed.stderr.endswith(b"ValueError\n")
