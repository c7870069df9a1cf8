"""The page as a person meets it: a real cluster, the real dashboard, and a Chromium without a screen.

The tests share them and go from what disturbs nothing to what kills programs. After each one the browser must have
nothing to complain about, and must have asked nobody but the dashboard for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from bench.cluster import Cluster, free_port
from dolmetsch import keys
from dolmetsch.client import Client
from dolmetsch.enrol import enrol
from dolmetsch.errors import JobFailed
from dolmetsch.transport import door_address
from tests.conftest import wait_until
from tests.dashboards import stranger
from tests.test_gate import Computer, Owner, QuietSignals

webdriver = pytest.importorskip("selenium.webdriver", reason="there is no selenium")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

CHROMIUM: Final = shutil.which("chromium")
DRIVER: Final = shutil.which("chromedriver")
QUICK_S: Final = 5.0
FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
    "--force-prefers-reduced-motion", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
NODES: Final = ("pi-kitchen", "pi-office")
ACTION: Final = {"X-Dolmetsch": "1"}
REFUSED: Final = "net::ERR_CONNECTION_REFUSED"  # what the browser says of a dashboard that is not there

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium, or no chromedriver")


@dataclass
class Page:
    """The page, and the programs behind it."""

    driver: Any
    cluster: Cluster
    origin: str
    asked: int = 0  # addresses that the browser has asked for

    def api(self, path: str) -> Any:
        return requests.get(f"{self.origin}/api/{path}", timeout=QUICK_S).json()

    def order(self, name: str, action: str) -> None:
        url = f"{self.origin}/api/nodes/{name}/{action}"
        assert requests.post(url, json={}, headers=ACTION, timeout=QUICK_S).status_code == 200

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def one(self, css: str) -> WebElement:
        found: WebElement = self.driver.find_element(By.CSS_SELECTOR, css)
        return found

    def text(self, css: str) -> str:
        """The text of an element, "" where there is none, without the fine spaces between digits and units."""
        words = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", css)
        return str(words).replace("\u202f", "").replace("\u00a0", " ")

    def number(self, name: str) -> float | None:
        value = self.run("return document.querySelector(arguments[0]).value", f"#vitals [data-part={name}]")
        return float(value) if value else None

    def click(self, css: str) -> None:
        """Click on it, in the middle of the screen: nothing that stays at an edge may lie over it."""
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", css)
        self.one(css).click()

    def row(self, name: str, css: str = "") -> str:
        """A selector for what stands in a node's row."""
        names = self.run(
            "return [...document.querySelectorAll('.node [data-part=name]')].map((one) => one.textContent)"
        )
        return f".node:nth-child({names.index(name) + 1}) {css}".strip() if name in names else ".no-such-node"

    def state(self, name: str) -> str:
        """What the page says of a node: ready, draining, lost or left."""
        return self.text(self.row(name, "[data-part=about]")).partition(" ·")[0].partition(":")[0]

    def link(self) -> str:
        return str(self.run("return document.body.dataset.link"))

    def updates(self, count: int) -> None:
        """Wait until the cluster has been shown so many times more."""
        for _ in range(count):
            before = self.text("#link-text")
            wait_until(lambda before=before: self.text("#link-text") != before, QUICK_S, "the page goes on")  # type: ignore[misc]

    def focused(self) -> str:
        return str(
            self.run("const at = document.activeElement; return at.getAttribute('aria-label') ?? at.textContent")
        )

    def width(self, pixels: int) -> None:
        metrics = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A broker and two nodes that give texts back, the dashboard, and a browser that shows it."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster(tmp_path_factory.mktemp("shown")))
        cluster.environment.pop("DASHBOARD_TOKEN", None)
        cluster.broker()
        for name in NODES:
            start_node(cluster, name)
        page = stack.enter_context(opened(cluster, tmp_path_factory.mktemp("chromium")))
        cluster.wait_ready(2, 2)
        yield page
        assert page.asked, "what the browser asks for is seen"


@contextlib.contextmanager
def opened(cluster: Cluster, folder: Path) -> Iterator[Page]:
    """A dashboard of ``cluster``, and a browser that shows it; what that keeps is in ``folder``."""
    port = free_port()
    start_dashboard(cluster, port)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    try:
        page = Page(driver, cluster, f"http://127.0.0.1:{port}")
        page.width(1440)
        wait_until(lambda: answers(page.origin), 10.0, "the dashboard answers")
        driver.get("about:blank")
        list(requested(driver))  # the browser's own first page is none of ours
        driver.get(f"{page.origin}/dashboard")
        yield page
    finally:
        driver.quit()


