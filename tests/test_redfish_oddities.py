"""RedfishBmc against what services do now and then: pages, tasks, redirects, sessions, answers that are none."""

from __future__ import annotations

import email.utils
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from redfish_zoo import (  # noqa: F401
    PASSWORD,
    QUICK,
    SHAPES,
    USER,
    Answer,
    Instead,
    MakeZoo,
    Zoo,
    error,
    links,
    zoo_fixture,
)

from lab.base.credentials import Credential
from lab.base.errors import (
    BmcBusy,
    BmcRefused,
    CommandFailed,
    CommandRefused,
    LicenceMissing,
    LoginRefused,
    MissingCapability,
    PowerTimeout,
    PowerUnknown,
    PrivilegeRefused,
    SessionsExhausted,
    TlsRefused,
    UsageError,
)
from lab.base.processes import port_is_taken
from lab.base.wait import wait_until
from lab.bmc.redfish import RedfishBmc
from lab.inventory import BmcSpec

RESET = "Systems/1/Actions/ComputerSystem.Reset"
LOGIN = "SessionService/Sessions"


def once(*what: str, answer: Answer, times: int = 1) -> Instead:
    """This answer to the first requests of this method and path; then the usual ones."""
    left = [times]

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if (method, path) != what or not left[0]:
            return None
        left[0] -= 1
        return answer

    return instead


def still(service: Zoo, state: Any) -> Zoo:
    """A service whose power state stays so."""
    service.habits.keeps_state = True
    service.tree["Systems/1"]["PowerState"] = state
    return service


# Power


@pytest.mark.parametrize("state", ["PoweringOn", "PoweringOff"])
def test_a_board_on_its_way_is_not_there_yet_whichever_way_it_goes(zoo: MakeZoo, state: str) -> None:
    service = still(zoo("supermicro"), state)
    bmc = service.bmc()
    for switch, kind in ((bmc.power_off, "ForceOff"), (bmc.power_on, "On")):
        with pytest.raises(PowerTimeout):
            switch(0.4)
        assert service.resets()[-1] == kind
    assert bmc.is_powered() is (state == "PoweringOff")


def test_a_board_that_arrives_is_seen_there(zoo: MakeZoo) -> None:
    service = zoo("supermicro", states=["PoweringOff", "PoweringOff", "Off"])
    service.tree["Systems/1"]["PowerState"] = "On"
    service.bmc().power_off(5.0)
    assert service.resets() == ["ForceOff"]


@pytest.mark.parametrize("state", [["On"], {"State": "On"}, 1, "ON", ""])
def test_a_power_state_that_is_none_is_unknown(zoo: MakeZoo, state: Any) -> None:
    with pytest.raises(PowerUnknown):
        still(zoo("supermicro"), state).bmc().is_powered()


@pytest.mark.parametrize(
    "actions",
    [None, {}, [], {"#ComputerSystem.Reset": None}, {"#ComputerSystem.Reset": {"target": None}}],
)
def test_a_system_without_a_reset_is_refused_at_once(zoo: MakeZoo, actions: Any) -> None:
    service = zoo("supermicro")
    service.tree["Systems/1"]["Actions"] = actions
    bmc = service.bmc()
    with pytest.raises(CommandRefused, match="the BMC offers no Reset at all"):
        bmc.power_on(60.0)
    with pytest.raises(MissingCapability, match="bmc-nmi"):
        bmc.nmi()


@pytest.mark.parametrize("info", [None, "/redfish/v1/gone", {"@odata.id": "/redfish/v1/gone"}, 7])
def test_a_service_that_does_not_say_which_resets_it_has_is_told_what_is_wanted(zoo: MakeZoo, info: Any) -> None:
    service = zoo("supermicro")
    reset = service.tree["Systems/1"]["Actions"]["#ComputerSystem.Reset"]
    del reset["ResetType@Redfish.AllowableValues"]
    reset["@Redfish.ActionInfo"] = info
    service.bmc().power_on(5.0)
    assert service.resets() == ["On"]


