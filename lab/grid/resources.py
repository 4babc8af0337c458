"""What a place is made of, beside labgrid's own NetworkSerialPort and NetworkService. Scalars only, no secret."""

from __future__ import annotations

from typing import Any

import attr
from labgrid.factory import target_factory
from labgrid.resource import Resource


@target_factory.reg_resource
@attr.s(eq=False)
class IPMIPort(Resource):
    """The BMC of a board that speaks IPMI; ``credential`` is a name (:mod:`lab.base.credentials`)."""

    host: Any = attr.ib(validator=attr.validators.instance_of(str))
    port: Any = attr.ib(default=623, converter=int)
    interface: Any = attr.ib(default="lanplus", validator=attr.validators.instance_of(str))
    cipher: Any = attr.ib(default=17, converter=int)
    credential: Any = attr.ib(default="", validator=attr.validators.instance_of(str))


@target_factory.reg_resource
@attr.s(eq=False)
class RedfishPort(Resource):
    """The BMC of a board that speaks Redfish; ``credential`` is a name, the rest as in the inventory."""

    host: Any = attr.ib(validator=attr.validators.instance_of(str))
    port: Any = attr.ib(default=443, converter=int)
    tls: Any = attr.ib(default="verified", validator=attr.validators.instance_of(str))
    ca_file: Any = attr.ib(default="", validator=attr.validators.instance_of(str))
    system: Any = attr.ib(default="", validator=attr.validators.instance_of(str))
    credential: Any = attr.ib(default="", validator=attr.validators.instance_of(str))


@target_factory.reg_resource
@attr.s(eq=False)
class ConsoleRecorder(Resource):
    """The always-on reader of a board's console: raw bytes on one port, line records on the other."""

    host: Any = attr.ib(validator=attr.validators.instance_of(str))
    serve_port: Any = attr.ib(converter=int)
    lines_port: Any = attr.ib(converter=int)
    owner: Any = attr.ib(default=None, converter=attr.converters.optional(int))  # uid that it runs as, if not as root


@target_factory.reg_resource
@attr.s(eq=False)
class SleepState(Resource):
    """Where a board's ACPI sleep state can be read: its BMC (IPMI v2.0, Get ACPI Power State, 20.7)."""

    via: Any = attr.ib(default="bmc", validator=attr.validators.instance_of(str))
