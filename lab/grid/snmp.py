"""SNMP by pysnmp, for the two things of a rack that speak it: managed switches and PDUs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from pysnmp.hlapi.v3arch import asyncio as snmp
from pysnmp.proto.rfc1902 import Integer32

from lab.base.errors import BenchError

REPLY = 2.0  # seconds for an answer, asked RETRIES times more
RETRIES = 2
PORT = 161

Login: TypeAlias = "snmp.CommunityData | snmp.UsmUserData"
Peer: TypeAlias = (
    "tuple[snmp.SnmpEngine, Login, snmp.UdpTransportTarget, snmp.ContextData]"  # pysnmp's arguments for it
)
T = TypeVar("T")


class _Status(Protocol):
    """The error status of an answer (RFC 3416), as pysnmp has it; false where there is none."""

    def __bool__(self) -> bool: ...

    def prettyPrint(self) -> str: ...


# What failed in here, the agent's error status, the number of the object it is about, and names with values.
_Answer: TypeAlias = "tuple[object, _Status, object, Sequence[tuple[object, Integer32]]]"


class SnmpFailed(BenchError):
    """The agent does not answer, or refuses."""


class Agent:
    """An SNMP agent. Each question is asked by an engine of its own: there is no state between two."""

    def __init__(self, host: str, port: int, login: Callable[[], Login]) -> None:
        """``login`` gives the login, see :func:`community` and :func:`user`; it is asked for each question."""
        self._where, self._login = (host, port), login

    def get(self, oid: str) -> int:
        """The value of one object that is a number. :raises SnmpFailed:"""
        value = self._ask(lambda peer: snmp.get_cmd(*peer, snmp.ObjectType(snmp.ObjectIdentity(oid))))
        try:
            return int(value)
        except Exception:  # text, nothing, "no such object" of SNMPv2: pyasn1 has errors of its own for that
            raise SnmpFailed(f"the answer for {oid} is no number: {value.prettyPrint()[:80]!r}") from None

    def set(self, oid: str, value: int) -> None:
        """Set an object that is an integer. :raises SnmpFailed:"""
        wanted = (snmp.ObjectIdentity(oid), Integer32(value))
        self._ask(lambda peer: snmp.set_cmd(*peer, snmp.ObjectType(*wanted)))

    def column(self, oid: str) -> dict[int, str]:
        """A column of a table as text, by the last number of each row. :raises SnmpFailed:"""

        async def walked(engine: snmp.SnmpEngine) -> dict[int, str]:
            found: dict[int, str] = {}
            column = snmp.ObjectType(snmp.ObjectIdentity(oid))
            peer = await self._peer(engine)
            async for failed, status, _, rows in snmp.bulk_walk_cmd(*peer, 0, 25, column, lexicographicMode=False):
                _check(failed, status)
                found |= {int(tuple(name)[-1]): str(value) for name, value in rows}
            return found

        return _with_engine(walked)

    def _ask(self, command: Callable[[Peer], Awaitable[_Answer]]) -> Integer32:
        """The value of the one object that the command is about."""

        async def asked(engine: snmp.SnmpEngine) -> Integer32:
            failed, status, _, found = await command(await self._peer(engine))
            _check(failed, status)
            if not found:
                raise SnmpFailed("the answer has no value")
            return found[0][1]

        return _with_engine(asked)

    async def _peer(self, engine: snmp.SnmpEngine) -> Peer:
        where = await snmp.UdpTransportTarget.create(self._where, timeout=REPLY, retries=RETRIES)
        return engine, self._login(), where, snmp.ContextData()


def community(name: str, *, version: int) -> Login:
    """The login of SNMP version 1 or 2c."""
    return snmp.CommunityData(name, mpModel=version - 1)


def user(name: str, password: str, *, is_sha256: bool) -> Login:
    """The login of SNMPv3: authenticated, and encrypted by AES-128 with the same password."""
    return snmp.UsmUserData(
        name,
        password,
        password,
        authProtocol=snmp.USM_AUTH_HMAC192_SHA256 if is_sha256 else snmp.USM_AUTH_HMAC96_SHA,
        privProtocol=snmp.USM_PRIV_CFB128_AES,
    )


def _check(failed: object, status: _Status) -> None:
    if failed:
        # RFC 1157, 4.1: a message of a community that the agent does not know is dropped.
        raise SnmpFailed(f"{failed}; an agent that does not know the community is silent, too")
    if status:
        raise SnmpFailed(str(status.prettyPrint()))


def _with_engine(question: Callable[[snmp.SnmpEngine], Awaitable[T]]) -> T:
    async def asked() -> T:
        engine = snmp.SnmpEngine()
        try:
            return await question(engine)
        finally:
            engine.close_dispatcher()

    return asyncio.run(asked())
