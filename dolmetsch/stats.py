"""Measurements for heartbeats: the machine's load and health by psutil and sysfs, and the rate of work done.

Reading a sample never waits and never fails: what a board does not have is None.
"""

from __future__ import annotations

import contextlib
import math
import platform
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from dolmetsch import __version__
from dolmetsch.reports import About

MAX_WORDS: Final = 120  # characters of what a machine calls itself
TEMPERATURE_CHIPS: Final = (
    "cpu_thermal",
    "coretemp",
    "k10temp",
)  # Raspberry Pi, Intel, AMD; the first found counts
RATE_WINDOW_S: Final = 30.0  # of work: a rate forgets what is older

# The firmware's throttle word, as `vcgencmd get_throttled` prints it (Raspberry Pi documentation,
# "vcgencmd"): bits 0-3 are now, the same bits plus 16 have happened since boot.
UNDER_VOLTAGE: Final = 1 << 0
FREQUENCY_CAPPED: Final = 1 << 1
THROTTLED: Final = 1 << 2
SOFT_TEMPERATURE_LIMIT: Final = 1 << 3
SLOWED: Final = FREQUENCY_CAPPED | THROTTLED | SOFT_TEMPERATURE_LIMIT


@dataclass(frozen=True, slots=True)
class HostStats:
    """The machine at one moment. Percentages are 0 to 100; ``core_percent`` is indexed by core.

    ``throttled``: the firmware slows the CPU right now, for heat or for want of power; ``under_voltage``: the
    supply is too weak right now.
    """

    cpu_percent: float
    core_percent: tuple[float, ...]
    ram_percent: float
    ram_total_bytes: int
    ram_used_bytes: int
    ram_available_bytes: int
    temperature_c: float | None
    throttled: bool | None
    under_voltage: bool | None
    load1: float
    cpu_mhz: float | None


class Sampler:
    """Takes samples; CPU percentages are over the time since the sample before, and 0 in the first one.

    ``sysfs`` is where sysfs is mounted.
    """

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs
        self._throttle_file: Path | None = None
        self._voltage_file: Path | None = None
        self._searched = False

    def sample(self) -> HostStats:
        """Measure now; takes well under 5 ms."""
        if not self._searched:
            self._search()
        cores = tuple(psutil.cpu_percent(interval=None, percpu=True))
        ram = psutil.virtual_memory()
        throttled, under_voltage = self._power()
        return HostStats(
            cpu_percent=sum(cores) / len(cores) if cores else 0.0,
            core_percent=cores,
            ram_percent=ram.percent,
            ram_total_bytes=ram.total,
            ram_used_bytes=ram.used,
            ram_available_bytes=ram.available,
            temperature_c=_temperature_c(),
            throttled=throttled,
            under_voltage=under_voltage,
            load1=psutil.getloadavg()[0],
            cpu_mhz=_cpu_mhz(),
        )

    def _search(self) -> None:
        """Find the board's files once; their numbers do not change while it runs."""
        self._searched = True
        # The Raspberry Pi kernel's firmware driver; the node is called soc@107c000000 on a Pi 5, soc on those
        # before.
        found = sorted(self._sysfs.glob("devices/platform/soc*/soc*:firmware/get_throttled"))
        self._throttle_file = found[0] if found else None
        # The mainline kernel has only the under-voltage bit, as the hwmon chip rpi_volt
        # (drivers/hwmon/raspberrypi-hwmon.c).
        for name in sorted(self._sysfs.glob("class/hwmon/hwmon*/name")):
            if _read(name) == "rpi_volt":
                self._voltage_file = name.with_name("in0_lcrit_alarm")

    def _power(self) -> tuple[bool | None, bool | None]:
        """Return whether the CPU is slowed down, and whether the supply is too weak."""
        word = _number(self._throttle_file, 16)
        if word is not None:
            return bool(word & SLOWED), bool(word & UNDER_VOLTAGE)
        alarm = _number(self._voltage_file, 10)
        return None, None if alarm is None else bool(alarm)


def about_machine() -> About:
    """What this machine is; for how long it has been up is as of now. Takes a few ms, and never fails."""
    board = _read(Path("/proc/device-tree/model")) or _read(Path("/sys/class/dmi/id/product_name")) or ""
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return About(
        host=socket.gethostname(),
        board=board.strip("\0 \n")[:MAX_WORDS],
        system=f"{system or platform.system()}, Linux {platform.release()}, {platform.machine()}"[:MAX_WORDS],
        version=f"{__version__}, Python {platform.python_version()}",
        cores=psutil.cpu_count() or 0,
        ram_bytes=psutil.virtual_memory().total,
        up_s=max(0.0, time.time() - psutil.boot_time()),
    )


class ProcessStats(NamedTuple):
    """One process at one moment; ``cpu_percent`` is of one core, since the sample before."""

    cpu_percent: float
    rss_bytes: int


class ProcessSampler:
    """Takes samples of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent(None)
        self._last = ProcessStats(0.0, self._process.memory_info().rss)

    def sample(self) -> ProcessStats:
        """Measure now; takes some 0.1 ms. What was measured last, while a process has no file descriptor left."""
        with contextlib.suppress(OSError), self._process.oneshot():
            self._last = ProcessStats(self._process.cpu_percent(None), self._process.memory_info().rss)
        return self._last


class Rate:
    """What gets done in a second of work: a mean that forgets with work done, not with time gone by."""

    def __init__(self) -> None:
        self._busy_s = self._chars = self._jobs = 0.0

    def add(self, busy_s: float, chars: float, jobs: int) -> None:
        """Count what was done in the last ``busy_s`` seconds of work."""
        kept = math.exp(-busy_s / RATE_WINDOW_S)
        self._busy_s = self._busy_s * kept + busy_s
        self._chars = self._chars * kept + chars
        self._jobs = self._jobs * kept + jobs

    @property
    def chars_per_s(self) -> float:
        """Characters in a second of work; 0.0 before any was measured."""
        return self._chars / self._busy_s if self._busy_s > 0 else 0.0

    @property
    def jobs_per_s(self) -> float:
        """Jobs in a second of work; 0.0 before any was measured."""
        return self._jobs / self._busy_s if self._busy_s > 0 else 0.0


def _temperature_c() -> float | None:
    try:
        chips = psutil.sensors_temperatures()
    except (
        AttributeError,
        OSError,
        ValueError,
    ):  # no such call on this platform, or a sensor that cannot be read
        return None
    for chip in TEMPERATURE_CHIPS:
        readings = [reading.current for reading in chips.get(chip, ())]
        if readings:
            return max(readings)
    return None


def _cpu_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, NotImplementedError, OSError, ValueError):
        return None
    return frequency.current if frequency is not None else None


def _number(path: Path | None, base: int) -> int | None:
    text = _read(path) if path is not None else None
    try:
        return int(text, base) if text is not None else None
    except ValueError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