def start_node(cluster: Cluster, name: str) -> None:
    cluster.node(name, "--engine", "echo", "--max-workers", "1")


def start_dashboard(cluster: Cluster, port: int) -> None:
    history = str(cluster.folder / "history.sqlite3")
    where = ("--listen", f"127.0.0.1:{port}", "--broker", cluster.address, "--history", history)
    cluster.start("dashboard", "-m", "dashboard", *where, "--env", "no-such-file")


def answers(origin: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{origin}/health", timeout=QUICK_S).ok
    return False


@pytest.fixture
def page(shown: Page) -> Iterator[Page]:
    """The page with two nodes ready on it."""
    wait_until(
        lambda: shown.link() == "live" and all(shown.state(name) == "ready" for name in NODES), 10.0, "all is well"
    )
    yield shown
    nothing_to_complain_about(shown)


def nothing_to_complain_about(page: Page) -> None:
    complaints = [
        entry["message"] for entry in page.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ]
    assert [one for one in complaints if REFUSED not in one] == []
    asked = list(requested(page.driver))
    page.asked += len(asked)
    assert [url for url in asked if not url.startswith(page.origin + "/")] == []


def requested(driver: Any) -> Iterator[str]:
    """Every address that the browser has asked for since it was last looked at."""
    for entry in driver.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            yield event["params"]["request"]["url"]


# ---- what is shown ----


def test_the_numbers_are_those_of_the_api(page: Page) -> None:
    names = (
        "nodes_up", "workers", "queued", "in_flight", "translations_per_s", "error_rate", "servers", "dead_letters",
        "p50_ms", "p95_ms", "p99_ms",
    )  # fmt: skip

    def same() -> bool:
        cluster, stats = page.api("cluster"), page.api("stats")
        kitchen = next(node for node in cluster["nodes"] if node["name"] == "pi-kitchen")
        return (
            {name: page.number(name) for name in names} == {name: cluster["totals"][name] for name in names}
            and page.number("queued") == stats["queue_count"]
            and page.number("in_flight") == stats["active_jobs"]
            and page.number("servers") == stats["server_count"]
            and page.text(page.row("pi-kitchen", "[data-part=ram]")) == f"{kitchen['ram_percent']:.0f} %"
            and page.text(page.row("pi-kitchen", "[data-part=in_flight]")) == str(kitchen["in_flight"])
        )

    wait_until(same, QUICK_S, "the page shows what /api/cluster and /api/stats say")
    assert (page.number("nodes_up"), page.number("workers")) == (2, 2)


def test_a_node_opened_shows_which_child_is_pinned_where(page: Page) -> None:
    page.click(page.row("pi-kitchen", "[data-part=toggle]"))
    (child,) = page.api("nodes/pi-kitchen")["children"]
    lines = page.one(page.row("pi-kitchen", "[data-part=children]")).text.splitlines()
    assert any(line.split()[0] == str(child["core"]) and str(child["pid"]) in line.split() for line in lines), lines
    assert "echo" in page.text(page.row("pi-kitchen", "[data-part=routes]"))


def test_a_translation_can_be_tried_and_its_job_tells_its_story(page: Page) -> None:
    page.one("#translate-text").send_keys("Guten Morgen")
    page.click("#translate-go")
    wait_until(lambda: page.text("#translation") == "Guten Morgen", QUICK_S, "the translation is there")
    page.run("document.querySelector('#jobs').scrollIntoView()")
    wait_until(lambda: page.text(".job [data-part=route]") == "de→en", QUICK_S, "its job is listed")
    page.click(".job-line")
    assert "leased to pi-" in page.text(".job .story") and "of its" in page.text(".job .why")
    assert "Guten Morgen" not in page.text("#jobs")


def test_the_charts_are_read_with_the_arrow_keys(page: Page) -> None:
    plot = page.one(".plot")
    page.run("arguments[0].focus()", plot)
    wait_until(lambda: page.text(".chart .legend").startswith("done"), QUICK_S, "there is a chart")
    plot.send_keys(Keys.ARROW_LEFT)
    crossed = page.run(
        "return [...document.querySelectorAll('.chart:not([hidden]) .cross')].map((one) => one.hasAttribute('d'))"
    )
    assert len(crossed) == 6 and all(crossed), "all have the same time"
    assert ": done " in str(plot.get_attribute("aria-valuetext"))
    page.one("#spans input[value='1h']").send_keys(Keys.SPACE)
    wait_until(lambda: not page.run("return document.querySelector('.chart.old')"), QUICK_S, "an hour")
    page.one("#spans input[value='5m']").send_keys(Keys.SPACE)


def test_the_tab_key_reaches_the_buttons_and_updates_leave_focus_and_selection_alone(page: Page) -> None:
    page.run("document.activeElement.blur(); scrollTo(0, 0); getSelection().removeAllRanges()")
    page.run("const mark = document.querySelector('#main'); mark.focus()")
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        if page.focused() == "Drain pi-kitchen":
            break
    assert page.focused() == "Drain pi-kitchen"
    name = page.row("pi-kitchen", "[data-part=name]")
    page.run("getSelection().selectAllChildren(document.querySelector(arguments[0]))", name)
    page.updates(2)
    assert page.focused() == "Drain pi-kitchen"
    assert page.run("return getSelection().toString()") == "pi-kitchen"


@pytest.mark.parametrize("pixels", (380, 768, 1440))
def test_nothing_is_wider_than_the_screen(page: Page, pixels: int) -> None:
    page.width(pixels)
    page.updates(1)
    assert page.run("return document.scrollingElement.scrollWidth") <= page.run("return innerWidth") == pixels
    page.width(1440)


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    colour = "return getComputedStyle(document.documentElement).backgroundColor"
    light = page.run(colour)
    for _ in ("light", "dark"):
        page.click("#theme")
    dark = page.run(colour)
    page.driver.refresh()
    wait_until(lambda: page.link() == "live", QUICK_S, "the page is there again")
    assert page.text("#theme") == "Theme: dark" and page.run(colour) == dark != light
    page.click("#theme")


# ---- what is done ----


def test_a_node_drains_and_resumes_by_a_click(page: Page) -> None:
    page.click(page.row("pi-office", "[data-part=drain]"))
    wait_until(lambda: page.state("pi-office") == "draining", QUICK_S, "it drains")
    assert page.text("#said-text").startswith("pi-office drains")
    assert page.number("nodes_up") == 1
    button = page.one(page.row("pi-office", "[data-part=drain]"))
    assert button.text == "Resume"
    page.click(page.row("pi-office", "[data-part=drain]"))
    wait_until(lambda: page.state("pi-office") == "ready", QUICK_S, "it takes jobs again")


def test_dead_letters_are_requeued_and_purged(page: Page) -> None:
    for name in NODES:
        page.order(name, "drain")
    wait_until(lambda: page.number("nodes_up") == 0, QUICK_S, "nobody takes a job")
    asyncio.run(die(page.cluster.address, 3))
    wait_until(lambda: page.number("dead_letters") == 3, QUICK_S, "three dead letters")
    for name in NODES:
        page.order(name, "resume")
    page.run("document.querySelector('#jobs').scrollIntoView()")
    page.one("#kinds input[value=dead]").send_keys(Keys.SPACE)

    def left() -> int:
        return len(page.driver.find_elements(By.CSS_SELECTOR, ".job[data-state=dead]"))

    wait_until(lambda: left() == 3, QUICK_S, "they are listed")
    page.click(".job [data-part=requeue]")
    wait_until(lambda: left() == 2, QUICK_S, "one is queued again")
    assert page.text("#said-text") == "1 dead letter queued again"
    page.click(".job [data-part=purge]")
    wait_until(lambda: left() == 1, QUICK_S, "one is purged")
    page.click("#purge-all")
    page.click("#confirm-dialog [data-cancel]")
    assert left() == 1, "nothing is purged before somebody says so"
    page.click("#purge-all")
    page.click("#confirm-go")
    wait_until(lambda: left() == 0 and page.number("dead_letters") == 0, QUICK_S, "all are purged")
    page.one("#kinds input[value=recent]").send_keys(Keys.SPACE)


async def die(address: str, count: int) -> None:
    """Ask for what nobody takes, until it is too late."""
    async with Client(address, gateway="late") as client:
        asked = [client.translate(f"Text {number}", "de→en", deadline_s=0.3) for number in range(count)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, JobFailed) for one in ended), ended


