"""A computer with a Pi's processor for a while: Debian for aarch64 under qemu, in namespaces that end with it.

    with Computer(root_file_system("bookworm")) as pi:
        pi.run("uname", "-m").stdout                        # aarch64; as root, without this computer's environment
        program = pi.start("broker", "python3", "broker.py")  # as the user dolmetsch, until pi.end("broker")

It has a network of its own with loopback alone, and starts from the same bare files each time: what is written goes to
memory. Its first process ends when this one does, however that was; with it end all others, and the mounts. The kernel
is this computer's, and so are its memory and clock.

Needs root and the Debian packages in ``NEEDS``. The root file system is made once by debootstrap and kept in
``$XDG_CACHE_HOME`` or /var/cache. ``DOLMETSCH_DEBIAN_MIRROR`` names another mirror. One at a time: others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.deploy.commands import HostError, run

NEEDS: Final = {  # program: the Debian package that has it
    "qemu-aarch64-static": "qemu-user-static",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
}
PACKAGES: Final = ("python3",)  # beside what every Debian has: what install.sh may count on
SEARCH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER: Final = "dolmetsch"
HOME: Final = "/var/lib/dolmetsch"
# Run in the new root file system.
FINISH: Final = f"""
set -e
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
useradd --system --home-dir {HOME} --create-home --shell /usr/sbin/nologin {USER}
"""
FIRST_STAGE_S: Final = 900.0  # mostly the download
SECOND_STAGE_S: Final = 1800.0  # a processor that is emulated unpacks and configures a hundred packages
START_S: Final = 30.0
END_S: Final = 60.0  # emulated programs end as slowly as they do everything
MEMORY: Final = "3g"  # at most, of what is written there
LOCK: Final = Path("/run/dolmetsch-aarch64.lock")  # the handler below is the whole computer's

HANDLERS: Final = Path("/proc/sys/fs/binfmt_misc")
RULE: Final = "dolmetsch-aarch64"
MAGIC: Final = bytes.fromhex("7f454c460201010000000000000000000200b700")  # 64-bit, little-endian, a program, AArch64
MASK: Final = bytes.fromhex("ffffffffffffff00fffffffffffffffffeffffff")  # any ABI, and shared objects too
# The first process there. It waits for its standard input to end, which also happens when whoever started it dies.
FIRST: Final = f"""
set -e
base=$1 room=$2 rule=$3 handlers={HANDLERS}
[ -e $handlers/status ] || mount -t binfmt_misc binfmt_misc $handlers
if [ -n "$rule" ]; then
    [ ! -e $handlers/{RULE} ] || echo -1 > $handlers/{RULE}
    trap 'echo -1 > $handlers/{RULE}' EXIT
    printf %s "$rule" > $handlers/register
fi
if [ -n "$room" ]; then
    mount -t tmpfs -o mode=755,size={MEMORY} tmpfs "$room"
    mkdir "$room/top" "$room/work" "$room/root"
    mount -t overlay overlay -o "lowerdir=$base,upperdir=$room/top,workdir=$room/work" "$room/root"
    root=$room/root
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
else
    root=$base
fi
mount -t proc proc "$root/proc"
ip link set lo up
echo up
cat > /dev/null
"""


def missing() -> str:
    """What this computer lacks for emulation, as a sentence; empty when nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "an emulated computer is made of mounts and namespaces: this needs Linux and root"
    packages = sorted({package for program, package in NEEDS.items() if shutil.which(program, path=SEARCH) is None})
    if packages:
        return f"on Debian: apt install {' '.join(packages)}"
    if "binfmt_misc" not in Path("/proc/filesystems").read_text() and not HANDLERS.exists():
        return "this kernel cannot hand programs to an emulator: it lacks binfmt_misc"
    try:
        run("unshare", "--mount", "--pid", "--fork", "--net", "true")
    except HostError:
        return "this system gives out no namespaces"
    return ""


# ---- the root file system ----


