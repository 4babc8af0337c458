"""Guests with virtual NUMA nodes (`vnuma=`): where their memory is, and what they are told."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lab.base.errors import ToolstackFailed
from lab.xen.domain import assert_unbroken, numbers
from lab.xen.guests import payload
from lab.xen.migration_matrix import known_findings
from lab.xen.numa import memory_of, pnodes, topology

KNOWN = known_findings.read(Path(__file__).with_name("known.yaml"), ["pvh-with-vnodes"], ["built"])

pytestmark = [pytest.mark.weekly, pytest.mark.needs("hap", "numa"), pytest.mark.usefixtures("scrubbed")]

ASIDE = 256  # most pages that an HVM guest has beside its memory, for its devices, or lacks of it, in the holes for VGA
DISTANCES = ((10, 21), (23, 10))  # none is another one's, so that none can be taken for another


@pytest.fixture
def scrubbed(host):
    """A host whose free memory is clean: Xen prefers clean memory of another node to dirty memory of the right one."""
    host.wait_scrubbed()


@dataclass(frozen=True)
class Vnode:
    pnode: int
    mib: int


def crossed(host, *sizes_mib):
    """Virtual nodes of these sizes: the first one on the host's last node, the second one on its first."""
    nodes = topology(host).nodes
    return [Vnode(pnode, mib) for pnode, mib in zip((nodes[-1], nodes[0]), sizes_mib, strict=True)]


def with_vnodes(config, vnodes):
    """The guest with these virtual nodes; vCPU N is in virtual node N."""
    lines = [
        f'"pnode={vnode.pnode}", "size={vnode.mib}", "vcpus={number}", "vdistances={",".join(map(str, distances))}"'
        for number, (vnode, distances) in enumerate(zip(vnodes, DISTANCES, strict=True))
    ]
    text = "[ " + ", ".join(f"[ {line} ]" for line in lines) + " ]"
    memory_mib = sum(vnode.mib for vnode in vnodes)
    return replace(config, vcpus=len(vnodes), memory_mib=memory_mib, more={**config.more, "vnuma": text})


def assert_placed(pages, vnodes):
    """Each virtual node's memory is on its node."""
    for vnode in vnodes:
        assert abs(pages[vnode.pnode] - vnode.mib * 256) <= ASIDE, (
            f"node {vnode.pnode} was to have {vnode.mib * 256} pages of the guest; pages by node: {pages}"
        )


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("kind", ["hvm64", pytest.param("hvm32", marks=pytest.mark.needs("hvm32"))])
def test_a_guest_is_told_its_virtual_nodes(host, evidence, kind):
    """Each virtual node's memory is on its node; and the guest is told vCPUs, memory and distances as xl.cfg has them.

    Source: docs/man/xl.cfg.5.pod.in, vnuma; xen/include/public/memory.h, XENMEM_get_vnumainfo.
    """
    vnodes = crossed(host, 24, 40)
    config = with_vnodes(payload(host, kind, "vnuma,memory"), vnodes)
    with host.domain(config) as guest:
        dump = host.debug_keys("u")
        told = pnodes(dump, guest.domid())
        pages = memory_of(guest, evidence)
        results = guest.results(60.0)
        evidence.console("guest console", guest)
        assert told == {number: vnode.pnode for number, vnode in enumerate(vnodes)}, f"debug key u: {told}"
        assert_placed(pages, vnodes)
        assert results["vnuma"].outcome == "PASS", results["vnuma"].detail
        seen = {name: numbers(line.detail) for name, line in results.items() if name.startswith("vnuma-")}
        of_vcpus = {name: words["vnode"] for name, words in seen.items() if "vcpu" in name}
        assert of_vcpus == {"vnuma-vcpu-0": 0, "vnuma-vcpu-1": 1}, f"virtual nodes of the vCPUs: {of_vcpus}"
        distances = {name: words["is"] for name, words in seen.items() if "distance" in name}
        wanted = {f"vnuma-distance-{one}-{other}": DISTANCES[one][other] for one in (0, 1) for other in (0, 1)}
        assert distances == wanted, f"the guest is told {distances}, and xl.cfg has {wanted}"
        ranges = [(words["vnode"], words["start"], words["end"]) for name, words in seen.items() if "range" in name]
        middle, end = 24 << 20, 64 << 20
        assert sorted(ranges) == [(0, 0, middle), (1, middle, end)], f"ranges of memory: {ranges}"
        assert results["memory"].outcome == "PASS", results["memory"].detail


def test_a_pvh_guest_has_its_virtual_nodes(host, evidence):
    """xl builds a PVH guest with virtual nodes, and its memory is on their nodes.

    Source: docs/man/xl.cfg.5.pod.in, vnuma, which excepts PV guests alone. A known failure is excused by name
    (known.yaml).
    """
    vnodes = crossed(host, 24, 40)
    with known_findings.excusing(KNOWN, evidence, host.info()["xen_version"], "pvh-with-vnodes", "built"):
        try:
            with host.domain(with_vnodes(payload(host, "pvh64", "vnuma,memory"), vnodes)) as guest:
                pages = memory_of(guest, evidence)
                results = guest.results(60.0)
        except ToolstackFailed as error:
            raise AssertionError(f"xl does not build it: {error}") from error
        assert_placed(pages, vnodes)
        for name in ("vnuma", "memory"):
            assert results[name].outcome == "PASS", results[name].detail


@pytest.mark.needs("qemu")
def test_a_guest_with_virtual_nodes_is_not_saved_and_runs_on(host, evidence):
    """`xl save` refuses a guest with virtual nodes, since a file does not keep them; the guest loses no heartbeat.

    Source: docs/man/xl.cfg.5.pod.in, vnuma; tools/libs/light/libxl_dom_save.c.
    """
    config = with_vnodes(payload(host, "hvm64", "memory,heartbeat"), crossed(host, 16, 16))
    file = f"/var/tmp/{config.name}.saved"
    with host.domain(config) as guest:
        guest.beats(2)
        try:
            done = host.xl("save", guest.name, file, timeout=180, check=False)
        finally:
            host.run(f"rm -f {file}")
        evidence.add("xl save", done.stdout + done.stderr, board=host.name)
        assert done.status, "xl save has saved a guest with virtual nodes"
        assert "Cannot save a guest with vNUMA configured" in done.stderr, done.stderr
        guest.beats(3)
        assert_unbroken(guest.heartbeats())