# ---- what goes wrong ----


def test_a_killed_node_is_lost_on_the_page_within_five_seconds(page: Page) -> None:
    page.cluster.kill("pi-office")
    wait_until(lambda: page.state("pi-office") == "lost", 5.0, "it is lost")
    wait_until(lambda: "pi-office is lost" in page.text("#problems"), 1.0, "the page says so in words")
    assert not page.one(page.row("pi-office", "[data-part=drain]")).is_enabled()
    start_node(page.cluster, "pi-office")
    wait_until(lambda: page.state("pi-office") == "ready", 10.0, "it is back")


def goes_and_comes_back(page: Page, kill: Callable[[], None], start: Callable[[], None], link: str) -> None:
    kill()
    wait_until(lambda: page.link() == link and "since" in page.text("#link-text"), 8.0, f"the page is {link}")
    assert float(page.one("#vitals").value_of_css_property("opacity")) < 1, "it is grey"
    start()
    wait_until(lambda: page.link() == "live", 15.0, "it comes back by itself")
    assert page.one("#vitals").value_of_css_property("opacity") == "1"


def test_a_lost_broker_greys_the_page(page: Page) -> None:
    def start() -> None:
        page.cluster.broker()

    goes_and_comes_back(page, lambda: page.cluster.kill("broker"), start, "stale")