def cache() -> Path:
    """The folder for what is made once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "dolmetsch-aarch64"


def root_file_system(suite: str) -> Path:
    """The folder with a bare Debian ``suite`` for aarch64, made now if it is not there. Raises ``HostError``."""
    recipe = "\n".join((suite, *PACKAGES, FINISH))
    folder = cache() / f"{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder, suite)
    return folder


def _build(folder: Path, suite: str) -> None:
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    mirror = os.environ.get("DOLMETSCH_DEBIAN_MIRROR", "")  # without one, debootstrap's own
    words = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    print(f"making the root file system {folder} (once, some minutes)", file=sys.stderr, flush=True)
    try:
        run("debootstrap", *words, suite, half, *filter(None, [mirror]), timeout_s=FIRST_STAGE_S)
        with Computer(half, keep=True) as computer:
            computer.run("/debootstrap/debootstrap", "--second-stage", timeout_s=SECOND_STAGE_S)
            computer.run("/bin/sh", "-c", FINISH)
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


# ---- the computer ----


def _rule() -> str:
    """What to tell the kernel so that it hands aarch64's programs to qemu; empty when it does already.

    The F opens qemu now, in our root file system: the other one has none. The P keeps the name a program is called by.
    """
    for handler in HANDLERS.glob("*") if HANDLERS.is_dir() else ():  # looking mounts it, where systemd does that
        lines = [] if handler.name in ("register", "status", RULE) else handler.read_text().splitlines()
        flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
        if "enabled" in lines and f"magic {MAGIC.hex()}" in lines and "F" in flags:
            return ""
    escaped = ["".join(f"\\x{byte:02x}" for byte in part) for part in (MAGIC, MASK)]
    return f":{RULE}:M::{escaped[0]}:{escaped[1]}:{shutil.which('qemu-aarch64-static', path=SEARCH)}:PF"


class Computer:
    """One emulated computer above the files in ``base``, which stay as they are unless ``keep`` says otherwise."""

    def __init__(self, base: Path, keep: bool = False) -> None:
        self._base = base
        self._room = None if keep else cache() / "room"
        self._root = base if self._room is None else self._room / "root"
        self._programs: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        self._lock: IO[str] = LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._begin()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _begin(self) -> None:
        room = ""
        if self._room is not None:
            self._room.mkdir(exist_ok=True)
            room = str(self._room)
        namespaces = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--net"]
        first = ["sh", "-c", FIRST, "sh", str(self._base), room, _rule()]
        self._holder = subprocess.Popen(
            ["unshare", *namespaces, *first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": SEARCH},
            pass_fds=[self._lock.fileno()],  # nobody else begins before all of this has ended, even if we are killed
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        assert self._holder.stdout is not None
        readable, _, _ = select.select([self._holder.stdout], [], [], START_S)
        said = self._holder.stdout.readline() if readable else f"nothing within {START_S:g} s"
        if said != "up\n":
            self._close()
            raise HostError(f"the emulated computer does not start: {said}")
        own = self._holder.pid
        self._pid = int(Path(f"/proc/{own}/task/{own}/children").read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        for program in self._programs.values():
            program.wait(END_S)
        self._lock.close()

    def _close(self) -> None:
        """Let the first process end, and with it all that is there."""
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()
        try:
            self._holder.wait(START_S)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait(START_S)
        self._holder.stdout.close()

    @property
    def root(self) -> Path:
        """Where its files are, as this computer's processes see them."""
        return Path(f"/proc/{self._pid}/root{self._root}")

    def _enter(self, words: tuple[str, ...], user: str, environment: Mapping[str, str]) -> list[str]:
        """The command line that runs ``words`` there."""
        switch = ["runuser", "-u", user, "--"] if user != "root" else []
        home = HOME if user == USER else "/root"
        known = {"PATH": SEARCH, "LANG": "C.UTF-8", "HOME": home, **environment}
        return [
            *("nsenter", f"--target={self._pid}", "--mount", "--pid", "--net", "chroot", str(self._root), *switch),
            *("env", "-i", *(f"{name}={value}" for name, value in known.items()), *words),
        ]

    def run(
        self, *words: str, user: str = "root", timeout_s: float = 60.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end, which must be a good one. Raises ``HostError`` with what it said."""
        return run(*self._enter(words, user, environment), timeout_s=timeout_s)

    def start(self, name: str, *words: str, **environment: str) -> None:
        """Start a program there as ``USER``; its log is /tmp/NAME.log."""
        script = 'echo $$ > "/tmp/$0.pid"; exec "$@" > "/tmp/$0.log" 2>&1'
        line = self._enter(("sh", "-c", script, name, *words), USER, environment)
        self._programs[name] = subprocess.Popen(line, stdin=subprocess.DEVNULL, text=True)

    def log(self, name: str) -> str:
        """What a program has said so far; empty when it has not begun to."""
        path = self.root / f"tmp/{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def has_ended(self, name: str) -> bool:
        """Whether a program that was started has ended by itself."""
        return self._programs[name].poll() is not None

    def end(self, name: str) -> int:
        """End a program as a person would (SIGTERM); its exit status. Raises ``HostError``."""
        program = self._programs[name]
        self.run("sh", "-c", 'kill -TERM "$(cat "/tmp/$0.pid")"', name)
        try:
            return program.wait(END_S)
        except subprocess.TimeoutExpired:
            raise HostError(f"{name} does not end within {END_S:g} s:\n{self.log(name)[-2000:]}") from None
