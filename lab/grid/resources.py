"""What a place is made of, beside labgrid's own NetworkSerialPort and NetworkService. Scalars only, no secret."""

from __future__ import annotations

import attr
from labgrid.factory import target_factory
from labgrid.resource import Resource


@target_factory.reg_resource
@attr.s(eq=False)
class IPMIPort(Resource):
    """The BMC of a board that speaks IPMI; ``credential`` is a name (:mod:`lab.base.credentials`)."""

    host: str = attr.ib(validator=attr.validators.instance_of(str))
    port: int = attr.ib(default=623, converter=int)
    interface: str = attr.ib(default="lanplus", validator=attr.validators.instance_of(str))
    # None: 17, and 3 where the BMC refuses that. Such a key is not offered, for labgrid takes scalars alone.
    cipher: int | None = attr.ib(default=None, converter=attr.converters.optional(int))
    privilege: str = attr.ib(default="administrator", validator=attr.validators.instance_of(str))
    firmware: str = attr.ib(default="bios", validator=attr.validators.instance_of(str))
    credential: str = attr.ib(default="", validator=attr.validators.instance_of(str))


@target_factory.reg_resource
@attr.s(eq=False)
class RedfishPort(Resource):
    """The BMC of a board that speaks Redfish; ``credential`` is a name, the rest as in the inventory."""

    host: str = attr.ib(validator=attr.validators.instance_of(str))
    port: int = attr.ib(default=443, converter=int)
    tls: str = attr.ib(default="verified", validator=attr.validators.instance_of(str))
    ca_file: str = attr.ib(default="", validator=attr.validators.instance_of(str))
    system: str = attr.ib(default="", validator=attr.validators.instance_of(str))
    credential: str = attr.ib(default="", validator=attr.validators.instance_of(str))


@target_factory.reg_resource
@attr.s(eq=False)
class ConsoleRecorder(Resource):
    """The always-on reader of a board's console: raw bytes on one port, line records on the other."""

    host: str = attr.ib(validator=attr.validators.instance_of(str))
    serve_port: int = attr.ib(converter=int)
    lines_port: int = attr.ib(converter=int)
    # The user (uid) that it runs as, if not as root.
    owner: int | None = attr.ib(default=None, converter=attr.converters.optional(int))


@target_factory.reg_resource
@attr.s(eq=False)
class BoardSocket(Resource):
    """Where a board answers that is more than a BMC shows (:mod:`lab.grid.board_socket`); few boards are."""

    path: str = attr.ib(validator=attr.validators.instance_of(str))


@target_factory.reg_resource
@attr.s(eq=False)
class SleepState(Resource):
    """Where a board's ACPI sleep state can be read: its BMC (IPMI v2.0, Get ACPI Power State, 20.7)."""

    via: str = attr.ib(default="bmc", validator=attr.validators.instance_of(str))
