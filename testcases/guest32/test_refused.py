"""Where Xen has no 32-bit PV guests, they are refused with the right message; and a PV shim runs them."""

import pytest

from lab.xen.domain import DomainConfig, numbers
from lab.xen.guests import payload

REFUSAL = "guest type xen-3.0-x86_32p not supported by xen kernel, sorry"  # tools/libs/guest/xg_dom_boot.c

# A shim sets up the grant table and tells its size, and refuses all else of it: xen/arch/x86/pv/shim.c,
# pv_shim_grant_table_op. `done` counts these refusals.
NOT_IN_A_SHIM = {"grant-version", "grant-swap", "grant-copy", "grant-unmap", "done"}


def assert_refused(host, evidence):
    """`xl create` of a 32-bit PV guest fails at once, says why, and leaves nothing behind."""
    config = payload(host, "pv32", "mode")
    before = host.free_memory_mib()
    done = host.run(
        f"mkdir -p /run/xenlab && cat > /run/xenlab/{config.name}.cfg <<'XL'\n{config.text()}XL\n"
        f"xl create /run/xenlab/{config.name}.cfg",
        check=False,
    )
    said = done.stdout + done.stderr
    evidence.add("xl create", said, board=host.name)
    evidence.add("xl info xen_caps", host.info()["xen_caps"], board=host.name)
    assert done.status != 0, "the guest was created"
    assert REFUSAL in said, f"xl refused it with another message: {said[-300:]}"
    assert not host.domains(), "a domain was left behind"
    assert host.free_memory_mib() >= before - 1
    with host.domain(payload(host, "pv64", "mode")) as guest:
        assert guest.results()["mode"].outcome == "PASS"


@pytest.mark.needs("pv32")
@pytest.mark.xen_options("pv=no-32")
def test_switched_off_on_the_command_line(host, evidence):
    """With `pv=no-32`, Xen offers no 32-bit PV: such a guest is refused at once, and a 64-bit PV guest runs."""
    assert "xen-3.0-x86_32p" not in host.info()["xen_caps"].split(), "Xen still offers 32-bit PV"
    assert_refused(host, evidence)


@pytest.mark.needs("no-pv32")
def test_not_compiled_in(host, evidence):
    """A build without CONFIG_PV32 refuses a 32-bit PV guest at once, and runs a 64-bit PV guest."""
    assert_refused(host, evidence)


@pytest.mark.needs("hap", "shim")
def test_pv32_in_a_shim(host, evidence):
    """A 32-bit PV kernel inside the PV shim, which is a Xen in a PVH guest, passes its hypercall checks."""
    plain = payload(host, "pv32", "mode,hypercalls", memory_mib=128)
    config = DomainConfig(plain.name, "pvh", plain.kernel, memory_mib=128, cmdline=plain.cmdline, more={"pvshim": "1"})
    with host.domain(config) as guest:
        results = guest.results(90.0)
        evidence.console("guest console", guest)
        assert numbers(results["mode"].detail)["bits"] == 32
        failed = [line for name, line in results.items() if line.outcome == "FAIL" and name not in NOT_IN_A_SHIM]
        assert not failed, f"{failed[0].case}: {failed[0].detail}"