def test_a_lost_dashboard_greys_the_page(page: Page) -> None:
    port = int(page.origin.rpartition(":")[2])

    def start() -> None:
        start_dashboard(page.cluster, port)

    goes_and_comes_back(page, lambda: page.cluster.kill("dashboard"), start, "gone")


# ---- who waits to be let in ----


def test_a_computer_that_knocks_is_compared_and_let_in(cluster: Cluster, tmp_path: Path) -> None:
    owner, pi = Owner(cluster), Computer(cluster, "pi4")
    owner.start()
    key = keys.fingerprint(keys.own_pair(pi.config).public)
    hostile = "<img src=x onerror=alert(1)> מחשב " + "x" * 94
    invitation = keys.Invitation(cluster.address, door_address(cluster.address), owner.pair.public, b"")
    admitted: list[bool] = []

    def come() -> None:
        with contextlib.closing(QuietSignals()) as signals:
            admitted.append(enrol(pi.config, invitation, "pi4", signals))

    with opened(cluster, tmp_path / "chromium") as page, stranger(owner) as (other_key, knock):

        def keys_shown() -> set[str]:
            script = "return [...document.querySelectorAll('#waiting [data-part=key]')].map((one) => one.textContent)"
            return set(page.run(script))

        wait_until(lambda: page.link() == "live", 10.0, "the page is there")
        assert not page.one("#waiting").is_displayed()
        newcomer = threading.Thread(target=come, daemon=True)
        newcomer.start()
        assert knock(hostile) == "pending"
        wait_until(lambda: keys_shown() == {key, other_key}, 10.0, "both are shown")
        assert page.one("#waiting").is_displayed() and "2 computers wait" in page.text("#problems")
        assert page.text(".waiter:nth-child(1) [data-part=name]") == hostile, "as text"
        assert not page.run("return document.querySelector('.waiter img')")
        for pixels in (380, 1440):
            page.width(pixels)
            assert page.run("return document.scrollingElement.scrollWidth") <= pixels

        page.one(".waiter:nth-child(1) [data-part=refuse]").send_keys(Keys.ENTER)
        wait_until(lambda: keys_shown() == {key}, QUICK_S, "one is turned away")
        assert page.focused().startswith("Waiting to be let in"), "the focus is not on the next one's button"
        assert "a computer called pi4 at 127.0.0.1 waits to be let in" in page.text("#problems")
        page.click(".waiter [data-part=approve]")
        assert key in page.text("#confirm-text")
        page.click("#confirm-dialog [data-cancel]")
        page.click(".waiter [data-part=approve]")
        page.click("#confirm-go")
        wait_until(lambda: not page.one("#waiting").is_displayed(), QUICK_S, "nobody waits")
        assert "pi4\u2069 is let in" in page.text("#said-text") and "waits" not in page.text("#problems")
        newcomer.join(15.0)
        assert admitted == [True] and knock("again") == "refused"
        pi.node()
        wait_until(lambda: page.state("pi4") == "ready", 20.0, "it is a node")
        nothing_to_complain_about(page)
