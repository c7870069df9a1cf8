"""Measurements of the machine, rates, and the life cycle: signals, sd_notify, the watchdog."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from dolmetsch.lifecycle import Signals, sd_notify, watchdog_interval_s
from dolmetsch.stats import RATE_WINDOW_S, Rate, Sampler

PI_4 = "devices/platform/soc/soc:firmware"
PI_5 = "devices/platform/soc@107c000000/soc@107c000000:firmware"

Temperature = namedtuple("Temperature", "label current high critical")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_samples_this_machine() -> None:
    sampler = Sampler()
    sampler.sample()
    stats = sampler.sample()
    assert len(stats.core_percent) == psutil.cpu_count()
    assert all(0.0 <= percent <= 100.0 for percent in (*stats.core_percent, stats.cpu_percent, stats.ram_percent))
    assert 0 < stats.ram_used_bytes < stats.ram_total_bytes and stats.ram_available_bytes < stats.ram_total_bytes
    assert stats.load1 >= 0.0


@pytest.mark.parametrize("place", [PI_4, PI_5])
@pytest.mark.parametrize(
    ("word", "throttled", "under_voltage"),
    [
        ("0", False, False),
        ("50005", True, True),
        ("50000", False, False),  # it has happened, but is over
        ("0x1", False, True),
        ("2", True, False),
        ("4", True, False),
        ("80008", True, False),
        ("", None, None),
        ("nonsense", None, None),
    ],
)
def test_reads_the_throttle_word(
    tmp_path: Path, place: str, word: str, throttled: bool | None, under_voltage: bool | None
) -> None:
    write(tmp_path / place / "get_throttled", f"{word}\n")
    stats = Sampler(tmp_path).sample()
    assert (stats.throttled, stats.under_voltage) == (throttled, under_voltage)


def test_the_throttle_word_is_read_anew(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path)
    write(tmp_path / PI_4 / "get_throttled", "0\n")
    assert sampler.sample().throttled is False
    write(tmp_path / PI_4 / "get_throttled", "4\n")
    assert sampler.sample().throttled is True
    (tmp_path / PI_4 / "get_throttled").unlink()
    assert sampler.sample().throttled is None


@pytest.mark.parametrize(("alarm", "under_voltage"), [("1", True), ("0", False), ("?", None)])
def test_a_mainline_kernel_tells_under_voltage_only(tmp_path: Path, alarm: str, under_voltage: bool | None) -> None:
    write(tmp_path / "class/hwmon/hwmon0/name", "cpu_thermal\n")
    write(tmp_path / "class/hwmon/hwmon1/name", "rpi_volt\n")
    write(tmp_path / "class/hwmon/hwmon1/in0_lcrit_alarm", f"{alarm}\n")
    stats = Sampler(tmp_path).sample()
    assert (stats.throttled, stats.under_voltage) == (None, under_voltage)


def test_the_hottest_sensor_of_the_best_chip_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chips = {
        "nvme": [Temperature("", 80.0, None, None)],
        "k10temp": [Temperature("", 70.0, None, None)],
        "coretemp": [Temperature("0", 51.5, None, None), Temperature("1", 53.0, None, None)],
        "cpu_thermal": [],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips)
    assert Sampler(tmp_path).sample().temperature_c == 53.0
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"nvme": chips["nvme"]})
    assert Sampler(tmp_path).sample().temperature_c is None


def test_missing_sensors_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreadable() -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(psutil, "sensors_temperatures", unreadable)
    monkeypatch.setattr(psutil, "cpu_freq", unreadable)
    stats = Sampler(tmp_path).sample()
    assert (stats.temperature_c, stats.cpu_mhz, stats.throttled, stats.under_voltage) == (None,) * 4
    monkeypatch.delattr(psutil, "sensors_temperatures")
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    stats = Sampler(tmp_path).sample()
    assert (stats.temperature_c, stats.cpu_mhz) == (None, None)


def test_rate_follows_the_work_done_last() -> None:
    rate = Rate()
    assert (rate.chars_per_s, rate.jobs_per_s) == (0.0, 0.0)
    rate.add(2.0, 200, 4)
    assert (rate.chars_per_s, rate.jobs_per_s) == (100.0, 2.0)
    for _ in range(20):
        rate.add(RATE_WINDOW_S / 2, 10 * RATE_WINDOW_S / 2, 0)
    assert rate.chars_per_s == pytest.approx(10.0, rel=0.01)
    rate.add(0.0, 0, 0)
    assert rate.jobs_per_s < 0.01


# ---- life cycle ----


def test_signals_stop_then_force_and_wake_a_poller() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert (signals.stop, signals.force) == (False, False)
        assert not select.select([signals.fd], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals.fd], [], [], 10)[0]
        assert (signals.stop, signals.force) == (True, False)
        signals.drain()
        assert not select.select([signals.fd], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([signals.fd], [], [], 10)[0]
        assert (signals.stop, signals.force) == (True, True)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signals.fd == -1 and signal.set_wakeup_fd(-1) == -1
    signals.drain()  # after its end there is nothing to empty


def test_a_full_pipe_loses_no_stop() -> None:
    with Signals() as signals:
        write_end = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals.fd], [], [], 10)[0] and signals.stop
        signals.drain()
        assert not select.select([signals.fd], [], [], 0)[0]


@pytest.mark.parametrize("abstract", [False, True])
def test_sd_notify_sends_one_datagram(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may only be 108 bytes long
    name = f"@dolmetsch-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else "notify")
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert sd_notify("READY=1\nSTATUS=übersetzt")
        assert listener.recv(4096) == "READY=1\nSTATUS=übersetzt".encode()


def test_sd_notify_without_a_listener_is_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify("READY=1")
    for address in ("", "nonsense", "vsock:2:1234", str(tmp_path / "gone")):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert not sd_notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        ("30000000", "nobody", None),
    ],
)
def test_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval_s: float | None
) -> None:
    for name, value in (
        ("WATCHDOG_USEC", usec),
        ("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid),
    ):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval_s() == interval_s
