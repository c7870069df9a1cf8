#!/usr/bin/env python3
"""Look at a host and print what is to know before something is installed there, as JSON. Changes nothing.

Runs on whatever Python the host has, so that one which is too old can be told so.
"""

import glob
import json
import os
import platform
import re
import shutil
import struct
import subprocess

HOME = "/opt/dolmetsch"


def read(path):
    """The file's text, or an empty one."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip("\0 \n")
    except OSError:
        return ""


def first(pattern):
    """The text of the first file that fits."""
    found = sorted(glob.glob(pattern))
    return read(found[0]) if found else ""


def says(*command):
    """What a command prints; empty when there is none, or it fails."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return ""


def release_of(name):
    """Which release the link NAME in dolmetsch's folder points to."""
    path = os.path.join(HOME, name)
    return os.path.basename(os.path.realpath(path)) if os.path.islink(path) else ""


def system():
    """ID and VERSION_ID of the distribution, and its name for people."""
    words = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read("/etc/os-release"), re.MULTILINE))
    return words.get("ID", ""), words.get("VERSION_ID", ""), words.get("PRETTY_NAME", platform.system())


def python():
    """The Python that services will run on: the system's."""
    return says("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def throttled():
    """The firmware's throttle word, or None; see vcgencmd get_throttled in the Raspberry Pi documentation."""
    word = first("/sys/devices/platform/soc*/soc*:firmware/get_throttled")
    try:
        return int(word, 16)
    except ValueError:
        return None


def power(word):
    """The throttle word in words."""
    if word is None:
        return "unknown"
    now = ((1, "under-voltage"), (2, "frequency capped"), (4, "throttled"), (8, "hot"))
    lines = [text + " now" for bit, text in now if word & bit]
    lines += [text + " since boot" for bit, text in now if word & bit << 16 and not word & bit]
    return ", ".join(lines) or "good"


def temperature():
    """Of the CPU in °C, or None."""
    for name in sorted(glob.glob("/sys/class/thermal/thermal_zone*/type")):
        if read(name) in ("cpu-thermal", "x86_pkg_temp"):
            try:
                return int(read(os.path.join(os.path.dirname(name), "temp"))) / 1000
            except ValueError:
                return None
    return None


def memory():
    """/proc/meminfo in MiB."""
    found = re.findall(r"^(\w+): +(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    return {name: int(kib) // 1024 for name, kib in found}


def main():
    """Print it."""
    name, version, pretty = system()
    ram = memory()
    systemd = re.match(r"systemd (\d+)", says("systemctl", "--version"))
    disk = shutil.disk_usage(HOME if os.path.isdir(HOME) else "/opt" if os.path.isdir("/opt") else "/")
    releases = sorted(glob.glob(HOME + "/releases/*/.complete-*"), key=os.path.getmtime)
    seen = {
        "board": read("/proc/device-tree/model") or read("/sys/class/dmi/id/product_name") or "unknown board",
        "arch": platform.machine(),
        "bits": struct.calcsize("P") * 8,
        "os_id": name,
        "os_version": version,
        "os": pretty,
        "python": python(),
        "tag": "cp" + python().replace(".", ""),
        "systemd": int(systemd.group(1)) if systemd else 0,
        "ram_mib": ram.get("MemTotal", 0),
        "ram_free_mib": ram.get("MemAvailable", 0),
        "swap_mib": ram.get("SwapTotal", 0),
        "zram": bool(glob.glob("/sys/block/zram*/disksize")),
        "memory_cgroup": "memory" in read("/sys/fs/cgroup/cgroup.controllers").split(),
        "ksm": os.access("/sys/kernel/mm/ksm/run", os.W_OK),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "governors": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors").split(),
        "temperature_c": temperature(),
        "power": power(throttled()),
        "clock_synced": says("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() == "yes",
        "disk_free_mib": disk.free // 2**20,
        "certificates": os.path.exists("/etc/ssl/certs/ca-certificates.crt"),
        "current": release_of("current"),
        "previous": release_of("previous"),
        "releases": [os.path.basename(os.path.dirname(path)) for path in releases],
        "complete": [os.path.relpath(path, HOME + "/releases") for path in releases],
        "wheels": [os.path.basename(os.path.dirname(path)) for path in glob.glob(HOME + "/wheels-*/.complete")],
    }
    print(json.dumps(seen, ensure_ascii=False))


main()
