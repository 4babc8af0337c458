"""Serial over LAN as BMCs refuse it: each gap says its own reason. ipmitool's words are those of real BMCs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consoles import Recording
from free_ports import free_port
from ipmi_sim import Chassis, Simulator, chassis_fixture, simulator_fixture  # noqa: F401
from ipmitool_stand_in import StandIn, stand_in_fixture  # noqa: F401
from test_console import record_fixture, texts  # noqa: F401

from lab.base.wait import wait_until
from lab.console.sources import SolSource, SourceLost, SourceRefused
from lab.inventory import BmcSpec, ConsoleSpec

V2 = "Error: Unable to establish IPMI v2 / RMCP+ session\n"
# An ipmitool 1.8.19 without the registry of enterprise numbers says so first, whatever comes of it.
REGISTRY = "IANA PEN registry open failed: No such file or directory\nFailed to load entries from IANA PEN Registry\n"
NO_RATES = "".join(
    f"Info: SOL parameter '{name}' not supported\n" for name in ("Nonvolatile Bitrate (5)", "Volatile Bitrate (6)")
)
OTHER = "Info: SOL payload already active on another session\n"


def rule(match: str, err: str = "", rc: int = 1, out: str = "") -> dict[str, Any]:
    return {"match": match, "answers": [{"out": out, "err": err, "rc": rc}]}


ENDED = rule("sol deactivate", f"{REGISTRY}Info: SOL payload already de-activated\n")
BMC = BmcSpec(host="192.0.2.1", credential="test")


@pytest.fixture(name="opened")
def opened_fixture(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SourceLost]:
    """What keeps a source from opening, by what ipmitool says."""
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", "lab:canary-of-sol")

    def opened(*rules: dict[str, Any], bmc: BmcSpec = BMC) -> SourceLost:
        stand_in.plays(list(rules))
        source = SolSource(bmc)
        try:
            with pytest.raises(SourceLost) as caught:
                source.open()
        finally:
            source.close()
        assert str(caught.value).startswith("sol 192.0.2.1:623: ") and "canary" not in str(caught.value)
        return caught.value

    return opened


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (f"{REGISTRY}{OTHER}", "SOL payload already active on another session"),
        (OTHER, "SOL payload already active on another session"),
        (f"{REGISTRY}Info: SOL payload disabled\n", "SOL payload disabled"),
        (f"{OTHER}Close Session command failed\n", "SOL payload already active on another session"),
        ("Info: cannot activate SOL payload without encryption\n", "cannot activate SOL payload without encryption"),
        (f"{REGISTRY}Error activating SOL payload: Insufficient privilege level\n", "Insufficient privilege level"),
        ("Unable to Get Channel Cipher Suites\nError: no such port\n", "Error: no such port"),
        (REGISTRY, "IANA PEN registry open failed"),
        # OpenBMC has no bit rates of its own: openbmc/phosphor-host-ipmid#174. ipmitool/ipmitool#254.
        (f"{NO_RATES}Error: No response activating SOL payload\n", "No response activating SOL payload"),
        (
            f"{NO_RATES}Error: Unexpected data length (1) received in payload activation response\n",
            "Unexpected data length (1) received in payload activation response",
        ),
        # xcat2/xcat-core#1090, xcat2/goconserver#30
        ("tcgetattr: Inappropriate ioctl for device\nIPMI Request Match NOT FOUND\nno way\n", "no way"),
        ("Info: SOL payload already de-activated\nSOL session closed by BMC\nError in SOL session\n", "closed by BMC"),
    ],
)
def test_a_refused_session_says_its_reason_and_not_ipmitools_banner(
    opened: Callable[..., SourceLost], said: str, reason: str
) -> None:
    error = opened(ENDED, rule("sol activate", said))
    assert reason in str(error) and not isinstance(error, SourceRefused)
    assert ("IANA" in str(error)) is (said == REGISTRY), "what is no reason is said only where there is nothing else"


# What `sol deactivate` says (all the same), what `-v mc info` says, and what the gap must.
NO_SESSION = {
    "wrong password": ("RAKP 2 HMAC is invalid\n", SourceRefused, "refused the login (RAKP 2 HMAC is invalid)"),
    "unknown user": (
        "RAKP 2 message indicates an error : unauthorized name\n",
        SourceRefused,
        "refused the login (unauthorized name)",
    ),
    "cipher": (
        "Error in open session response message : no matching cipher suite\n\n",
        SourceLost,
        "no matching cipher suite): check bmc.cipher",
    ),
    "privilege": (
        "Set Session Privilege Level to ADMINISTRATOR failed: Insufficient privilege level\n",
        SourceRefused,
        "bmc.privilege",
    ),
    "all sessions in use": (
        "Error in open session response message : insufficient resources for session\n",
        SourceLost,
        "has no free session",
    ),
    "dead": ("", SourceLost, "no answer from the BMC within"),
}


@pytest.mark.parametrize(("verbose", "kind", "reason"), NO_SESSION.values(), ids=NO_SESSION)
def test_a_bmc_that_gives_no_session_is_told_by_why(
    opened: Callable[..., SourceLost], verbose: str, kind: type[SourceLost], reason: str
) -> None:
    error = opened(rule(" -v ", f"{REGISTRY}{verbose}{V2}"), rule("sol", f"{REGISTRY}{V2}"))
    assert reason in str(error) and type(error) is kind


def test_a_reason_that_comes_without_being_asked_is_not_asked_for(
    opened: Callable[..., SourceLost], stand_in: StandIn
) -> None:
    said = "Error in open session response message : no matching cipher suite\n\n"
    error = opened(rule("sol", f"{said}{V2}"), bmc=replace(BMC, cipher=17))
    assert "no matching cipher suite" in str(error)
    assert not stand_in.calls(" -v ")


def test_a_login_that_is_refused_when_sol_is_activated_is_a_refusal_too(opened: Callable[..., SourceLost]) -> None:
    error = opened(rule(" -v ", f"RAKP 2 HMAC is invalid\n{V2}"), ENDED, rule("sol activate", f"{REGISTRY}{V2}"))
    assert isinstance(error, SourceRefused) and "refused the login" in str(error)


def test_the_cipher_suite_is_found_out_where_the_inventory_names_none(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", "lab:canary-of-sol")
    refusal = f"Error in open session response message : no matching cipher suite\n\n{V2}"
    banner = "[SOL Session operational.  Use \\xff? for help]\nhello"
    stand_in.plays([rule("-C 17 ", refusal), rule("sol deactivate", rc=0), rule("sol activate", rc=0, out=banner)])
    source = SolSource(replace(BMC, privilege="operator"))
    source.open()
    try:
        assert source.read() == b"hello"
        (call,) = stand_in.calls("sol activate")
        assert " -C 3 -L OPERATOR " in " ".join(call) and "canary" not in " ".join(call)
    finally:
        source.close()


def test_a_refused_login_is_not_repeated_by_the_recorder(
    stand_in: StandIn, record: Callable[..., Recording], tmp_path: Path
) -> None:
    """Accounts of BMCs are locked for that. A password that was put right is tried at once."""
    stand_in.plays([rule(" -v ", f"RAKP 2 HMAC is invalid\n{V2}"), rule("sol", V2)])
    folder = tmp_path / "config" / "xenlab"
    folder.mkdir(parents=True)
    file = folder / "credentials.yaml"
    file.write_text('test: {user: lab, password: "canary-wrong"}\n')
    file.chmod(0o600)
    spec = ConsoleSpec("sol", serve_port=0, lines_port=0)
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": os.environ["PATH"]}
    with record(spec, bmc=BMC, environment=environment).console() as console:
        (gap,) = wait_until(lambda: texts(console.lines(0), "gap"), 30.0, "gap", interval=0.05)
        assert "refused the login" in gap
        tried = len(stand_in.calls())
        time.sleep(6.0)  # the longest pause between two attempts to open another source is 5 s
        assert len(stand_in.calls()) == tried
        file.write_text('test: {user: lab, password: "canary-right"}\n')
        wait_until(lambda: len(stand_in.calls()) > tried, 20.0, "another try", interval=0.05)


def test_a_bmc_in_front_of_nothing_and_one_with_another_password_are_told_apart(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real ipmitool, in front of a real BMC."""
    monkeypatch.setenv("XENLAB_CREDENTIAL_TEST", f"{simulator.user}:canary-wrong")
    with pytest.raises(SourceRefused, match="refused the login"):
        SolSource(simulator.spec).open()
    with pytest.raises(SourceLost, match="check bmc.cipher"):
        SolSource(replace(simulator.spec, cipher=17)).open()
    started = time.monotonic()
    dead = replace(simulator.spec, port=free_port(socket.SOCK_DGRAM))
    with pytest.raises(SourceLost, match="no answer from the BMC within") as caught:
        SolSource(dead).open()
    assert type(caught.value) is SourceLost and time.monotonic() - started < 60.0
