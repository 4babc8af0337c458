"""The switched outlets that the lab can drive: how each model is named, and what it wants to know.

The names are those of labgrid's power drivers. A model is in the list only if it works as this lab is installed: a
test loads each.
"""

from __future__ import annotations

import importlib.util
import string
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from lab.inventory.structure import is_host


@dataclass(frozen=True, slots=True)
class PduModel:
    """What ``host`` and ``outlet`` of a model are.

    A model that labgrid drives by another Python module than it installs itself names that in ``module``.
    """

    example: str  # of host; one with :// is a URL, which a bare address is not
    first: int  # number of the first outlet
    last: int | None = None  # None: the model itself says
    module: str | None = None
    package: str | None = None  # of PyPI, that has the module

    @property
    def wants_url(self) -> bool:
        return "://" in self.example

    @property
    def lacks(self) -> str | None:
        """The package that must be installed for this model; None when it works."""
        if self.module is None or importlib.util.find_spec(self.module):
            return None
        return self.package

    def lacks_in(self, host: str) -> str | None:
        """What is wrong with a ``host`` of this model; None when it can be asked."""
        if self.wants_url != ("://" in host):
            return f"wants {'a URL' if self.wants_url else 'an address alone'} for host"
        if not self.wants_url:
            address, colon, port = host.partition(":")  # labgrid's models know no address of IPv6
            if not is_host(address) or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
                return "wants an address, or ADDRESS:PORT, for host"
            return None
        try:
            parts, fields = urllib.parse.urlsplit(host), _fields(host)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                return "wants a URL of http or https with an address in it for host"
        except ValueError:
            return "wants a URL for host"
        known = _fields(self.example)
        if strange := sorted(fields - known):
            return f"knows no {{{strange[0]}}} in host"
        return None if "value" in fields or "value" not in known else "needs {value} in host"


def _fields(text: str) -> set[str]:
    """The names in braces. :raises ValueError: braces that are not a pair."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


_ADDRESS = "203.0.113.50"
_URL = "http://203.0.113.50"

MODELS: Mapping[str, PduModel] = {
    "apc": PduModel(_ADDRESS, 1, 48),
    "digipower": PduModel(_ADDRESS, 1, 8),
    "digitalloggers_http": PduModel(_URL, 1, 8),
    "digitalloggers_restapi": PduModel(_URL, 0, 7),
    "eaton": PduModel(_ADDRESS, 1, 48),
    "eg_pms2_network": PduModel(_ADDRESS, 1, 4),
    "eth008": PduModel(_ADDRESS, 1, 8),
    "gude": PduModel(_ADDRESS, 1, 8),
    "gude24": PduModel(_ADDRESS, 1, 24),
    "gude8031": PduModel(_ADDRESS, 1, 20),
    "gude8225": PduModel(_ADDRESS, 1, 12),
    "gude8316": PduModel(_ADDRESS, 1, 8),
    "mfi_mpower": PduModel(f"{_URL}/", 1, 8),
    "netio": PduModel(_ADDRESS, 1, 4),
    "pe6216": PduModel(_ADDRESS, 1, 16),
    "poe_mib": PduModel(_ADDRESS, 1),
    "poe_netgear_plus": PduModel(f"{_URL}/", 0, module="py_netgear_plus", package="py-netgear-plus"),
    "raritan": PduModel(_ADDRESS, 1),
    "rest": PduModel(f"{_URL}/relay/{{index}}/value", 0),
    "sentry": PduModel(_ADDRESS, 1, 48),
    "shelly_gen1": PduModel(_URL, 0),
    "shelly_gen2": PduModel(_URL, 0),
    "siglent": PduModel(_ADDRESS, 1, 2, module="vxi11", package="python-vxi11"),
    "simplerest": PduModel(f"{_URL}/relay/{{index}}/{{value}}", 0),
    "tinycontrol": PduModel(f"{_URL}:9999/", 0),
    "tinycontrol_tcpdu": PduModel(_URL, 0),
    "tplink": PduModel(_ADDRESS, 0, module="kasa", package="python-kasa"),
    "ubus": PduModel(f"{_URL}/ubus", 1),
}
# Models of labgrid's that are not offered, and why.
UNSUPPORTED: Mapping[str, str] = {
    "netio_kshell": "it needs a telnet client that nothing here installs; netio drives the same devices",
}


def working() -> list[str]:
    """The models that work on this machine."""
    return [name for name, model in MODELS.items() if model.lacks is None]
