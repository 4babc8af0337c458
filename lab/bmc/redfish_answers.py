"""What is in a Redfish service's answers: links, collections, and the messages that say why it refuses.

A service may put anything of JSON anywhere, so nothing is taken for what it should be.
Sources: DSP0266 (error responses, collections), the Base message registry (DSP8011).
"""

from __future__ import annotations

import email.utils
import re
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from requests import Response

from lab.bmc import switching

Resource: TypeAlias = Mapping[str, object]  # as JSON; what a service says is of any type

BUSY = frozenset({429, 502, 503, 504})  # HTTP status of a service that starts, or has too much to do
# Messages by the last part of their id, which keeps its meaning over a registry's versions: of the Base registry, and
# of makers that have their own for a service that is not ready: of iLO, which takes no change of the boot while the
# machine is in POST, and of iDRAC (a letter code).
BUSY_MESSAGES = frozenset(
    {
        "ServiceTemporarilyUnavailable",
        "ServiceInUnknownState",
        "ServiceShuttingDown",
        "OperationTimeout",
        "ResourceInStandby",
        "ResourceInUse",
        "ResourceNotReadyRetry",
        "ResourceTemporarilyUnavailable",
        "ResetInProgress",
        "UnableToModifyDuringSystemPOST",
        *("SYS518", "SWC0700", "RAC0508"),
    }
)
NO_SESSION_LEFT = frozenset({"SessionLimitExceeded", "CreateLimitReachedForResource", "RAC0218"})
PASSWORD_EXPIRED = frozenset({"PasswordChangeRequired"})
PRIVILEGE = frozenset(
    {"InsufficientPrivilege", "InsufficientPrivilegeForProperty", "InsufficientPrivilegeForOperation"}
)
FINAL_MESSAGES = frozenset(
    {
        *("ActionNotSupported", "ActionParameterNotSupported", "ActionParameterUnknown", "ActionParameterMissing"),
        *("ActionParameterValueNotInList", "ActionParameterValueFormatError", "ActionParameterValueTypeError"),
    }
)
# Of a change that was answered with success, and not made: beside the property (DSP0266, PATCH; annotations).
NOT_CHANGED = frozenset(
    {
        *("PropertyNotWritable", "PropertyUnknown", "PropertyValueNotInList", "PropertyValueConflict"),
        *("PropertyValueTypeError", "PropertyValueFormatError", "PropertyValueError", "PropertyNotUpdated"),
    }
)
_BEGINNING = 60  # characters of a body that is no resource


@dataclass(frozen=True, slots=True)
class Said:
    """What a service says of an error, in its own words."""

    message: str
    message_id: str | None

    @property
    def name(self) -> str:
        """``PasswordChangeRequired`` of ``Base.1.8.PasswordChangeRequired``."""
        return (self.message_id or "").rpartition(".")[2]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.message, f"[{self.message_id}]" if self.message_id else "")))


def said(body: object) -> Said:
    """The most telling message of an error response, or of a task. Source: DSP0266, error responses.

    Services disagree on where it stands, and some leave out the text: then the id must do.
    """
    body = next((one for one in body if isinstance(one, Mapping)), {}) if isinstance(body, list) else body
    error = body.get("error", body) if isinstance(body, Mapping) else {}
    if not isinstance(error, Mapping):
        why = _text(body.get("error_description")) if isinstance(body, Mapping) else ""
        return Said(": ".join(filter(None, (_text(error), why))), None)
    listed = error.get("@Message.ExtendedInfo") or error.get("Messages") or []
    messages = [one for one in (listed if isinstance(listed, list) else [listed]) if isinstance(one, Mapping)]
    for one in messages:
        message_id = _text(one.get("MessageId")) or _text(one.get("MessageID"))  # the second of iLO 4
        text = _text(one.get("Message")) or ", ".join(filter(None, map(_text, elements(one.get("MessageArgs")))))
        general = message_id.rpartition(".")[2] in ("", "GeneralError", "Success")
        if (text or message_id) and not (general and len(messages) > 1):
            return Said(text, message_id or None)
    if isinstance(error.get("errors"), list):  # a web server's before the service, as are the next words
        return said(error["errors"])
    text = next(filter(None, (_text(error.get(key)) for key in ("message", "Message", "detail", "title"))), "")
    return Said(text, _text(error.get("code")) or None)


def not_changed(body: object) -> Said | None:
    """Why a change was not made, as the body of an answer says it that is a success by its HTTP status."""
    if not isinstance(body, Mapping):
        return None
    for key, value in body.items():
        is_message = str(key).endswith("@Message.ExtendedInfo")
        for one in elements(value) if is_message else ():
            if (told := said({"@Message.ExtendedInfo": [one]})).name in NOT_CHANGED:
                return told
        if key in ("error", "Boot") and (told_within := not_changed(value)):
            return told_within
    return None


def _text(value: object) -> str:
    return " ".join(switching.printable(value.encode()).split()) if isinstance(value, str) else ""


def part(resource: object, name: str) -> Resource:
    """An object in a resource; an empty one where there is none, or something else."""
    found = resource.get(name) if isinstance(resource, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def reference(value: object) -> str | None:
    """Where a link leads within the service; None where there is none."""
    return path_of(value.get("@odata.id")) if isinstance(value, Mapping) else None


def path_of(address: object) -> str | None:
    """The path of a link or of a header ``Location``. Its host, if it names one, is not asked: it is not the BMC's."""
    if not isinstance(address, str):
        return None
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError:
        return None
    return parts._replace(scheme="", netloc="").geturl() if parts.path.startswith("/") else None


def references(values: object) -> list[str]:
    """Where a list of links leads."""
    return [path for value in elements(values) if (path := reference(value))]


def elements(values: object) -> Iterable[object]:
    """Those of a list in a resource; none where there is none, or something else."""
    return values if isinstance(values, list) else ()


def retry_after(header: str | None) -> float:
    """Seconds, of the header ``Retry-After``: a number or a date (RFC 9110, 10.2.3). 0: the service does not say."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def identity(path: str) -> str:
    """A resource's own name, of its path."""
    return path.rstrip("/").rpartition("/")[2]


def is_about_a_licence(reason: Said) -> bool:
    """Whether it is a licence that the service lacks. Each maker has a message of its own for that."""
    return bool(re.search(r"licen[cs]e", f"{reason.message} {reason.name}", re.I))


def said_of(answer: Response) -> Said:
    """What the body of an answer says; nothing where it is no JSON."""
    try:
        return said(answer.json())
    except ValueError:
        return Said("", None)


def beginning(answer: Response | None) -> str:
    """What an answer is that is no resource: a page for people has a title, or else its first words."""
    text = "" if answer is None else answer.text[:4096]
    title = re.search(r"<title[^>]*>([^<]{1,200})", text, re.I)
    if title or re.match(r"\s*<(?:!doctype )?html", text, re.I):
        return f"a page for people{f' ({_text(title[1])})' if title else ''}"
    return f"{_text(text[:_BEGINNING])!r}" if text.strip() else "an empty body"


def is_resource(answer: Response | None) -> bool:
    """Whether an answer is an object, as all resources are."""
    if answer is None:
        return False
    try:
        return isinstance(answer.json(), Mapping)
    except ValueError:
        return False
