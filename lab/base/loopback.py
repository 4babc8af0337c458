"""Whose process is at the other end of a TCP connection within this machine.

A loopback port has no owner: any account of the machine may connect to it, and may listen on it while nobody else does.
The kernel knows the user of every socket, and tells it in ``/proc/net/tcp`` and ``tcp6``: see proc_pid_net(5).
A process elsewhere that comes through ``ssh -L`` is seen as the account that it logged in to.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import ipaddress
import logging
import os
import pwd
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError, WaitTimeout
from lab.base.wait import wait_until

_log = logging.getLogger(__name__)

_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # what accept(2) fails with until others have left
_SAID_EVERY = 60.0  # seconds
_LISTENS = "0A"  # net/tcp_states.h: TCP_LISTEN
_LOOKS = 3  # the kernel prints its table in pieces, and may pass over a row while others come and go
_ANY = (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_End = tuple[_Address, int]


def is_loopback(host: str) -> bool:
    """Whether this address, or name, is one of this machine's own loopback addresses."""
    try:
        return host == "localhost" or _address(host).is_loopback
    except ValueError:
        return False


def peer_uid(link: socket.socket) -> int | None:
    """The user whose process holds the other end of a connection.

    None if that cannot be told: the other end was closed, has not been accepted yet, or is on another machine; or
    this process has no descriptor left to look it up with.
    """
    try:
        theirs, ours = _end(link.getpeername()), _end(link.getsockname())
        for _ in range(_LOOKS):
            if row := _row(theirs, ours):
                # Without an inode no process holds the socket; older kernels say root of such a one.
                return row.uid if row.inode else None
    except OSError:  # it was closed meanwhile, or the kernel's table cannot be opened
        pass
    return None


def listener_uid(host: str, port: int) -> int | None:
    """The user whose process listens on this port of a loopback address; None if nobody does."""
    if not is_loopback(host):
        return None
    named = _address("127.0.0.1" if host == "localhost" else host)
    rows = (_row((address, port), None) for address in (named, *_ANY))
    return next((row.uid for row in rows if row), None)


def require_owner(link: socket.socket, owner: int, what: str, timeout: float = 5.0) -> None:
    """See that the server of a connection runs as ``owner`` or as root; nothing is sent.

    Waits up to ``timeout`` seconds until the server has accepted the connection, since until then the kernel says of
    it only who listens. A connection to another machine is taken as it is.

    :raises PermissionError: it runs as somebody else, or does not accept.
    """
    host, port = link.getpeername()[:2]
    if not is_loopback(host):
        return
    try:
        uid = wait_until(lambda: _known(peer_uid(link)), timeout, f"port {port} takes the connection", interval=0.005)
    except WaitTimeout as error:
        raise PermissionError(str(error)) from None
    if uid and uid[0] not in (owner, 0):
        raise PermissionError(f"port {port} is held by {user(uid[0])}, and {what} runs as {user(owner)}")


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may use the lab's loopback ports: root, the user that runs this process, and the members of a Unix group."""

    group: str | None = None

    def why_refused(self, link: socket.socket) -> str | None:
        """Why the process at the other end may not use this connection; None if it may."""
        uid = peer_uid(link)
        if uid is None:
            return "its user cannot be told"
        if uid in (0, os.geteuid()) or self._has_member(uid):
            return None
        return f"it belongs to {user(uid)}"

    def _has_member(self, uid: int) -> bool:
        if self.group is None:
            return False
        try:
            account = pwd.getpwuid(uid)
            return grp.getgrnam(self.group).gr_gid in os.getgrouplist(account.pw_name, account.pw_gid)
        except KeyError:  # no such account, or the group was removed
            return False


def check_group(name: str) -> None:
    """:raises UsageError: this machine has no such Unix group."""
    try:
        grp.getgrnam(name)
    except KeyError:
        raise UsageError(f"this machine has no Unix group {name!r}") from None


def user(uid: int) -> str:
    """A user as messages name one: ``alice (uid 1001)``"""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _known(uid: int | None) -> tuple[int, ...]:
    """Something true for each user that there is, root too."""
    return () if uid is None else (uid,)


@dataclass(frozen=True, slots=True)
class _Row:
    """A socket, from the kernel's table."""

    state: str
    uid: int
    inode: int


def _row(local: _End, remote: _End | None) -> _Row | None:
    """The socket with these two ends; without ``remote``, one that listens at ``local``."""
    for table, is_mapped in (("tcp", False), ("tcp6", True)):
        end = "" if remote is None else f"{_encoded(remote, is_mapped)} "
        wanted = f": {_encoded(local, is_mapped)} {end}"
        try:
            text = Path("/proc/net", table).read_text(encoding="ascii")
        except FileNotFoundError:  # a kernel without IPv6
            continue
        start = text.find(wanted)
        while start >= 0:
            # local, remote, state, queues, timer, retransmissions, uid, timeout, inode
            fields = text[start + 2 : text.index("\n", start)].split()
            row = _Row(fields[2], int(fields[6]), int(fields[8]))
            if remote is not None or row.state == _LISTENS:
                return row
            start = text.find(wanted, start + 1)
    return None


def _encoded(end: _End, is_mapped: bool) -> str:
    """``0100007F:1F90``: the address in words of 32 bits, each in the machine's byte order, and the port.

    ``is_mapped``: as the table of IPv6 has it, where an IPv4 address is ``::ffff:A.B.C.D``.
    """
    address, port = end
    packed = address.packed
    if is_mapped and len(packed) == 4:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    if sys.byteorder == "little":
        packed = b"".join(packed[start : start + 4][::-1] for start in range(0, len(packed), 4))
    return f"{packed.hex().upper()}:{port:04X}"


def _end(name: tuple[str, int]) -> _End:
    return _address(name[0]), name[1]


def _address(host: str) -> _Address:
    """An address; one of IPv4 that is written as one of IPv6 is taken for what it is."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def bear_a_crowd(loop: asyncio.AbstractEventLoop) -> None:
    """That there are more connections than this process may have is said in a line a minute.

    asyncio goes on by itself when others have left. But until then it logs a hundred tracebacks a second, for each
    connection that may wait (:mod:`asyncio.selector_events`), and a disk is soon full of them.
    """
    said_at = -_SAID_EVERY

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        nonlocal said_at
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _SCARCE:
            loop.default_exception_handler(context)
        elif time.monotonic() > said_at + _SAID_EVERY:
            said_at = time.monotonic()
            _log.warning("no more connections are taken until others end: %s", error.strerror)

    loop.set_exception_handler(tell)
