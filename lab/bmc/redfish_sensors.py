"""Sensor readings of a chassis that speaks Redfish, of whatever generation its resources are.

``Thermal`` and ``Power`` are deprecated since DSP0268 2020.4: newer services have ``ThermalSubsystem``,
``PowerSubsystem`` and a collection ``Sensors``. A service that has both shows the same sensors twice, so the older is
asked for what the newer does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lab.bmc.redfish_answers import Resource, identity, part, path_of, reference
from lab.bmc.switching import Readings, printable

Get = Callable[[str], Resource | None]  # a resource, or None when it cannot be read

_UNITS = {"Cel": "degrees C", "Percent": "%"}
_UNITS_OF_TYPE = {"Temperature": "degrees C", "Rotational": "RPM", "Voltage": "V", "Current": "A", "Power": "W"}


class Chassis:
    """The readings of one chassis, added to those of others."""

    def __init__(self, resource: Resource, get: Get, found: Readings) -> None:
        self._resource, self._get, self._found = resource, get, found
        self._seen: set[str] = set()  # sensors that have been read, by path
        self._has_temperatures = self._has_fans = False
        self._kinds: set[object] = set()  # ReadingType of the sensors that have been read

    def read(self) -> None:
        """All that the chassis has to tell."""
        for sensor in self._members(self._resource.get("Sensors")):
            self._add_sensor(sensor)
        if cooling := self._linked(self._resource.get("ThermalSubsystem")):
            self._read_cooling(cooling)
        if thermal := self._linked(self._resource.get("Thermal")):
            self._read_thermal(thermal)
        if power := self._linked(self._resource.get("PowerSubsystem")):
            for index, supply in enumerate(self._members(power.get("PowerSupplies"))):
                state = supply.get("LineInputStatus") or part(supply, "Status").get("State")
                self._add(_name(supply, f"power supply {index}"), state, "", supply)
        elif power := self._linked(self._resource.get("Power")):
            self._read_power(power)

    def _add_sensor(self, sensor: Resource) -> None:
        kind = sensor.get("ReadingType")
        units = sensor.get("ReadingUnits")
        unit = _UNITS.get(units, units) if isinstance(units, str) else _UNITS_OF_TYPE.get(str(kind), "")
        self._add(_name(sensor, f"sensor {len(self._seen)}"), sensor.get("Reading"), unit, sensor)
        self._seen.add(str(sensor.get("@odata.id")))
        self._kinds.add(kind)
        self._has_temperatures |= kind == "Temperature"
        self._has_fans |= kind == "Rotational" or unit == "RPM"

    def _read_cooling(self, cooling: Resource) -> None:
        for index, fan in enumerate(self._members(cooling.get("Fans"))):
            speed = part(fan, "SpeedPercent")
            if speed.get("DataSourceUri") in self._seen and not _remark(fan):
                continue
            rpm, percent = speed.get("SpeedRPM"), speed.get("Reading")
            reading, unit = (rpm, "RPM") if rpm is not None else (percent, "%")
            self._add(_name(fan, f"fan {index}"), reading, unit, fan)
            self._has_fans = True
        if self._has_temperatures:
            return
        metrics = self._linked(cooling.get("ThermalMetrics")) or {}
        for index, one in enumerate(_dictionaries(metrics.get("TemperatureReadingsCelsius"))):
            name = one.get("DeviceName") or identity(path_of(one.get("DataSourceUri")) or "")
            self._add(str(name or f"sensor {index}"), one.get("Reading"), "degrees C", one)
            self._has_temperatures = True

    def _read_thermal(self, thermal: Resource) -> None:
        if not self._has_temperatures:
            for index, one in enumerate(_dictionaries(thermal.get("Temperatures"))):
                reading = _first(one, "ReadingCelsius", "CurrentReading")  # the second of iLO 4
                self._add(_name(one, f"sensor {one.get('MemberId') or index}"), reading, "degrees C", one)
        if not self._has_fans:
            for index, one in enumerate(_dictionaries(thermal.get("Fans"))):
                units = _first(one, "ReadingUnits", "Units")
                unit = _UNITS.get(units, units) if isinstance(units, str) else ""
                name = _name(one, str(one.get("FanName") or f"fan {one.get('MemberId') or index}"))
                self._add(name, _first(one, "Reading", "CurrentReading"), unit, one)

    def _read_power(self, power: Resource) -> None:
        """The older resource. Source: DSP0268, Power v1: PowerControl, Voltages, PowerSupplies."""
        if "Power" not in self._kinds:
            for index, one in enumerate(_dictionaries(power.get("PowerControl"))):
                self._add(_name(one, f"power {one.get('MemberId') or index}"), one.get("PowerConsumedWatts"), "W", one)
        if "Voltage" not in self._kinds:
            for index, one in enumerate(_dictionaries(power.get("Voltages"))):
                self._add(_name(one, f"voltage {one.get('MemberId') or index}"), one.get("ReadingVolts"), "V", one)
        for index, supply in enumerate(_dictionaries(power.get("PowerSupplies"))):
            volts, state = supply.get("LineInputVoltage"), part(supply, "Status").get("State")
            reading, unit = (volts, "V") if isinstance(volts, int | float) else (state, "")
            self._add(_name(supply, f"power supply {supply.get('MemberId') or index}"), reading, unit, supply)

    def _add(self, name: str, reading: object, unit: str, resource: Resource) -> None:
        is_absent = part(resource, "Status").get("State") == "Absent"
        is_none = reading is None or (is_absent and isinstance(reading, int | float))  # iLO: 0
        words = ("no reading",) if is_none else (str(reading), unit)
        text = " ".join(filter(None, (*words, "" if is_absent else _remark(resource))))  # what is not there is not ill
        self._found.add(printable(name.encode()), printable(text.encode()))

    def _linked(self, link: object) -> Resource | None:
        path = reference(link)
        return self._get(path) if path else None

    def _members(self, link: object) -> Iterator[Resource]:
        """The members of a collection, of which a service may show all at once."""
        path, asked = reference(link), set[str]()
        while path and path not in asked:
            asked.add(path)
            collection = self._get(path) or {}
            for member in _dictionaries(collection.get("Members")):
                own = reference(member)
                found = member if own is None or len(member) > 1 else self._get(own)
                if found is not None:
                    yield found
            path = path_of(collection.get("Members@odata.nextLink"))


def readings(chassis: list[Resource], get: Get) -> Readings:
    """What these chassis have to tell; ``get`` notes by itself what it could not read."""
    found = Readings()
    for resource in chassis:
        Chassis(resource, get, found).read()
    return found


def _name(resource: Resource, otherwise: str) -> str:
    return next((text for key in ("Name", "Id") if isinstance(text := resource.get(key), str) and text), otherwise)


def _first(resource: Resource, *keys: str) -> object:
    return next((resource[key] for key in keys if resource.get(key) is not None), None)


def _remark(resource: Resource) -> str:
    """A health that is not OK, in brackets."""
    health = part(resource, "Status").get("Health")
    return f"[{health.capitalize()}]" if isinstance(health, str) and health.casefold() not in ("ok", "") else ""


def _dictionaries(values: object) -> Iterator[Resource]:
    yield from (value for value in (values if isinstance(values, list) else ()) if isinstance(value, Mapping))
