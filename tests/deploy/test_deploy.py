"""A box of Pis from nothing, and everything that happens to it later: the real playbooks on real systemd hosts.

One set of hosts lives through all of it, in the order of this file; each test says what it takes for granted. pi1 has
the broker, the dashboard and the HTTP gateway; pi2 and pi3 are nodes; pi4 comes later, and pi5 joins without Ansible.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from dolmetsch.keys import read_invitation
from tests.deploy.commands import run, wait_for
from tests.deploy.conftest import Figure
from tests.deploy.hosts import Host, Hosts
from tests.deploy.site import BROKER, DASHBOARD, HTTP, NODE, Site, grep, names

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("with_ansible")]

FROM_NOTHING_S = 300.0
ADD_NODE_S = 60.0
EXPOSURE = 3.0
NOT_KNOWN = "does not know this computer's key, or has revoked it"


@pytest.fixture(scope="module")
def site(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three bare hosts and a control machine with a copy of the project."""
    return Site(hosts, tmp_path_factory.mktemp("site"))


@pytest.fixture
def deployed(site: Site) -> Site:
    """The cluster runs: pi2 and pi3 at least can translate."""
    site.deploy()
    return site


@pytest.fixture(scope="module")
def pi5(site: Site) -> Host:
    """A host that no playbook knows, with the programs on it as if its owner had fetched them."""
    site.deploy()
    (host,) = site.hosts.boot("pi5")
    site.copy_programs(host)
    return host


# ---- from nothing ----


def test_from_nothing_to_a_translated_sentence(site: Site, figure: Figure) -> None:
    for host in site.hosts:
        assert site.is_bare(host)
    site.collect_wheels()
    started = time.monotonic()
    site.deploy()
    assert site.wait_translates("Guten Morgen", 30) == "Good morning"
    figure("from three bare hosts to a translation", time.monotonic() - started, FROM_NOTHING_S)
    assert site.units(site.broker) == [BROKER, DASHBOARD, HTTP]
    for node in site.nodes:
        assert site.units(node) == [NODE]


def test_a_second_run_changes_nothing(deployed: Site, figure: Figure) -> None:
    before = deployed.invocations()
    played = deployed.play("site.yml").succeeded()
    figure("a run that changes nothing", played.took_s, 120)
    assert played.changed == 0, played.output
    assert deployed.invocations() == before, "nothing was restarted"


def test_check_says_what_would_change_and_changes_nothing(deployed: Site) -> None:
    before = deployed.invocations()
    with deployed.playbooks.another_version("0.1.9"):
        assert deployed.play("site.yml", "--check", "--diff").succeeded().changed > 0
    assert deployed.invocations() == before
    assert "0.1.9" not in str(deployed.versions())


def test_check_works_on_a_bare_host(deployed: Site) -> None:
    (bare,) = deployed.hosts.boot("bare")
    inventory = deployed.hosts.inventory(deployed.folder / "bare.ini", broker=deployed.broker, nodes=bare)
    played = deployed.play("site.yml", "--check", "--limit", "bare", inventory=inventory).succeeded()
    assert played.changed > 0
    assert deployed.is_bare(bare)
    bare.power_off()


def test_a_32_bit_system_is_refused_with_a_sentence(deployed: Site) -> None:
    (old,) = deployed.hosts.boot("old", personality="x86")
    inventory = deployed.hosts.inventory(deployed.folder / "old.ini", broker=deployed.broker, nodes=old)
    played = deployed.play("site.yml", "--limit", "old", inventory=inventory)
    assert played.status != 0
    assert "64-bit" in played.output
    assert played.recap["old"]["changed"] == 0
    assert deployed.is_bare(old)
    old.power_off()


# ---- what runs there ----


def test_units_are_watched_and_restarted_and_not_root(deployed: Site) -> None:
    for host in deployed.hosts[:3]:
        for unit in deployed.units(host):
            shown = deployed.show(host, unit, "Type", "Restart", "WatchdogUSec", "User", "NoNewPrivileges", "NRestarts")
            assert shown["User"] not in ("", "root")
            assert (shown["Type"], shown["Restart"], shown["NoNewPrivileges"]) == ("notify", "always", "yes"), unit
            assert shown["NRestarts"] == "0", f"{unit} of {host.name} had to be restarted"
            if unit in (BROKER, NODE):
                assert shown["WatchdogUSec"] not in ("0", "infinity"), unit


def test_exposure_of_each_unit(deployed: Site, figure: Figure) -> None:
    for host in deployed.hosts[:2]:
        for unit in deployed.units(host):
            said = host.ssh(f"systemd-analyze security --no-pager {unit}").stdout
            found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
            assert found is not None, said
            figure(f"systemd-analyze security {unit}", float(found[1]), EXPOSURE, unit="")
            assert float(found[1]) <= EXPOSURE


