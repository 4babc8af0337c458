"""A board on which Xen does not use the IOMMU: no guest gets a device."""

import pytest

from lab.base.errors import ToolstackFailed
from lab.xen.guests import linux
from lab.xen.pci import port

pytestmark = [pytest.mark.full, pytest.mark.needs("spare-nic"), pytest.mark.xen_options("iommu=off")]


def test_no_device_without_an_iommu(host, evidence):
    """Without an IOMMU in use, a guest is refused a device, and xl says why.

    Source: tools/libs/light/libxl_create.c.
    """
    device = port(host, "spare")
    assert not {"pv_directio", "hvm_directio"} & set(host.info()["virt_caps"].split())
    with pytest.raises(ToolstackFailed) as refused, host.domain(linux(host, "pv", "idle", pci=(device.address,))):
        pass
    evidence.add("xl create", refused.value.output[-2000:], board=host.name)
    assert "passthrough not supported on this platform" in refused.value.output
    assert not host.domains(), "a domain was left behind"
    assert device.interface in host.run("ls /sys/class/net").stdout.split(), "dom0 has lost the port"
