#!/usr/bin/env python3
"""The pictures of the dashboard in docs/images/: a real cluster at work, in a Chromium without a screen.

    python bench/screenshots.py

Needs chromium and chromedriver (on Debian: apt install chromium chromium-driver), and requirements-dev.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not bench/: its http.py would hide Python's own

from dolmetsch.bootstrap import in_venv

in_venv()

import itertools
import shutil
import time
from typing import Any, Final

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from bench.cluster import HOUSE, Cluster, free_port
from bench.load import Load
from bench.throughput import sentences
from dolmetsch.messages import INTERACTIVE
from dolmetsch.packages import EMBEDDED

IMAGES: Final = HOUSE / "docs" / "images"
FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
LIFE_S: Final = 90.0  # so long there is something to see in the charts
SETTLE_S: Final = 1.5  # the page is drawn anew each second
PICTURES: Final = (
    # name, theme, width, height, pixels a point
    ("dashboard", "dark", 1440, 1250, 1),
    ("dashboard-light", "light", 1440, 1250, 1),
    ("dashboard-phone", "light", 380, 820, 2),
)


def work(cluster: Cluster) -> None:
    """People who write now and then, for as long as the charts need."""
    texts = itertools.cycle(sentences())
    until = time.monotonic() + LIFE_S
    with Load(cluster.address, lane=INTERACTIVE) as load:
        for number in itertools.count():
            if time.monotonic() >= until:
                return
            count = 8 + 24 * (number % 4 == 0) + number % 7
            load.run(load.jobs(list(itertools.islice(texts, count)), tenant=f"guild {number % 3}"))
            time.sleep(0.4)


def browser(folder: Path) -> Any:
    """A Chromium. Ends the program with a line where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        sys.exit("there is no chromium, or no chromedriver: on Debian, apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={folder / 'chromium'}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(executable_path=driver))


def take(driver: Any, name: str, theme: str, width: int, height: int, scale: int) -> None:
    """One picture, of the top of the page."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    time.sleep(SETTLE_S)
    path = IMAGES / f"{name}.png"
    driver.save_screenshot(str(path))
    print(f"{path.relative_to(HOUSE)}: {path.stat().st_size >> 10} KiB")


def main() -> None:
    """Take them all."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with Cluster() as cluster:
        cluster.environment["DOLMETSCH_SCHEDULER_CACHE_BYTES"] = "0"
        cluster.broker()
        for name, core in (("pi-kitchen", "0"), ("pi-office", "1")):
            cluster.node(name, "--cores", core, "--packages", str(EMBEDDED))
        cluster.wait_ready(2, 2)
        port = free_port()
        where = ("--listen", f"127.0.0.1:{port}", "--broker", cluster.address)
        cluster.start("dashboard", "-m", "dashboard", *where, "--history", str(cluster.folder / "history.sqlite3"))
        work(cluster)
        driver = browser(cluster.folder)
        try:
            driver.get(f"http://127.0.0.1:{port}/dashboard")
            for picture in PICTURES:
                take(driver, *picture)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
