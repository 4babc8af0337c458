"""Where xl and Xen place guests: by their processors, by xl's own policy, in CPU pools; and where Xen places dom0."""

import contextlib
from contextlib import ExitStack
from dataclasses import replace

import pytest

from lab.xen.domain import assert_unbroken, node_pages, nodes_free
from lab.xen.guests import payload
from lab.xen.numa import BESIDE, assert_of, memory_of, read_affinities, topology

pytestmark = [pytest.mark.weekly, pytest.mark.needs("hap"), pytest.mark.usefixtures("scrubbed")]

MIB = 32
PAGES = MIB * 256
LOOKED = "New best NUMA placement candidate found"  # what xl says when it has found a place


@pytest.fixture
def scrubbed(host):
    """A host whose free memory is clean: Xen prefers clean memory of another node to dirty memory of the right one."""
    host.wait_scrubbed()


def guest_of(host, work="idle", memory_mib=MIB, vcpus=1, **more):
    """A guest with these further lines in its xl.cfg."""
    config = payload(host, "pvh64", work, memory_mib=memory_mib, vcpus=vcpus)
    return replace(config, more={**config.more, **more})


def on(*nodes):
    """The line ``cpus`` for a guest of one vCPU that may run on these nodes alone."""
    return '[ "' + ",".join(f"node:{node}" for node in nodes) + '" ]'


@pytest.mark.needs("numa-4")
def test_a_guest_is_of_the_nodes_asked_for_alone(host, evidence):
    """A guest that may run on two of four nodes (`cpus=`) has memory of both, and of no other node."""
    nodes = topology(host).nodes[1::2][:2]
    with host.domain(guest_of(host, "memory", cpus=on(*nodes))) as guest:
        pages = memory_of(guest, evidence)
        results = guest.results(60.0)
        evidence.console("guest console", guest)
        assert_of(nodes, pages, PAGES)
        assert results["memory"].outcome == "PASS", results["memory"].detail


@pytest.mark.needs("numa-4")
def test_guests_that_ask_for_nothing_go_to_a_node_each(host, evidence):
    """xl gives each of as many guests as there are nodes a node of its own, since it takes the one with fewest vCPUs.

    Source: docs/man/xl-numa-placement.7.pod, "Placing the guest automatically".
    """
    nodes, homes = topology(host).nodes, {}
    with ExitStack() as stack:
        guests = [stack.enter_context(host.domain(guest_of(host), paused=True)) for _ in nodes]
        dump = host.debug_keys("u")
        evidence.add("memory by node (debug key u)", dump, kind="console", board=host.name)
        for guest in guests:
            pages = node_pages(dump, guest.domid())
            homes[guest.name] = max(pages, key=lambda node: pages[node])
            assert LOOKED in guest.builder_output, "xl did not look for a place"
            assert_of([homes[guest.name]], pages, PAGES)
    assert sorted(homes.values()) == nodes, f"the guests are on nodes {list(homes.values())}, and the host has {nodes}"


@pytest.mark.needs("numa-4")
def test_a_guest_of_more_processors_than_a_node_has_is_of_two(host, evidence):
    """xl places a guest with one vCPU more than a node has CPUs on two nodes, and not on all of them.

    Source: tools/libs/light/libxl_numa.c, libxl__get_numa_candidate: as few nodes as have the CPUs.
    """
    told = topology(host)
    counts = {len(told.cpus(node)) for node in told.nodes}
    if len(counts) > 1:
        pytest.skip(f"the nodes of this host have {sorted(counts)} CPUs: xl then begins with one node")
    with host.domain(guest_of(host, vcpus=counts.pop() + 1), paused=True) as guest:
        evidence.add("xl create", guest.builder_output, board=host.name)
        pages = memory_of(guest, evidence)
        assert LOOKED in guest.builder_output, "xl did not look for a place"
        assert_of(sorted(pages, key=lambda node: -pages[node])[:2], pages, PAGES)


