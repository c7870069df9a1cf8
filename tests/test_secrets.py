"""Secrets and texts stay where they belong: none in logs, lists of processes and core files, nor on disk afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from bench.cluster import HOUSE, Cluster, free_port
from dolmetsch import keys
from gateway_discord import _complain
from tests.conftest import wait_until
from tests.test_gate import ECHO, Computer, Owner

TEXT = "Brombeerhecke hinter dem Haus"
REFUSED_TEXT = "Stachelbeerstrauch"
DISCORD_TOKEN = "MTEwMDAwMDAwMDAwMDAwMDAwMA.GhIjKl.mnopqrstuvwxyzABCDEFGHIJKLMNOPQR"
DASHBOARD_TOKEN = "stapler-quilt-basalt-ferret-51"
TOKENS = {"DISCORD_TOKEN": DISCORD_TOKEN, "DASHBOARD_TOKEN": DASHBOARD_TOKEN}
# What gives a token away is its last part; the first is the application's number.
SPOKEN = (DISCORD_TOKEN.split(".")[2], DASHBOARD_TOKEN)
NOWHERE = "http://127.0.0.1:9"


def family(program: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A program and all that it started."""
    one = psutil.Process(program.pid)
    return [one, *one.children(recursive=True)]


def command_lines(program: subprocess.Popen[bytes]) -> bytes:
    """What everybody on the computer can read of it and its children."""
    return b"\n".join(Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in family(program))


def secret_keys(folder: Path) -> list[str]:
    """The secret half of every pair under ``folder``."""
    pairs = [keys.pair_at(path, make=False) for path in folder.rglob(f"*{keys.SUFFIX}")]
    assert pairs
    return [pair.secret.decode() for pair in pairs]


