"""What stays: a guest's node over ballooning and a restore, affinities over offline CPUs and S3, free memory."""

from dataclasses import replace

import pytest

from lab.xen.cpus import offline
from lab.xen.domain import assert_unbroken, nodes_free
from lab.xen.guests import payload
from lab.xen.numa import Affinity, affinities, assert_of, memory_of, topology
from lab.xen.sleep import suspend

pytestmark = [pytest.mark.weekly, pytest.mark.needs("hap", "numa"), pytest.mark.usefixtures("scrubbed")]

MIB = 32
PAGES = MIB * 256
ASIDE = 64  # pages by which a node's free memory changes meanwhile
ASLEEP = 10  # seconds from the order to the alarm; they include going to sleep


@pytest.fixture
def scrubbed(host):
    """A host whose free memory is clean: Xen prefers clean memory of another node to dirty memory of the right one."""
    host.wait_scrubbed()


def guest_of(host, work, memory_mib=MIB, **more):
    """A guest with these further lines in its xl.cfg."""
    config = payload(host, "pvh64", work, memory_mib=memory_mib)
    return replace(config, more={**config.more, **more})


def test_a_ballooned_guest_stays_of_its_node(host, evidence):
    """What a guest gives up by ballooning goes back to its node, and what it gets again comes from its node."""
    node = topology(host).nodes[-1]
    away = MIB // 2
    with host.domain(guest_of(host, "memory,balloon", cpus=f'[ "node:{node}" ]')) as guest:
        assert guest.results(60.0)["memory"].outcome == "PASS"
        before = nodes_free(host.debug_keys("u"))
        for target, wanted in ((MIB - away, away * 256), (MIB, 0)):
            host.xl("mem-set", guest.name, f"{target}m")
            guest.wait_for(rf"^XL balloon INFO pages={wanted} error=0", 60.0)
            free = nodes_free(host.debug_keys("u"))
            gained = {one: free[one] - before[one] for one in free}
            for one, pages in gained.items():
                of_it = wanted if one == node else 0
                assert abs(pages - of_it) <= ASIDE, (
                    f"at {target} MiB node {one} has {pages} more free pages, and was to have {of_it}: {gained}"
                )
        pages = memory_of(guest, evidence)
        evidence.console("guest console", guest)
        assert_of([node], pages, PAGES)


def test_a_restored_guest_is_of_its_node(host, evidence):
    """A guest that may run on one node only has its memory there again after `xl save` and `xl restore`."""
    node = topology(host).nodes[-1]
    with host.domain(guest_of(host, "memory,heartbeat", cpus=f'[ "node:{node}" ]')) as guest:
        guest.beats(2)
        assert_of([node], memory_of(guest, evidence), PAGES)
        with guest.saved() as path:
            host.wait_scrubbed()
            guest.restore(path)
        guest.beats(3)
        pages = memory_of(guest, evidence)
        evidence.console("guest console", guest)
        assert_of([node], pages, PAGES)
        assert_unbroken(guest.heartbeats())


def bound(host, told):
    """A guest that may run on the last node only, and one that may anywhere and should there; with their affinities."""
    cpus, anywhere = told.cpus(told.nodes[-1]), frozenset(told.node_of_cpu)
    node = f'[ "node:{told.nodes[-1]}" ]'
    hard = guest_of(host, "memory,heartbeat", 16, cpus=node)
    soft = guest_of(host, "memory,heartbeat", 16, cpus_soft=node)
    return (hard, Affinity(cpus, anywhere)), (soft, Affinity(anywhere, cpus))


@pytest.mark.needs("cpu-offline")
def test_soft_affinity_outlives_an_offline_cpu(host, evidence):
    """A guest that should run on a node whose last CPU is offline runs elsewhere, and should there when it is back."""
    told = topology(host)
    _, (config, wanted) = bound(host, told)
    last = max(told.node_of_cpu)
    with host.domain(config) as guest:
        assert affinities(guest, told) == [wanted], f"xl.cfg asks for {wanted}: {affinities(guest, told)}"
        guest.beats(2)
        with offline(host, last):
            guest.beats(3)
        after = affinities(guest, topology(host))
        evidence.add("xl vcpu-list", host.xl("vcpu-list", guest.name).stdout, board=host.name)
        assert topology(host).node_of_cpu == told.node_of_cpu, f"CPUs and their nodes: {topology(host).node_of_cpu}"
        assert after == [wanted], f"the guest's affinity was {wanted}, and is {after}"
        guest.beats(3)
        assert_unbroken(guest.heartbeats())


@pytest.mark.needs("s3", "bmc-sleep-state", "rtcwake")
def test_affinities_outlive_s3(host, evidence):
    """After S3 guests have their hard and soft affinity, CPUs their nodes, and the guests' memory is where it was."""
    told = topology(host)
    (first, of_first), (second, of_second) = bound(host, told)
    with host.domain(first) as hard, host.domain(second) as soft:
        for guest in (hard, soft):
            guest.beats(2)
        before = [memory_of(guest, evidence) for guest in (hard, soft)]
        sleep = suspend(host, wake_after=ASLEEP)
        evidence.add("sleep", sleep.text(), kind="console", board=host.name)
        sleep.check()
        evidence.add("xl vcpu-list", host.xl("vcpu-list").stdout, board=host.name)
        after = topology(host)
        assert after.node_of_cpu == told.node_of_cpu, f"CPUs and nodes were {told.node_of_cpu}, are {after.node_of_cpu}"
        for guest, wanted in ((hard, of_first), (soft, of_second)):
            found = affinities(guest, after)
            assert found == [wanted], f"{guest.name}: the affinity was {wanted}, and is {found}"
            guest.beats(3)
            assert_unbroken(guest.heartbeats())
        now = [memory_of(guest, evidence) for guest in (hard, soft)]
        assert now == before, f"pages by node were {before}, and are {now}"


GUESTS = 20


def test_no_node_loses_memory(host, evidence):
    """After twenty guests came and went, on all nodes in turn, each node has as much free memory as before."""
    nodes = topology(host).nodes

    def come_and_go(times):
        for number in range(times):
            node = nodes[number % len(nodes)]
            with host.domain(guest_of(host, "idle", 16, cpus=f'[ "node:{node}" ]'), paused=True):
                pass
        host.free_pages()  # no domain is dying
        return nodes_free(host.debug_keys("u"))

    before = come_and_go(2 * len(nodes))  # what Xen and dom0 keep for later, they keep from the first guests on
    after = come_and_go(GUESTS)
    lost = {node: before[node] - after[node] for node in nodes}
    evidence.add(
        "free pages by node", f"before: {before}\nafter {GUESTS} guests: {after}", kind="note", board=host.name
    )
    for node, pages in lost.items():
        evidence.figure(f"lost_of_node_{node}_pages", pages)
    # A guest on a node that loses one page each time makes more than this of it.
    most = GUESTS // len(nodes) // 2
    assert all(pages <= most for pages in lost.values()), f"pages lost by node after {GUESTS} guests: {lost}"