@pytest.mark.parametrize("values", [None, [], [None], [{"Name": "ResetType"}], [{"Name": None}], "odd"])
def test_an_action_info_that_says_nothing_is_as_none(zoo: MakeZoo, values: Any) -> None:
    service = zoo("dell")
    service.tree["Systems/System.Embedded.1/ResetActionInfo"]["Parameters"] = values
    service.bmc().power_on(5.0)
    assert service.resets() == ["On"]


# Which system


@pytest.mark.parametrize("members", [[], None, [{"error": {}}]])
def test_a_service_without_its_inventory_is_asked_again(zoo: MakeZoo, members: Any) -> None:
    """As long as a BMC has not read what it is in, it shows no system."""
    service = zoo("supermicro")
    service.instead = once("GET", "Systems", answer=(200, {"Members": members}, {}))
    assert not service.bmc().is_powered()
    service.tree["Systems"]["Members"] = members
    with pytest.raises(BmcBusy, match="the service shows no system, or not yet"):
        service.bmc().power_on(0.5)


def test_members_come_in_pages(zoo: MakeZoo) -> None:
    service = zoo("cray")
    service.tree["Systems"] = {"Members": links("Systems/Node0"), "Members@odata.nextLink": "/redfish/v1/Systems?p=2"}
    service.tree["Systems?p=2"] = {"Members": links("Systems/Node1"), "Members@odata.nextLink": "/redfish/v1/Systems"}
    with pytest.raises(UsageError, match="it is one of Node0, Node1"):
        service.bmc().is_powered()
    assert not service.bmc(system="Node1").is_powered()
    assert list(service.bmc().systems()) == ["Node0", "Node1"]
    managers = zoo("intel")
    for word in ("Managers", "Chassis"):
        paged = {"Members": [], "Members@odata.nextLink": f"/redfish/v1/{word}?p=2"}
        managers.tree[f"{word}?p=2"], managers.tree[word] = managers.tree[word], paged
    assert managers.bmc().clock() and managers.bmc().sensors() == {"Fan": "no reading"}


@pytest.mark.parametrize("path", ["", "Systems", "Systems/1"])
@pytest.mark.parametrize("answer", [[], "odd", 7])
def test_an_answer_that_is_no_resource_is_a_failed_command(zoo: MakeZoo, path: str, answer: Any) -> None:
    service = zoo("supermicro")
    service.tree[path] = answer
    with pytest.raises(CommandFailed, match="is no resource|shows no system"):
        service.bmc().power_on(0.5)


# Tasks


def test_a_task_that_fails_is_a_command_that_failed(zoo: MakeZoo) -> None:
    service = zoo("openbmc", task_fails="The host is locked.")
    bmc = service.bmc()
    for command in (bmc.reset, bmc.nmi, bmc.soft_off):
        with pytest.raises(CommandFailed, match=r"its task ended as Exception: The host is locked\. \[TaskEvent"):
            command()


