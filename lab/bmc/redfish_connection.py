"""How a Redfish service is connected to, where sushy's own way is not the lab's: certificates, redirects, sessions.

Sources: DSP0266 (protocol, sessions), RFC 9110 (redirects).
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from requests import Response
from requests.adapters import HTTPAdapter
from sushy import auth, exceptions
from sushy.resources import base
from sushy.resources.system.system import System

from lab.base.errors import BmcRefused, CommandFailed, UsageError
from lab.bmc.redfish_answers import path_of

_FILLING = " \t\r\n\0"
_DOCUMENTS = 8  # of one answer: more is no answer
_PORTS = {"http": 80, "https": 443}


class Pinned(HTTPAdapter):
    """Connections to whoever has this certificate, whatever name and dates are in it: BMCs sign their own, badly."""

    def __init__(self, certificate: Path) -> None:
        try:
            encoded = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
        except (OSError, ValueError) as error:
            raise UsageError(f"bmc.ca_file {certificate}: no certificate (PEM): {error}") from None
        self._fingerprint = hashlib.sha256(encoded).hexdigest()
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: object) -> None:
        super().init_poolmanager(connections, maxsize, block, assert_fingerprint=self._fingerprint, **options)


class TolerantSystem(System):  # type: ignore[misc]
    """sushy's system, of which an attribute of a wrong form costs that attribute alone."""

    def _parse_attributes(self, json_doc: object) -> None:
        document = json_doc if isinstance(json_doc, Mapping) else {}
        for name in dir(type(self)):
            if isinstance(field := getattr(type(self), name), base.Field):
                try:
                    value = field._load(document, self)
                except (exceptions.SushyError, ValueError, TypeError, AttributeError):
                    value = None
                setattr(self, name, value)

    def _get_etag(self) -> str | None:
        # Some services demand one in each change (428), and name it in the body alone.
        named = super()._get_etag() or self.json.get("@odata.etag")
        return named if isinstance(named, str) else None


class Session(auth.SessionAuth):  # type: ignore[misc]
    """sushy's, which opens a session anew where one has run out; and that is not what HTTP status 403 says."""

    _session_resource_id: str | None

    def __init__(self, user: str, password: str, last_answer: Callable[[], Response | None]) -> None:
        super().__init__(user, password)
        self._last_answer = last_answer

    def _do_authenticate(self) -> None:
        super()._do_authenticate()
        self._session_resource_id = path_of(self._session_resource_id)  # it may name another host, which is not asked

    def can_refresh_session(self) -> bool:
        return self._session_key is not None  # sushy wants its address, too, which not every service tells

    def refresh_session(self) -> None:
        last = self._last_answer()
        if last is not None and last.status_code == 403:
            raise exceptions.AccessError(last.request.method, last.url, last)
        super().refresh_session()


def one_document(response: Response, **_: object) -> None:
    """Keep one document of a body that has several, one behind the other, as an iDRAC 8 without a licence answers.

    A success's is the resource, an error's the one that says why.
    """
    body = response.content
    try:
        text = body.decode("utf-8-sig").strip(_FILLING)
        documents, rest = _documents(text)
    except UnicodeDecodeError:
        return
    except RecursionError:  # nested as no resource is
        response._content = b""
        return
    if not documents or not all(isinstance(one, Mapping) for one in documents):
        return
    if len(documents) > 1 or rest or text.encode() != body.strip():
        is_error = response.status_code >= 400
        wanted = next((one for one in documents if ("error" in one) == is_error), documents[0])
        response._content = json.dumps(wanted).encode()


def _documents(text: str) -> tuple[list[Any], str]:
    """The JSON documents at the beginning of a text, and what follows that is none."""
    decoder, found = json.JSONDecoder(), list[Any]()
    rest = text.strip(_FILLING)
    while rest and len(found) < _DOCUMENTS:
        try:
            document, end = decoder.raw_decode(rest)
        except ValueError:
            break
        found.append(document)
        rest = rest[end:].lstrip(_FILLING)
    return found, rest


def check_redirect(board: str, url: str, response: Response, **_: object) -> None:
    """Follow a service that has a resource elsewhere, but to no other service, and with no command.

    A client makes a GET of a POST or PATCH that is redirected, unless that is by HTTP status 307 or 308.
    """
    if not response.is_redirect:
        return
    where = urljoin(response.url, response.headers["Location"])
    own, other = urlsplit(url), urlsplit(where)
    if (own.scheme, own.hostname, own.port) != (other.scheme, other.hostname, other.port or _PORTS.get(other.scheme)):
        raise BmcRefused(board, f"BMC {url} sends its clients to {where}: check bmc.tls, bmc.port and bmc.host")
    method, path, status = response.request.method, response.request.path_url, response.status_code
    if method != "GET" and status not in (307, 308):
        raise CommandFailed(board, f"Redfish: {method} {path}", status, f"the service has it at {where}")