def test_keys_are_where_they_belong(deployed: Site) -> None:
    secret = "grep -rl --include='*.key_secret' secret-key / --exclude-dir=proc --exclude-dir=sys 2>/dev/null"
    for host in deployed.hosts[:3]:
        for path in host.ssh(secret, check=False).stdout.split():
            mode, owner = host.ssh(f"stat -c '%a %U' {path}").stdout.split()
            assert mode in ("600", "400"), f"{path} on {host.name}"
            assert owner != "pi"
            if host is not deployed.broker:
                assert "broker.key_secret" not in path
    for node in deployed.nodes:
        assert node.ssh("find / -xdev -name allowed.sqlite3").stdout == ""


def test_the_wire_shows_nothing(deployed: Site, tmp_path: Path, figure: Figure) -> None:
    pcap = tmp_path / "wire.pcap"
    with deployed.hosts.capture(pcap), deployed.load(per_s=30) as load, deployed.listening() as heard:
        load.wait_answered(150, 60)
        wait_for(lambda: heard() > 2, 10, "telemetry")
    load.assert_each_exactly_once()
    seen = pcap.read_bytes()
    for port, least in ((5570, 100_000), (5571, 1_000)):
        lengths = run("tcpdump", "-nn", "-q", "-r", pcap, f"tcp port {port}").stdout
        carried = sum(int(length) for length in re.findall(r"tcp (\d+)$", lengths, re.MULTILINE))
        figure(f"bytes captured on port {port}", carried, unit="")
        assert carried >= least
    assert b"CURVE" in seen, "the greeting of ZeroMQ says which mechanism it speaks: the capture has the beginning"
    for source, result in load.translations():
        for text in (source.rpartition(" ")[0], result.rpartition(" ")[0]):
            assert len(text) < 8 or text.encode() not in seen
    # The messages' own names; HELLO, WELCOME and READY are CURVE's, too.
    words = ("dolm", "SUBMIT", "RESULT", "REGISTER", "HEARTBEAT", "TELEMETRY", "gateway", "de→en", "pi2")
    for word in words:
        assert word.encode() not in seen, word


# ---- under load ----