def test_a_change_that_a_task_makes_is_seen_to_be_made(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    task = {"TaskState": "Exception", "Messages": [{"MessageId": "Task.1.0.Failed", "Message": "BIOS is locked"}]}
    service.tree["TaskService/Tasks/9"] = task
    accepted = (202, {"@odata.id": "/redfish/v1/TaskService/Tasks/9"}, {})
    service.instead = once("PATCH", "Systems/1", answer=accepted, times=9)
    with pytest.raises(CommandFailed, match="BIOS is locked"):
        service.bmc().set_boot_device("pxe")
    service.tree["TaskService/Tasks/9"] = {"TaskState": "Completed", "TaskStatus": "OK"}
    service.bmc().set_boot_device("pxe")


@pytest.mark.parametrize(("status", "fails"), [(400, True), (204, False), (404, False)])
def test_a_task_monitor_says_what_the_command_came_to(zoo: MakeZoo, status: int, fails: bool) -> None:
    """Its address may name another host, which is not asked: that host would be told the login."""
    service = zoo("supermicro")
    runs = [2]

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if method == "POST" and path == RESET:
            return 202, None, {"Location": "http://192.0.2.1/redfish/v1/TaskMonitors/7"}
        if path != "TaskMonitors/7":
            return None
        runs[0] -= 1
        said = error("Base.1.8.GeneralError", "not while it updates itself") if status == 400 else None
        return (202, None, {}) if runs[0] > 0 else (status, said, {})

    service.instead = instead
    if fails:
        with pytest.raises(CommandFailed, match="its task ended with HTTP 400: not while it updates itself"):
            service.bmc().reset()
    else:
        service.bmc().reset()
    assert runs == [0]


# Refusals that pass


@pytest.mark.parametrize(
    "message",
    ["iLO.2.14.ResourceNotReadyRetry", "IDRAC.2.8.SYS518", "Base.1.8.ResourceInUse", "Base.1.8.ResourceInStandby"],
)
def test_a_service_that_is_not_ready_is_asked_again(zoo: MakeZoo, message: str) -> None:
    service = zoo("supermicro")
    service.instead = once("POST", RESET, answer=(400, error(message, "wait"), {}))
    service.bmc().reset()
    assert service.resets() == ["ForceRestart", "ForceRestart"]


def test_a_date_to_come_back_at_is_obeyed(zoo: MakeZoo) -> None:
    at = time.time() + 2.0
    service = zoo("supermicro", busy=[(503, email.utils.formatdate(at, usegmt=True))])
    started = time.monotonic()
    assert not service.bmc().is_powered()
    assert time.monotonic() - started >= 0.9, "a date has whole seconds"


def test_an_etag_that_changes_with_each_look_is_sent_as_it_was_last(zoo: MakeZoo) -> None:
    service, looks = zoo("supermicro"), [0]

    def instead(request: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if path != "Systems/1":
            return None
        if method == "GET":
            looks[0] += 1
            return 200, service.tree[path], {"ETag": f'W/"{looks[0]}"'}
        sent = request.headers.get("If-Match")
        if sent == f'W/"{looks[0]}"':
            return None
        return (412 if sent else 428), error("Base.1.8.PreconditionFailed", "The ETag did not match."), {}

    service.instead = instead
    service.bmc().set_boot_device("pxe")
    assert service.tree["Systems/1"]["Boot"]["BootSourceOverrideTarget"] == "Pxe"


# Sessions


@pytest.mark.parametrize(
    ("status", "message"),
    [(503, "Base.1.8.SessionLimitExceeded"), (400, "Base.1.8.CreateLimitReachedForResource")],
)
def test_a_service_whose_sessions_are_all_in_use_is_waited_for(zoo: MakeZoo, status: int, message: str) -> None:
    service = zoo("supermicro", basic=False)
    full = (status, error(message, "too many sessions"), {})
    service.instead = once("POST", LOGIN, answer=full, times=2)
    assert not service.bmc().is_powered()
    service.instead = once("POST", LOGIN, answer=full, times=99)
    with pytest.raises(SessionsExhausted, match="has no free session .*too many sessions"):
        service.bmc().power_on(0.5)


def test_a_session_at_an_address_of_the_bmcs_own_is_given_back_where_it_was_opened(zoo: MakeZoo) -> None:
    """BMCs behind another address name the one that they know. Nobody else is told the token."""
    service = zoo("supermicro", basic=False)

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if method != "POST" or path != LOGIN:
            return None
        service.sessions.add("token-0")
        return 201, None, {"X-Auth-Token": "token-0", "Location": f"http://192.0.2.1/redfish/v1/{LOGIN}/token-0"}

    service.instead = instead
    bmc = service.bmc()
    assert not bmc.is_powered() and service.sessions
    del bmc
    assert not service.sessions


def test_a_session_without_an_address_is_no_reason_to_give_a_command_twice(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if method == "POST" and path == LOGIN:
            service.sessions.add(f"token-{len(service.sessions)}")
            return 201, None, {"X-Auth-Token": "token-0"}
        return (403, error("Base.1.8.InsufficientPrivilege"), {}) if path == RESET else None

    service.instead = instead
    with pytest.raises(PrivilegeRefused):
        service.bmc().power_on(5.0)
    assert service.resets() == ["On"] and service.sessions == {"token-0"}


@pytest.mark.parametrize("status", [200, 201])
def test_a_session_without_a_token_is_said_so(zoo: MakeZoo, status: int) -> None:
    service = zoo("supermicro", basic=False)
    where = f"/redfish/v1/{LOGIN}/1"
    service.instead = once("POST", LOGIN, answer=(status, {"@odata.id": where}, {"Location": where}))
    with pytest.raises(LoginRefused, match="opens a session without a token"):
        service.bmc().is_powered()
    assert [path for _, path, _ in service.requests].count(LOGIN) == 1


def test_a_login_that_fails_by_a_fault_of_the_service_is_no_wrong_password(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)
    service.instead = once("POST", LOGIN, answer=(500, error("Base.1.8.InternalError", "disk is full"), {}), times=9)
    with pytest.raises(CommandFailed, match="disk is full"):
        service.bmc().is_powered()


def test_a_session_that_runs_out_before_a_command_is_opened_anew_for_it(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)
    bmc = service.bmc()
    assert not bmc.is_powered()
    left = [1]

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if path == RESET and left[0]:
            left[0] = 0
            service.sessions.clear()
        return None

    service.instead = instead
    bmc.power_on(5.0)
    assert service.resets() == ["On", "On"] and len(service.sessions) == 1


def test_a_command_that_the_role_forbids_is_not_given_again_with_another_session(zoo: MakeZoo) -> None:
    service = zoo("supermicro", basic=False)
    bmc = service.bmc()
    service.habits.refused[f"POST {RESET}"] = (403, error("Base.1.8.InsufficientPrivilege", "no"))
    for _ in range(3):
        with pytest.raises(PrivilegeRefused):
            bmc.power_on(5.0)
    assert service.resets() == ["On"] * 3 and len(service.sessions) == 1


def test_a_root_for_users_alone_is_logged_in_to(zoo: MakeZoo) -> None:
    service = zoo("supermicro")

    def instead(request: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        return None if service._is_logged_in(request) else (401, error("Base.1.8.NoValidSession"), {})

    service.instead = instead
    assert not service.bmc().is_powered()
    tried = len(service.requests)
    with pytest.raises(LoginRefused):
        service.bmc(password="wrong").is_powered()
    assert len(service.requests) - tried == 2, "once without a login, once with the wrong one"


# Where the service is


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_command_that_is_redirected_is_not_taken_for_done(zoo: MakeZoo, status: int) -> None:
    """A client makes a GET of it, which succeeds, and the board is not reset."""
    service = zoo("supermicro")

    def instead(request: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if method == "GET":
            return (200, service.tree["Systems/1"], {}) if path == RESET else None
        return None if request.path.endswith("/") else (status, None, {"Location": f"{request.path}/"})

    service.instead = instead
    bmc = service.bmc()
    for command in (bmc.reset, lambda: bmc.set_boot_device("pxe")):
        with pytest.raises(CommandFailed, match="the service has it at http://127.0.0.1:"):
            command()


@pytest.mark.parametrize("status", [307, 308])
def test_a_command_that_is_redirected_as_it_is_is_followed(zoo: MakeZoo, status: int) -> None:
    service = zoo("supermicro")
    service.instead = lambda request, method, path, body: (
        None if request.path.endswith("/") else (status, None, {"Location": f"{request.path}/"})
    )
    bmc = service.bmc()
    bmc.power_on(5.0)
    bmc.set_boot_device("pxe")
    assert bmc.is_powered() and bmc.boot_device() == "pxe"


def test_a_service_that_wants_tls_is_not_followed_to_where_it_is_said_to_be(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    service.instead = lambda request, method, path, body: (301, None, {"Location": f"https://192.0.2.1{request.path}"})
    with pytest.raises(BmcRefused, match=r"sends its clients to https://192\.0\.2\.1/redfish/v1/: check bmc\.tls"):
        service.bmc().is_powered()


# TLS


def over_tls(port: int) -> RedfishBmc:
    spec = BmcSpec("127.0.0.1", "zoo", "redfish", port=port, tls="unverified")
    return RedfishBmc("zoo", spec, Credential(USER, PASSWORD), QUICK)


def test_a_port_without_tls_is_said_to_be_one(zoo: MakeZoo) -> None:
    with pytest.raises(TlsRefused, match="speaks no TLS .*bmc.tls: off"):
        over_tls(zoo("supermicro").port).is_powered()


@pytest.fixture(name="old_tls")
def old_tls_fixture(tmp_path: Path) -> Iterator[int]:
    """A web server of 2010: TLS 1.0 and nothing else."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs openssl")
    pair, port = tmp_path / "pair.pem", free_port()
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=bmc", "-keyout", pair, "-out", pair]
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    serve = [openssl, "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-quiet", "-cert", pair, "-key", pair]
    server = subprocess.Popen(
        [*serve, "-tls1", "-cipher", "DEFAULT@SECLEVEL=0"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: port_is_taken(port), 10.0, "the server listens", interval=0.02)
        yield port
    finally:
        server.kill()
        server.wait(10.0)


def test_tls_that_is_too_old_is_said_to_be(old_tls: int) -> None:
    with pytest.raises(TlsRefused, match="its TLS is too old for this machine"):
        over_tls(old_tls).is_powered()


# Bodies


UNLICENSED = error("Base.1.0.InternalError", "failed, No sufficient LICENSE for user to perform requested operation.")


def always(path: str, status: int, body: bytes) -> Instead:
    """This body to each GET of this path."""
    return lambda _, method, asked, __: (status, body, {}) if (method, asked) == ("GET", path) else None


def documents(*found: Any, before: str = "", behind: str = "") -> bytes:
    return (before + "\n".join(map(json.dumps, found)) + behind).encode()


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_of_two_documents_one_behind_the_other_the_resource_counts(zoo: MakeZoo, order: slice) -> None:
    service = zoo("supermicro")
    system = service.tree["Systems/1"] | {"PowerState": "On"}
    service.instead = always("Systems/1", 200, documents(*[UNLICENSED, system][order]))
    assert service.bmc().is_powered()


def test_of_two_documents_with_an_error_the_reason_counts(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    service.instead = always("Systems/1", 403, documents(service.tree["Systems/1"], UNLICENSED))
    with pytest.raises(LicenceMissing, match="No sufficient LICENSE"):
        service.bmc().is_powered()


@pytest.mark.parametrize(("before", "behind"), [("\ufeff", ""), ("", "\0\0"), ("\r\n", "\r\n\r\n"), ("", "\n}")])
def test_what_stands_around_a_document_is_passed_over(zoo: MakeZoo, before: str, behind: str) -> None:
    service = zoo("supermicro")
    system = service.tree["Systems/1"] | {"PowerState": "On"}
    service.instead = always("Systems/1", 200, documents(system, before=before, behind=behind))
    assert service.bmc().is_powered()


@pytest.mark.parametrize(
    "body", [b'{"PowerState": "O', b"", b"<html>It works!</html>", b"[" * 100_000, b"{}" * 100_000, b"\xff\xfe"]
)
def test_a_body_that_is_no_document_is_a_failed_command_in_time(zoo: MakeZoo, body: bytes) -> None:
    service = zoo("supermicro")
    service.instead = always("Systems/1", 200, body)
    began = time.monotonic()
    with pytest.raises((CommandFailed, PowerUnknown)):
        service.bmc().is_powered()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("status", "message"), [(500, "OperationTimeout"), (504, "GeneralError")])
def test_a_command_that_took_a_service_too_long_is_not_given_again_at_once(
    zoo: MakeZoo, status: int, message: str
) -> None:
    """It may have been done: the Base registry speaks of partial results."""
    service = zoo("supermicro", states=["Off"] * 4)
    resets = []

    def instead(_: BaseHTTPRequestHandler, method: str, path: str, body: Any) -> Answer | None:
        if (method, path) != ("POST", RESET):
            return None
        resets.append(body)
        service.tree["Systems/1"]["PowerState"] = "On"
        return status, error(f"Base.1.13.{message}", "A timeout internal to the service occurred."), {}

    service.instead = instead
    service.bmc().power_on(5.0)
    assert len(resets) == 1


def test_a_service_that_timed_out_is_asked_again(zoo: MakeZoo) -> None:
    service = zoo("supermicro")
    timed_out = (500, error("Base.1.13.OperationTimeout"), {})
    service.instead = once("GET", "Systems/1", answer=timed_out)
    assert service.bmc().is_powered() is False
