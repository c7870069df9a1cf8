"""What the tests on real hosts share. Skipped, with one sentence, where there can be no such hosts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final

import pytest

from tests.conftest import sigterm_cleans_up
from tests.deploy.hosts import Hosts, missing
from tests.deploy.playbooks import ansible
from tests.deploy.site import Site

SLACK: Final = 3
_FIGURES: Final = pytest.StashKey[list[str]]()


class Figure:
    """Notes what was measured, to be shown at the end beside what it should be at most.

    Only several times that is a failure: a test must not fail because the machine has other things to do.
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def __call__(self, what: str, value: float, limit: float | None = None, unit: str = "s") -> None:
        at_most = "" if limit is None else f", at most {limit:g}"
        self._lines.append(f"{value:10.1f} {unit:1}  {what}{at_most}")
        assert limit is None or value <= SLACK * limit, what


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """See ``Figure``."""
    return Figure(request.config.stash.setdefault(_FIGURES, []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was measured."""
    figures = config.stash.get(_FIGURES, [])
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, show what the hosts said: they are gone when somebody reads it."""
    report = yield
    for site in item.funcargs.values():
        if isinstance(site, Site) and report.when == "call" and report.failed:
            report.sections.append(("what the hosts said", site.story()))
            break
    return report


@pytest.fixture(scope="session", autouse=True)
def able() -> Iterator[None]:
    """Skip all of it where this computer cannot have hosts; and let a SIGTERM clean up as Ctrl-C does."""
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    with sigterm_cleans_up():
        yield


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three bare hosts, for one file of tests."""
    with Hosts(3) as made:
        yield made


@pytest.fixture(scope="session")
def with_ansible(able: None) -> None:
    """Skip what needs Ansible where there is none."""
    if ansible() is None:
        pytest.skip("no ansible-playbook: make .venv-deploy, or name its virtual environment in DOLMETSCH_ANSIBLE")