@pytest.mark.needs("numa")
def test_a_node_without_the_memory_is_passed_over(host, evidence):
    """xl places a guest on a node that has the memory for it, though another node has fewer vCPUs.

    Source: docs/man/xl-numa-placement.7.pod, "Placing the guest automatically".
    """
    *others, full = topology(host).nodes
    with ExitStack() as stack:
        for node in [*others, *others]:
            stack.enter_context(host.domain(guest_of(host, memory_mib=16, cpus=on(node)), paused=True))
        free = nodes_free(host.debug_keys("u"))[full] // 256
        stack.enter_context(
            host.domain(guest_of(host, memory_mib=(free - free // 50 - MIB), cpus=on(full)), paused=True)
        )
        left = nodes_free(host.debug_keys("u"))[full] // 256
        size = left + MIB
        with host.domain(guest_of(host, memory_mib=size), paused=True) as guest:
            evidence.add("xl create", guest.builder_output, board=host.name)
            pages = memory_of(guest, evidence)
            evidence.figure("left_mib", left)
            assert LOOKED in guest.builder_output, "xl did not look for a place"
            assert pages[full] <= BESIDE, f"node {full} had {left} MiB, and a guest of {size} MiB got {pages}"
            assert sum(pages.values()) >= size * 256, f"a guest of {size} MiB has {pages}"


def vcpus_of_dom0(host):
    """How many vCPUs of dom0 are online."""
    return next(row.vcpus for row in host.rows() if not row.domid)


@contextlib.contextmanager
def split(host, evidence):
    """Within the block there is a CPU pool for each node; then one for all CPUs again, with dom0's vCPUs as before."""
    names = [line.split()[0] for line in host.xl("cpupool-list").stdout.splitlines()[1:]]
    if len(names) != 1:
        evidence.unproved(f"the host has CPU pools already: {names}")
    online = vcpus_of_dom0(host)
    try:
        host.xl("cpupool-numa-split")
        yield
    finally:
        first, *others = [line.split()[0] for line in host.xl("cpupool-list").stdout.splitlines()[1:]]
        for name in others:
            host.xl("cpupool-destroy", name)
        if first != names[0]:
            host.xl("cpupool-rename", first, names[0])
        host.xl("cpupool-cpu-add", names[0], "all")
        host.xl("vcpu-set", "Domain-0", str(online))
        # dom0's kernel has them now, and brings them up when it is told to, which is udev's work on most dom0s.
        host.run("for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $cpu; done 2>/dev/null; true")


@pytest.mark.needs("numa")
def test_a_guest_in_the_pool_of_a_node_is_of_that_node(host, evidence):
    """A guest in a node's pool (`xl cpupool-numa-split`) runs and has its memory there, and moves to other pools.

    Afterwards one pool has all CPUs again.
    """
    told, online = topology(host), vcpus_of_dom0(host)
    first, *_, last = told.nodes

    def runs_on(guest):
        return int(host.xl("vcpu-list", guest.name).stdout.splitlines()[-1].split()[3])

    with split(host, evidence):
        listed = host.xl("cpupool-list", "-c").stdout
        evidence.add("xl cpupool-list -c", listed, board=host.name)
        pools = dict(line.split()[:2] for line in listed.splitlines()[1:])
        wanted = {f"Pool-node{node}": ",".join(map(str, sorted(told.cpus(node)))) for node in told.nodes}
        assert pools == wanted, f"the pools and their CPUs are {pools}, and the nodes {wanted}"
        with host.domain(guest_of(host, "memory,heartbeat", pool=f'"Pool-node{last}"')) as guest:
            guest.beats(2)
            assert_of([last], memory_of(guest, evidence), PAGES)
            for node in (last, first, last):
                host.xl("cpupool-migrate", guest.name, f"Pool-node{node}")
                guest.beats(2)
                cpu = runs_on(guest)
                assert cpu in told.cpus(node), f"the guest in Pool-node{node} runs on CPU {cpu}"
            assert_unbroken(guest.heartbeats())
    listed = host.xl("cpupool-list", "-c").stdout
    after = topology(host)
    evidence.add("xl cpupool-list -c, afterwards", listed, board=host.name)
    assert len(listed.splitlines()) == 2, f"more than one pool is left: {listed}"
    assert vcpus_of_dom0(host) == online, f"dom0 had {online} vCPUs, and has {vcpus_of_dom0(host)}"
    assert after.node_of_cpu == told.node_of_cpu, (
        f"CPUs and their nodes were {told.node_of_cpu}, and are {after.node_of_cpu}"
    )


@pytest.mark.needs("numa")
@pytest.mark.xen_options("dom0_nodes=1")
def test_dom0_is_of_the_node_asked_for(host, evidence):
    """With `dom0_nodes=1` dom0 runs on node 1 alone, and has its memory there, but for what DMA needs below 4 GiB."""
    told = topology(host)
    dump, listed = host.debug_keys("u"), host.xl("vcpu-list", "Domain-0").stdout
    evidence.add("memory by node (debug key u)", dump, kind="console", board=host.name)
    evidence.add("xl vcpu-list Domain-0", listed, board=host.name)
    pages = node_pages(dump, 0)
    evidence.figure("dom0_of_node_1_pages", pages[1])
    assert pages[1] >= 0.8 * sum(pages.values()), f"dom0's memory is {pages}"
    hard = [affinity.hard for affinity in read_affinities(listed, frozenset(told.node_of_cpu))]
    assert hard, f"dom0 has no vCPU: {listed}"
    assert all(cpus <= told.cpus(1) for cpus in hard), f"dom0 may run on CPUs {hard}; node 1 has {told.cpus(1)}"