def test_a_rolling_upgrade_loses_nothing(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    old = deployed.versions()
    deployed.playbooks.set_version("0.1.1")
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        played = deployed.play("upgrade.yml").succeeded()
        load.wait_nodes(*everybody, within_s=30)
        load.wait_answered(20, 30)
    load.assert_each_exactly_once()
    figure(f"a rolling upgrade of {len(everybody)} nodes and the broker", played.took_s, 300)
    figure("the slowest job meanwhile", load.slowest_s(), 60)
    assert load.fewest_ready() >= len(everybody) - 1
    assert set(old.values()) != {"0.1.1"}
    assert set(deployed.versions().values()) == {"0.1.1"}


def test_an_upgrade_stops_at_the_first_failure_and_is_rolled_back(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    good = deployed.versions()
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        with deployed.playbooks.broken_node("0.1.2"):
            assert deployed.play("upgrade.yml").status != 0
        load.wait_answered(20, 30)
        now = deployed.versions()
        assert len([name for name in now if now[name] == good[name]]) >= len(good) - 1
        assert now[deployed.broker.name] == good[deployed.broker.name], "the broker comes last"
        played = deployed.play("rollback.yml").succeeded()
        load.wait_nodes(*everybody, within_s=30)
        load.wait_answered(20, 30)
    load.assert_each_exactly_once()
    figure("a rollback", played.took_s, 300)
    assert load.fewest_ready() >= len(everybody) - 1
    assert deployed.versions() == good


def test_a_node_is_added_under_load(deployed: Site, figure: Figure) -> None:
    assert "pi4" not in names(deployed.nodes)
    (pi4,) = deployed.hosts.boot("pi4")
    with deployed.load() as load:
        started = time.monotonic()
        deployed.add(pi4)
        load.wait_work("pi4", within_s=60)
        figure("add_node.yml to its first translation", time.monotonic() - started, ADD_NODE_S)
        load.wait_nodes(*names(deployed.nodes), within_s=10)
    load.assert_each_exactly_once()
    assert load.fewest_ready() >= len(deployed.nodes) - 1, "the others went on"


def test_a_node_whose_link_is_down_for_20_s_comes_back(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    away = deployed.nodes[-1]
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        process = deployed.show(away, NODE, "MainPID")
        began = time.monotonic()
        away.link_down()
        try:
            took_s = load.wait_nodes(*everybody[:-1], within_s=15)
            figure("a lost link is noticed", took_s, 15)
            wait_for(lambda: time.monotonic() > began + 20, 25, "twenty seconds")
            assert load.samples[-1].ready == set(everybody[:-1])
        finally:
            away.link_up()
        figure("the node is back once the link is", load.wait_nodes(*everybody, within_s=30), 30)
        load.wait_answered(30, 30)
    load.assert_each_exactly_once()
    assert deployed.show(away, NODE, "MainPID") == process, "it is the same process"


def test_a_power_cut_of_the_broker_loses_nothing(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        load.wait_answered(20, 30)
        began = time.monotonic()
        deployed.broker.power_off()
        sent = len(load.jobs)
        wait_for(lambda: len(load.jobs) > sent + 50, 30, "jobs that nobody takes")
        deployed.broker.power_on()
        load.wait_nodes(*everybody, within_s=60)
        figure("power cut of the broker's host to all nodes back", time.monotonic() - began, 60)
        load.wait_answered(30, 60)
    load.assert_each_exactly_once()
    assert deployed.units(deployed.broker) == [BROKER, DASHBOARD, HTTP]
    assert deployed.wait_translates("Guten Abend", 30)


def test_a_power_cut_of_a_node_loses_nothing(deployed: Site) -> None:
    everybody = names(deployed.nodes)
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        deployed.nodes[0].power_off()
        load.wait_nodes(*everybody[1:], within_s=15)
        deployed.nodes[0].power_on()
        load.wait_nodes(*everybody, within_s=60)
        load.wait_answered(50, 30)
    load.assert_each_exactly_once()


# ---- who may come in ----


def test_a_revoked_node_is_refused_at_once(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    revoked = deployed.nodes[-1]
    since = revoked.now()
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        started = time.monotonic()
        deployed.own("revoke", revoked.name)
        load.wait_nodes(*everybody[:-1], within_s=10)
        figure("a revoked node is out", time.monotonic() - started, 10)
        load.wait_answered(30, 30)
        wait_for(lambda: bool(grep("revoked", revoked.journal(NODE, since))), 30, "a clear line in its journal")
        # It is on the playbooks' list still: to be rid of it for good, one takes it out of the inventory.
        deployed.play("site.yml").succeeded()
        figure("it is back once it is allowed", load.wait_nodes(*everybody, within_s=30), 30)
    load.assert_each_exactly_once()
    assert len(grep("revoked", revoked.journal(NODE, since))) <= 3, "it is said once, not every few seconds"


def test_a_node_that_was_never_invited_is_refused(deployed: Site, pi5: Host) -> None:
    key = deployed.key("broker")
    since = deployed.broker.now()
    to = ("--broker", deployed.address)
    with deployed.load() as load, deployed.stray_node(pi5, *to, broker_key=key) as unit:
        wait_for(lambda: bool(grep(NOT_KNOWN, pi5.journal(unit))), 30, "a clear line in its journal")
        load.wait_answered(20, 30)
        assert "pi5" not in load.samples[-1].ready
        assert len(grep("refused: the key", deployed.broker.journal(BROKER, since))) == 1
    load.assert_each_exactly_once()


def test_a_node_that_does_not_know_the_broker_sends_nothing(deployed: Site, pi5: Host) -> None:
    with deployed.stray_node(pi5, "--broker", deployed.address) as unit:
        wait_for(lambda: bool(grep("invitation", pi5.journal(unit))), 30, "a clear line in its journal")


def test_one_word_lets_a_bare_host_in(deployed: Site, pi5: Host, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    word = deployed.own("invite").strip()
    assert read_invitation(word).broker == deployed.address
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        started = time.monotonic()
        with deployed.stray_node(pi5, "--join", word):
            name = load.wait_newcomer(within_s=30)
            assert name.startswith("pi5")
            load.wait_work(name, within_s=30)
            figure("node.py --join to its first translation", time.monotonic() - started, 60)
        load.wait_nodes(*everybody, within_s=30)
    load.assert_each_exactly_once()
    with deployed.stray_node(pi5, "--join", word, keys="other-keys") as unit:
        wait_for(lambda: bool(grep("not valid", pi5.journal(unit))), 30, "an invitation works once")


# ---- the end ----


def test_status_shows_all_of_it(deployed: Site) -> None:
    played = deployed.play("status.yml").succeeded()
    assert played.changed == 0
    for name in names(deployed.nodes):
        assert name in played.output


def test_new_keys_for_all_programs_lose_nothing(deployed: Site, figure: Figure) -> None:
    everybody = names(deployed.nodes)
    before = {name: deployed.key(name, "node") for name in everybody}
    with deployed.load() as load:
        load.wait_nodes(*everybody, within_s=20)
        played = deployed.play("rotate_program_keys.yml").succeeded()
        load.wait_nodes(*everybody, within_s=30)
        load.wait_answered(20, 30)
    load.assert_each_exactly_once()
    figure("rotate_program_keys.yml", played.took_s, 300)
    assert load.fewest_ready() >= len(everybody) - 1
    for name, key in before.items():
        assert deployed.key(name, "node") != key
        assert key not in deployed.broker.ssh("cat /etc/dolmetsch/allowed").stdout
    assert deployed.wait_translates("Gute Nacht", 30)


def test_a_new_key_for_the_broker(deployed: Site) -> None:
    before = deployed.key("broker")
    deployed.play("rotate_broker_key.yml").succeeded()
    assert deployed.key("broker") != before
    assert deployed.wait_translates("Bis morgen", 30)


def test_reset_leaves_bare_hosts(deployed: Site) -> None:
    deployed.play("reset.yml", "-e", "confirm=yes", "-e", "state=remove").succeeded()
    for host in [deployed.broker, *deployed.nodes]:
        assert deployed.is_bare(host)
        assert host.ssh("pgrep -f '[d]olmetsch' || true").stdout == ""