@contextlib.contextmanager
def cores_wanted() -> Iterator[None]:
    """What is started in here may leave a core, for all its parent minds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


class Scene(NamedTuple):
    """Every program at work, each with its secrets, after some texts."""

    cluster: Cluster
    owner: Owner
    invitation: str
    api_key: str
    secrets: list[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Cluster(tmp_path_factory.mktemp("secrets")) as cluster, cores_wanted():
        cluster.environment |= {**TOKENS, "PYTHONFAULTHANDLER": "1", "DISCORD_API": NOWHERE}
        cluster.environment |= {"DOLMETSCH_HTTP_REQUIRE_KEY": "true", "DOLMETSCH_HTTP_DEADLINE_S": "5"}
        owner = Owner(cluster)
        owner.start()
        invitation = owner.invite()
        pi = Computer(cluster, "pi4")
        pi.node("--join", invitation)
        pi.says("joined")
        api_key = owner.run("gateway_http.py", "keys", "add", "anna").stdout.strip()
        http, page = free_port(), free_port()
        here = ("--broker", cluster.address)
        cluster.start("http", "gateway_http.py", *here, "--listen", f"127.0.0.1:{http}")
        cluster.start("dashboard", "-m", "dashboard", *here, "--listen", f"127.0.0.1:{page}", "--env", "/dev/null")
        cluster.start("discord", "gateway_discord.py", *here, "--env", "/dev/null")
        for name, words in (("http", "listening"), ("dashboard", "actions need"), ("discord", "cannot be reached")):
            wait_until(lambda name=name, words=words: words in cluster.log(name), 30, f"{name} is up")  # type: ignore[misc]
        assert translate(http, TEXT, api_key) == (200, TEXT)
        assert translate(http, TEXT, "no-such-key")[0] == 403
        asked = owner.ask("--route", "de→xx", REFUSED_TEXT)  # nobody can translate this
        assert asked.returncode == 1, asked.stdout
        assert owner.ask(TEXT).stdout == f"{TEXT}\n"
        secrets = [*SPOKEN, invitation, api_key, *secret_keys(cluster.folder)]
        yield Scene(cluster, owner, invitation, api_key, secrets)


def translate(port: int, text: str, api_key: str) -> tuple[int, str]:
    body = json.dumps({"q": text, "source": "de", "target": "en", "api_key": api_key}).encode()
    where = f"http://127.0.0.1:{port}/translate"
    request = urllib.request.Request(where, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, json.load(reply)["translatedText"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# ---- all programs at work ----


def test_no_secret_is_in_the_list_of_processes(scene: Scene) -> None:
    for name, program in scene.cluster.programs.items():
        shown = command_lines(program)
        assert b"python" in shown, name
        for secret in (*scene.secrets, TEXT, REFUSED_TEXT):
            assert secret.encode() not in shown, name


def test_no_process_may_leave_a_core(scene: Scene) -> None:
    for name, program in scene.cluster.programs.items():
        for one in family(program):
            assert one.rlimit(psutil.RLIMIT_CORE)[0] in (0, 1), f"{name}: {one.cmdline()}"
    assert len(family(scene.cluster.programs["pi4"])) > 1


def test_a_killed_child_and_a_lost_broker_say_no_secret(scene: Scene) -> None:
    cluster = scene.cluster
    child = family(cluster.programs["pi4"])[1]
    child.send_signal(signal.SIGABRT)  # with faulthandler on, as of its environment: it shows where, not what
    wait_until(lambda: "Fatal Python error: Aborted" in cluster.log("pi4"), 20, "the child's last words")
    cluster.kill("broker")
    wait_until(lambda: "does not answer" in cluster.log("pi4"), 30, "the node misses the broker")
    scene.owner.start()
    wait_until(lambda: cluster.log("pi4").count("joined") == 2, 40, "the node is back")
    assert scene.owner.ask(TEXT).stdout == f"{TEXT}\n"
    for log in cluster.folder.glob("*.log"):
        for secret in (*scene.secrets, TEXT, REFUSED_TEXT):
            assert secret not in log.read_text(errors="replace"), log.name


def test_what_is_left_on_disk(scene: Scene) -> None:
    """The last one, as it ends the programs. Only key files have secrets in them; no file has a text."""
    cluster = scene.cluster
    wait_until(lambda: " 0 undelivered" in scene.owner.ask("--status").stdout, 20, "all results were acked")
    for name in list(cluster.programs):
        assert cluster.end(name) == 0, cluster.log(name)
    files = {path for path in cluster.folder.rglob("*") if path.is_file()}
    names = {path.name for path in files}
    assert names >= {"ledger.sqlite3", "http.sqlite3", "history.sqlite3", "discord.sqlite3", "known_brokers"}
    for path in files:
        content = path.read_bytes()
        for secret in (*scene.secrets, TEXT, REFUSED_TEXT):
            own = path.suffix == keys.SUFFIX and secret == keys.pair_at(path, make=False).secret.decode()
            assert own or secret.encode() not in content, path.name
        if not content or path.suffix in (".log", ".lock"):
            continue
        assert path.name in ("known_brokers",) or path.stat().st_mode & 0o077 == 0, f"{path.name} is open to others"


# ---- starts that fail ----


def run(cluster: Cluster, *arguments: str, given: str = "", within_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=HOUSE, env=cluster.environment, input=given, capture_output=True, text=True,
        timeout=within_s, check=False,
    )  # fmt: skip


PROGRAMS = ("broker.py", "node.py", "gateway_http.py", "gateway_discord.py", "-m dashboard", "gateway_cli.py")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("trouble", ["no TOML", "no such key", "wrong value", "wrong environment", "wrong key"])
def test_a_start_that_fails_says_no_secret(cluster: Cluster, tmp_path: Path, program: str, trouble: str) -> None:
    pair = keys.pair_at(tmp_path / f"other{keys.SUFFIX}", make=True)
    secret = pair.secret.decode()
    content = {
        "no TOML": f'[keys]\nbroker = "{secret}',
        "no such key": f'[keys]\nsecret = "{secret}"',
        "wrong value": f'[broker]\ndrain_s = "{secret}"\n[node]\ndrain_s = "{secret}"',
    }.get(trouble, "")
    (tmp_path / "c.toml").write_text(content)
    cluster.environment |= TOKENS
    if trouble == "wrong environment":
        cluster.environment["DOLMETSCH_NODE_DRAIN_S"] = secret
    if trouble == "wrong key":  # the line of a key file, where a public key belongs
        cluster.environment["DOLMETSCH_KEYS_BROKER"] = f'secret-key = "{secret}"'
    words = () if program != "broker.py" or trouble != "wrong key" else ("--bind", "nonsense")
    ended = run(cluster, *program.split(), "--config", str(tmp_path / "c.toml"), *words)
    assert ended.returncode == 1, ended.stderr
    said = ended.stdout + ended.stderr
    assert said.strip() and "Traceback" not in said
    for one in (*SPOKEN, secret, secret[:20]):
        assert one not in said


@pytest.mark.parametrize("token", ["two words of a token", DISCORD_TOKEN[5:], f"Bot {DISCORD_TOKEN}", "€" * 60])
def test_a_token_that_is_none_is_not_shown(cluster: Cluster, tmp_path: Path, token: str) -> None:
    (tmp_path / ".env").write_text(f"DISCORD_TOKEN={token}\nDASHBOARD_TOKEN=\n")
    cluster.environment["DISCORD_API"] = NOWHERE
    ended = run(cluster, "gateway_discord.py", "--env", str(tmp_path / ".env"))
    assert ended.returncode == 1 and "DISCORD_TOKEN" in ended.stderr
    assert token not in ended.stderr and token[-20:] not in ended.stderr


@pytest.mark.parametrize("program", ["node.py --join", "-m dolmetsch.enrol"])
def test_a_damaged_invitation_is_not_shown(cluster: Cluster, program: str) -> None:
    word = keys.Invitation("tcp://10.1.1.1:5570", "tcp://10.1.1.1:5572", b"x" * 40, os.urandom(16)).text()[:-3]
    ended = run(cluster, *program.split(), word)
    assert ended.returncode == 1 and "not an invitation" in ended.stderr
    assert word[20:40] not in ended.stderr


# ---- crashes ----

CRASHES = {
    "main": "raise ValueError(SECRET)",
    "thread": "import threading; t = threading.Thread(target=lambda: int(SECRET)); t.start(); t.join()",
    "destructor": "class A:\n    def __del__(self): raise ValueError(SECRET)\nA()",
    "task": "import asyncio, gc\nasync def fail(): raise ValueError(SECRET)\nasync def all():\n"
    "    t = asyncio.create_task(fail()); await asyncio.sleep(0); del t; gc.collect()\nasyncio.run(all())",
    "callback": "import asyncio\nasync def all():\n    asyncio.get_running_loop().call_soon(int, SECRET)\n"
    "    await asyncio.sleep(0.01)\nasyncio.run(all())",
}


@pytest.mark.parametrize("where", CRASHES)
def test_a_crash_is_one_line_without_the_message(where: str) -> None:
    code = f"from dolmetsch import logs\nlogs.start('program')\nSECRET = {TEXT!r}\n{CRASHES[where]}\n"
    ended = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, timeout=30)
    assert len(ended.stderr.splitlines()) == 1 and "ValueError at" in ended.stderr, ended.stderr
    assert TEXT not in ended.stderr and "Brombeer" not in ended.stderr


@pytest.mark.parametrize(
    "module", ["broker", "node", "gateway_cli", "gateway_http", "gateway_discord", "dashboard.__main__"]
)
def test_a_bug_in_a_program_says_no_secret(cluster: Cluster, module: str) -> None:
    code = (
        f"import sys, {module}\nmodule = sys.modules[{module!r}]\n"
        "def fail(*arguments, **named): raise ValueError(str((arguments, named)))\n"
        "module._serve = module._run = fail\n"
        f"sys.exit(module.main({[TEXT] if module == 'gateway_cli' else []!r}))\n"
    )
    cluster.environment |= TOKENS
    ended = run(cluster, "-c", code)
    assert ended.returncode == 1
    assert "ended by ValueError at" in ended.stderr and "Traceback" not in ended.stderr
    for secret in SPOKEN:
        assert secret not in ended.stdout + ended.stderr


def test_a_failed_callback_is_told_without_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_complain)
        loop.call_soon(int, TEXT)
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert "Exception in callback" in caplog.text and TEXT not in caplog.text


def dumps_core(program: subprocess.Popen[bytes]) -> bool:
    """Abort it; whether the kernel dumped it."""
    program.send_signal(signal.SIGABRT)
    _, status = os.waitpid(program.pid, 0)
    program.returncode = -signal.SIGABRT
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


def test_an_aborted_program_leaves_no_core(cluster: Cluster, tmp_path: Path) -> None:
    with cores_wanted():
        other = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"], cwd=tmp_path, stdin=-1, stdout=-1
        )
        cluster.environment |= TOKENS
        cluster.broker()
        cluster.node("one", *ECHO)
        cluster.wait_ready(1, 1)
    with other:
        assert other.stdout is not None and other.stdout.readline()
        if not dumps_core(other):
            pytest.skip("nothing leaves a core on this computer")
    for name in ("one", "broker"):
        assert not dumps_core(cluster.programs.pop(name)), name
    assert not list(HOUSE.glob("core*"))


# ---- invitations ----


def waiting(cluster: Cluster) -> tuple[Computer, str]:
    """A computer, and an invitation to a broker that is not there."""
    pair = keys.KeyPair(*keys.pair_at(cluster.folder / f"far{keys.SUFFIX}", make=True))
    door = f"tcp://127.0.0.1:{free_port()}"
    return Computer(cluster, "pi4"), keys.Invitation(door, door, pair.public, os.urandom(16)).text()


@pytest.mark.parametrize("words", [("--join", "{}"), ("--join={}",), ("--jo", "{}")])
def test_an_invitation_leaves_the_list_of_processes(cluster: Cluster, words: tuple[str, ...]) -> None:
    pi, invitation = waiting(cluster)
    program = pi.node(*(word.format(invitation) for word in words))
    started = program.pid
    pi.says("does not answer")
    shown = command_lines(program)
    assert invitation.encode() not in shown and words[0].split("=")[0].encode() in shown
    assert program.pid == started and program.poll() is None
    environment = Path(f"/proc/{program.pid}/environ").read_bytes()
    assert invitation.encode() not in environment
    assert cluster.end("pi4") == 0


def test_the_invitation_of_other_programs_leaves_it_too(cluster: Cluster) -> None:
    pi, invitation = waiting(cluster)
    cluster.environment = pi.environment
    program = cluster.start("pi4", "-m", "dolmetsch.enrol", invitation)
    pi.says("does not answer")
    assert invitation.encode() not in command_lines(program)


def test_an_invitation_is_read_from_standard_input(cluster: Cluster) -> None:
    owner = Owner(cluster)
    owner.start()
    pi = Computer(cluster, "pi4")
    cluster.environment = pi.environment
    for given, status, line in ((owner.invite(), 0, "let this computer in"), ("", 1, "not an invitation")):
        ended = run(cluster, "-m", "dolmetsch.enrol", "-", given=f"{given}\n" if given else "")
        assert ended.returncode == status and line in ended.stderr
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" -m dolmetsch.enrol "$1" <&-', sys.executable, owner.invite()],
        cwd=HOUSE, env=Computer(cluster, "pi5").environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert closed.returncode == 0, closed.stderr


def test_secrets_have_no_repr() -> None:
    pair = keys.KeyPair(b"p" * 40, b"s" * 40)
    shown = repr(
        [pair, keys.Credentials(pair, b"b" * 40), keys.Invitation("tcp://x:1", "tcp://x:3", b"k" * 40, b"t" * 16)]
    )
    assert "sss" not in shown and "ttt" not in shown


def test_what_is_secret_is_not_made_by_chance_that_can_be_guessed() -> None:
    """bandit's B311 is off: ``random`` is for pauses and the simulation."""
    for name in ("dolmetsch/keys", "dolmetsch/keyring", "dolmetsch/apikeys", "dashboard/guard", "deploy/keypairs"):
        assert "import random" not in (HOUSE / f"{name}.py").read_text(encoding="utf-8")
