"""Who is at the other end of a loopback connection, as the kernel says it."""

from __future__ import annotations

import grp
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from free_ports import free_port
from strangers import NEEDS_ROOT, NOBODY, leave, squatting, talk

from lab.base import loopback
from lab.base.errors import UsageError
from lab.base.loopback import Admission, listener_uid, peer_uid, require_owner


@pytest.fixture(name="server", params=["127.0.0.1", "::", "::1"])
def server_fixture(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    with socket.create_server((request.param, 0), family=family, dualstack_ipv6=request.param == "::") as server:
        yield server


def test_both_ends_of_a_connection_are_told(server: socket.socket) -> None:
    host = "::1" if server.getsockname()[0] == "::1" else "127.0.0.1"
    with socket.create_connection((host, server.getsockname()[1])) as ours:
        assert peer_uid(ours) is None, "it is not accepted yet"
        theirs, _ = server.accept()
        with theirs:
            assert peer_uid(ours) == os.geteuid() and peer_uid(theirs) == os.geteuid()
    assert listener_uid(host, server.getsockname()[1]) == os.geteuid()


def test_an_end_that_was_closed_belongs_to_nobody() -> None:
    """Its socket is still there, and older kernels say root of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with theirs:
            ours.sendall(b"and gone")
            ours.close()
            assert peer_uid(theirs) is None
            assert Admission().why_refused(theirs) == "its user cannot be told"


def test_a_port_that_nobody_listens_on_has_no_user() -> None:
    assert listener_uid("127.0.0.1", free_port()) is None
    assert listener_uid("192.0.2.1", 22) is None, "of another machine nothing is known"


@NEEDS_ROOT
def test_another_user_is_refused_and_a_member_of_the_group_is_not() -> None:
    group = grp.getgrgid(NOBODY).gr_name
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        talking = threads.submit(talk, server.getsockname()[1], b"hello")
        theirs, _ = server.accept()
        with theirs:
            assert peer_uid(theirs) == NOBODY
            why = Admission().why_refused(theirs)
            assert why and f"(uid {NOBODY})" in why
            assert Admission(group="root").why_refused(theirs) == why
            assert Admission(group="no-such-group").why_refused(theirs) == why
            assert Admission(group=group).why_refused(theirs) is None
        assert talking.result() == b""


@NEEDS_ROOT
def test_another_user_who_has_left_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        leave(server.getsockname()[1], b"typed")
        theirs, _ = server.accept()
        with theirs:
            assert Admission(group=grp.getgrgid(NOBODY).gr_name).why_refused(theirs) is not None


@NEEDS_ROOT
def test_a_server_of_another_user_is_told_from_ours() -> None:
    port = free_port()
    with squatting(port, 10.0):
        assert listener_uid("127.0.0.1", port) == NOBODY
        with socket.create_connection(("127.0.0.1", port)) as link:
            with pytest.raises(PermissionError, match=rf"port {port} is held by \w+ \(uid {NOBODY}\), and it runs as"):
                require_owner(link, os.geteuid(), "it")
            require_owner(link, NOBODY, "it")


def test_a_server_that_takes_no_connection_proves_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as link,
        pytest.raises(PermissionError, match=r"takes the connection: not within 0\.2 s"),
    ):
        require_owner(link, os.geteuid(), "it", 0.2)


def test_lookups_are_right_while_other_connections_come_and_go() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()

        def churn() -> None:
            for _ in range(300):
                with socket.create_connection(server.getsockname()) as one:
                    other, _ = server.accept()
                    other.close()
                    assert one.recv(1) == b""

        with ours, theirs, ThreadPoolExecutor(1) as threads:
            churning = threads.submit(churn)
            while not churning.done():
                assert peer_uid(theirs) == os.geteuid()
            churning.result()


def test_a_group_that_is_not_there_is_a_usage_error() -> None:
    loopback.check_group(grp.getgrgid(0).gr_name)
    with pytest.raises(UsageError, match="this machine has no Unix group 'no-such-group'"):
        loopback.check_group("no-such-group")
