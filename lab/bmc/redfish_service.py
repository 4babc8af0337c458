"""A Redfish service: how it is logged in to, how it is asked, and what its refusals mean.

Source: DSP0266 (protocol, error responses, sessions).

Each request logs in by itself (HTTP basic authentication, which DSP0266 demands of a service): BMCs have few sessions,
and a worker that was killed would leave its own behind. Only where that is switched off a session is opened.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import sushy
from requests import JSONDecodeError, Response
from sushy import auth, exceptions
from sushy.connector import Connector
from sushy.resources.system.system import System
from urllib3.exceptions import InsecureRequestWarning

from lab.base.credentials import Credential
from lab.base.errors import (
    BmcBusy,
    BmcRefused,
    BmcUnreachable,
    CertificateRefused,
    CommandFailed,
    CommandRefused,
    LicenceMissing,
    LoginRefused,
    PasswordExpired,
    PrivilegeRefused,
    SessionsExhausted,
    TlsRefused,
    UsageError,
)
from lab.bmc import redfish_answers as answers
from lab.bmc import switching
from lab.bmc.redfish_answers import Resource, Said, identity, part, path_of, reference, references
from lab.bmc.redfish_connection import Pinned, Session, TolerantSystem, check_redirect, one_document
from lab.bmc.switching import Exchange, Pace
from lab.inventory import BmcSpec

T = TypeVar("T")

logging.getLogger("sushy").setLevel(logging.CRITICAL)  # what it warns of is in the errors and the history here

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 25.0  # seconds; BMCs compute an answer for some, and are slow to
# How often sushy sends a request. Once, since it also repeats a Reset whose answer was lost, which would press the
# button a second time; and a GET that the service failed at (5xx) once more after this many seconds.
_TRIES = 1
_TRY_AGAIN = 1.0
# What OpenSSL says of a port that speaks something else, and of a BMC of before 2015 or so.
_OTHER_PROTOCOL = re.compile(r"WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|RECORD_LAYER_FAILURE")
_OLD_TLS = re.compile(
    r"TLSV1_ALERT_PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|SSLV3_ALERT_HANDSHAKE_FAILURE|NO_PROTOCOLS_AVAILABLE|"
    r"UNSAFE_LEGACY_RENEGOTIATION_DISABLED|(?:DH|EE|CA)_KEY_TOO_SMALL|CA_MD_TOO_WEAK"
)
_NO_SESSIONS_HERE = frozenset({400, 404, 405, 501})  # HTTP status of a service that knows no sessions


class RedfishService:
    """A BMC's service, and the one system of it that is the board. Nothing is asked before the first question.

    :raises UsageError: the file with the certificate is not there.
    """

    def __init__(self, board: str, spec: BmcSpec, credential: Credential, pace: Pace, log: logging.Logger) -> None:
        if spec.ca_file and not Path(spec.ca_file).is_file():
            raise UsageError(f"{board}: bmc.ca_file {spec.ca_file}: no such file")
        self.board = board
        self.spec = spec
        self.history: deque[Exchange] = deque(maxlen=switching.HISTORY_LENGTH)
        self.remarks: dict[str, None] = {}
        self._system: System | None = None
        self.last: Response | None = None  # what was answered last
        self._root: sushy.Sushy | None = None
        self._credential = credential
        self._pace = pace
        self._log = log
        self._is_known = False  # a login has been taken
        self._tried_session = self._wants_session = False
        self._end: Callable[[], object] | None = None  # gives a session back

    @property
    def url(self) -> str:
        host = f"[{self.spec.host}]" if ":" in self.spec.host else self.spec.host
        return f"{'http' if self.spec.tls == 'off' else 'https'}://{host}:{self.spec.port}"

    def ask(self, what: str, question: Callable[[System], T], patience: float | None = None) -> T:
        """``question`` of the system as it is now.

        Asked again for ``patience`` seconds while the service is busy; None: as the pace says.

        :raises BmcUnreachable: no answer.
        :raises BmcRefused: the login or the certificate is not taken, or not for this.
        :raises BmcBusy: the service was busy all the time.
        :raises CommandFailed: the service says no, or something that makes no sense.
        """
        wait = self._pace.patience if patience is None else patience
        return switching.patiently(lambda: self._once(what, question), wait, f"Redfish: {what}", self._log)

    def get(self, path: str) -> object:
        """A resource as it is. For a question: what this raises is :meth:`ask`'s to explain."""
        return self._open_root._conn.get(path).json()

    def post(self, path: str, body: Resource) -> None:
        """Ask for an action. For a question: what this raises is :meth:`ask`'s to explain."""
        self._open_root._conn.post(path, data=body)

    def get_or_none(self, path: str, unread: list[str]) -> Resource | None:
        """A resource that a question can do without: when it cannot be read, ``unread`` says so.

        A service that does not answer at all, or takes no login any more, is no such case.
        """
        try:
            found = self.get(path)
        except exceptions.ConnectionError:
            raise
        except exceptions.AccessError as error:
            if error.status_code == 401:
                raise
            unread.append(f"{path}: HTTP {error.status_code}")
        except (exceptions.SushyError, ValueError, TypeError, AttributeError):
            status = self.last.status_code if self.last is not None else 0
            unread.append(f"{path}: {f'HTTP {status}' if status >= 400 else 'no JSON'}")
        else:
            if isinstance(found, Mapping):
                return found
            unread.append(f"{path}: no resource")
        return None

    def linked(self, link: str, collection: str, unread: list[str]) -> list[Resource]:
        """The resources that the system links to by this name; where it names none, the service's ``collection``.

        The collection counts only where the service has one system: else its members may be another's.
        """
        paths = references(part(self.system.json, "Links").get(link))
        if not paths and (whole := reference(self.root.get(collection))):

            def members(path: str) -> list[str]:
                return self._members(self.get_or_none(path, unread), lambda page: self.get_or_none(page, unread))

            if len(members(reference(self.root.get("Systems")) or "")) == 1:
                paths = members(whole)
        return [found for path in paths if (found := self.get_or_none(path, unread)) is not None]

    @property
    def system(self) -> System:
        """The board's system. For a question: there is none before the login."""
        assert self._system is not None
        return self._system

    @property
    def _open_root(self) -> sushy.Sushy:
        assert self._root is not None
        return self._root

    @property
    def root(self) -> Resource:
        """The service root."""
        found: Resource = self._open_root.json
        return found

    def systems(self) -> dict[str, str | None]:
        """The systems behind this BMC, whichever is the board, and the UUID of each where it tells one.

        :raises BmcUnreachable, BmcRefused, CommandFailed: as :meth:`ask`.
        """

        def read() -> dict[str, str | None]:
            found: dict[str, str | None] = {}
            for path in self._systems():
                try:
                    resource = self._open_root._conn.get(path).json()
                except (exceptions.HTTPError, ValueError):
                    resource = {}
                uuid = resource.get("UUID") if isinstance(resource, Mapping) else None
                found[identity(path)] = uuid if isinstance(uuid, str) else None
            return found

        return switching.patiently(
            lambda: self._explained("systems", read), self._pace.patience, "Redfish: systems", self._log
        )

    def remark(self, text: str) -> None:
        """Note what the inventory does not say, once."""
        if text not in self.remarks:
            self.remarks[text] = None
            self._log.warning("%s", text)

    # -- one question ------------------------------------------------------------------------------------------

    def _once(self, what: str, question: Callable[[System], T]) -> T:
        def asked() -> T:
            if self._system is None:
                return question(self._connect())
            self._system.refresh(force=True)
            return question(self._system)

        return self._explained(what, asked)

    def _explained(self, what: str, question: Callable[[], T]) -> T:
        """``question``, with whatever sushy raises as an error of ours."""
        self.last = None
        try:
            with warnings.catch_warnings():  # who says `tls: unverified` has been told what it means
                warnings.simplefilter("ignore", InsecureRequestWarning)
                return question()
        except exceptions.ConnectionError as error:
            self._system = None
            raise self._unreachable(what, str(error)) from None
        except (exceptions.SushyError, ValueError, TypeError, AttributeError) as error:
            # sushy makes its error of the response's body, and stumbles over what is not of its form.
            if self.last is not None and self.last.status_code >= 400:
                raise self._refused(what, self.last) from None
            if isinstance(error, exceptions.SushyError):
                raise CommandFailed(self.board, f"Redfish: {what}", 0, str(error)) from None
            if isinstance(error, JSONDecodeError):
                told = f"the answer is no JSON, but {answers.beginning(self.last)}"
                hint = f"is bmc.port ({self.spec.port}) that of Redfish?"
                raise CommandFailed(self.board, f"Redfish: {what}", 0, f"{told}: {hint}") from None
            if isinstance(error, ValueError):  # a date that is none
                raise CommandFailed(self.board, f"Redfish: {what}", 0, f"{type(error).__name__}: {error}") from None
            if not answers.is_resource(self.last):
                raise CommandFailed(self.board, f"Redfish: {what}", 0, "the answer is no resource") from None
            raise

    def _unreachable(self, what: str, told: str) -> BmcRefused | BmcUnreachable:
        where = f"BMC {self.url}: "
        if "ingerprints did not match" in told:
            return CertificateRefused(self.board, f"{where}has another certificate than bmc.ca_file")
        if "CERTIFICATE_VERIFY_FAILED" in told:
            return CertificateRefused(
                self.board,
                f"{where}its certificate is not trusted: name the one it is signed by in bmc.ca_file, or its own with "
                "bmc.tls: pinned",
            )
        if match := _OTHER_PROTOCOL.search(told):
            hint = f"bmc.port ({self.spec.port}) speaks no TLS ({match[0]}): check it, or say bmc.tls: off"
            return TlsRefused(self.board, f"{where}{hint}")
        if match := _OLD_TLS.search(told):
            return TlsRefused(
                self.board,
                f"{where}its TLS is too old for this machine ({match[0]}): renew the BMC's firmware or certificate, or "
                "take bmc.protocol: ipmi",
            )
        # sushy quotes requests, which quotes urllib3: the last of it is the cause.
        cause = told.rstrip("')> ").rpartition(": ")[2][-200:]
        return BmcUnreachable(self.board, f"{where}{what}: no answer: {cause}")

    def _refused(self, what: str, response: Response) -> CommandFailed | BmcRefused | BmcUnreachable:
        """An answer that is an error, as the error that it is."""
        status, reason = response.status_code, answers.said_of(response)
        if reason.name in answers.NO_SESSION_LEFT:
            return SessionsExhausted(self.board, f"BMC {self.url} has no free session (HTTP {status}): {reason}")
        if status in (400, 403) and answers.is_about_a_licence(reason):
            return LicenceMissing(
                self.board,
                f"BMC {self.url}: {what}: it lacks a licence for that (HTTP {status}): {reason}; give it one, or take "
                "bmc.protocol: ipmi",
            )
        if status in (401, 403):
            if status == 401:
                self._log_out()
            return self._access(what, status, reason)
        command, text = f"Redfish: {what}", reason.message or response.reason or f"HTTP {status}"
        if status in answers.BUSY or reason.name in answers.BUSY_MESSAGES:
            busy = BmcBusy(self.board, command, status, text, reason.message_id)
            busy.was_dropped = status != 504 and reason.name != "OperationTimeout"
            busy.retry_after = answers.retry_after(response.headers.get("Retry-After"))
            return busy
        kind = CommandRefused if reason.name in answers.FINAL_MESSAGES else CommandFailed
        if status == 404 and not reason.message:
            text = f"{response.request.path_url} is not there"
        return kind(self.board, command, status, text, reason.message_id)

    def _access(self, what: str, status: int, reason: Said) -> BmcRefused:
        where = f"BMC {self.url}"
        who = f"user {self._credential.user!r}, credential {self.spec.credential!r}"
        quoted = f": {reason}" if reason.message or reason.message_id else ""
        if reason.name in answers.PASSWORD_EXPIRED:
            return PasswordExpired(
                self.board, f"{where} wants another password before it does anything (HTTP {status}){quoted}; {who}"
            )
        if reason.name in answers.PRIVILEGE or (status == 403 and self._is_known):
            return PrivilegeRefused(
                self.board, f"{where}: {what}: the user's role does not allow it (HTTP {status}){quoted}; {who}"
            )
        both = " by HTTP basic authentication and by a session" if self._tried_session else ""
        return LoginRefused(
            self.board, f"{where} refused the login (HTTP {status}): check user and password{both}{quoted}; {who}"
        )

    # -- the login ---------------------------------------------------------------------------------------------

    def _connect(self) -> System:
        paths = self._systems()
        if not paths:  # as long as the inventory is not there: the BMC has just started
            raise BmcBusy(self.board, "Redfish: Systems", 200, "the service shows no system, or not yet")
        chosen = [path for path in paths if self.spec.system in ("", path, identity(path))]
        if len(chosen) != 1:
            names = ", ".join(map(identity, paths))
            wanted = "say which one in bmc.system: it is one"
            if self.spec.system:
                wanted = f"bmc.system {self.spec.system!r} is none"
            raise UsageError(f"{self.board}: BMC {self.url}: {wanted} of {names}")
        root = self._open_root
        self._system = system = TolerantSystem(
            root._conn,
            chosen[0],
            redfish_version=root.redfish_version,
            registries=root.lazy_registries,
            root=root,
        )
        self._is_known = True
        return system

    def _systems(self) -> list[str]:
        """Where the systems are."""

        def page(path: str) -> Resource:
            found = self.get(path)
            return found if isinstance(found, Mapping) else {}

        return self._members(self._collection(), page)

    @staticmethod
    def _members(collection: Resource | None, get: Callable[[str], Resource | None]) -> list[str]:
        """The members of a collection, of which a service may show some at a time (DSP0266, paging)."""
        found, pages = dict[str, None](), set[str]()
        while collection is not None:
            found |= dict.fromkeys(references(collection.get("Members")))
            following = path_of(collection.get("Members@odata.nextLink"))
            if following is None or following in pages:
                break
            pages.add(following)
            collection = get(following)
        return list(found)

    def _collection(self) -> Resource:
        """The collection of systems, which is the first thing that needs a login."""
        if self._root is not None:
            return self._systems_of(self._root)
        words = (self._credential.user, self._credential.password)
        self._tried_session = False
        if not self._wants_session:
            root = self._open_basic(*words)
            try:
                found = self._systems_of(root)
            except exceptions.AccessError as error:
                named = reference(part(root.json, "Links").get("Sessions")) or reference(
                    root.json.get("SessionService")
                )
                if error.status_code != 401 or self._is_known or not named:
                    raise
                refused = self.last
            else:
                self._root = root
                return found
        self._tried_session = True
        here = weakref.ref(self)

        def last_answer() -> Response | None:
            return service.last if (service := here()) else None

        try:
            root = self._open(Session(*words, last_answer), self._connector())
        except exceptions.MissingXAuthToken:
            who = f"user {words[0]!r}, credential {self.spec.credential!r}"
            raise LoginRefused(
                self.board,
                f"BMC {self.url} takes no HTTP basic authentication, and opens a session without a token for it: "
                f"restart the BMC; {who}",
            ) from None
        except exceptions.HTTPError as error:
            if error.status_code in _NO_SESSIONS_HERE and not self._wants_session and not self._is_full():
                self._tried_session, self.last = False, refused  # no sessions there: it is about the first try
            raise
        self._root, self._wants_session = root, True
        self._end = weakref.finalize(self, _end_session, root._auth)
        self.remark("the BMC takes no HTTP basic authentication: a session is opened for each process")
        return self._systems_of(root)

    def _log_out(self) -> None:
        """Forget what was logged in; give a session back."""
        self._system = self._root = None
        if self._end is not None:
            self._end()
            self._end = None

    def _is_full(self) -> bool:
        return self.last is not None and answers.said_of(self.last).name in answers.NO_SESSION_LEFT

    def _open_basic(self, user: str, password: str) -> sushy.Sushy:
        login, connector = auth.BasicAuth(user, password), self._connector()
        try:
            return self._open(login, connector)
        except exceptions.AccessError as error:
            if error.status_code != 401:
                raise
        connector.set_http_basic_auth(user, password)  # its root is for users alone, against DSP0266
        return self._open(login, connector)

    def _open(self, login: auth.AuthBase, connector: Connector) -> sushy.Sushy:
        return sushy.Sushy(self.url, connector=connector, auth=login)

    def _systems_of(self, root: sushy.Sushy) -> Resource:
        path = reference(root.json.get("Systems"))
        if path is None:
            raise exceptions.MissingAttributeError(attribute="Systems/@odata.id", resource="/redfish/v1/")
        found = root._conn.get(path).json()
        return found if isinstance(found, Mapping) else {}

    def _connector(self) -> Connector:
        spec = self.spec
        here = weakref.ref(self)  # or a session would keep this alive, and would not be given back

        def record(response: Response) -> None:
            if service := here():
                service._record(response)

        connector = Connector(
            self.url,
            verify=spec.tls == "verified" and (spec.ca_file or True),
            response_callback=record,
            server_side_retries=_TRIES,
            server_side_retries_delay=_TRY_AGAIN,
            default_request_timeout=READ_TIMEOUT,
            connect_timeout=CONNECT_TIMEOUT,
        )
        if spec.tls == "pinned":
            connector._session.mount("https://", Pinned(Path(spec.ca_file)))
        connector._session.trust_env = False  # neither a proxy nor a .netrc of the user's is for BMCs
        connector._session.hooks["response"] += [partial(check_redirect, self.board, self.url), one_document]
        return connector

    def _record(self, response: Response) -> None:
        self.last = response
        seconds = response.elapsed.total_seconds()
        request = response.request
        body = request.body or ""
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
        is_login = '"Password"' in text  # a session's; that of basic authentication is in a header
        parts = (request.method, request.url, "(the login)" if is_login else text)
        argv = tuple(part for part in parts if part)
        output = "" if is_login else switching.printable(response.content)
        self.history.append(Exchange(time.time() - seconds, argv, response.status_code, output, seconds))


def _end_session(login: auth.SessionAuth) -> None:
    """Give a session back; of a service that is gone it ends by itself.

    The garbage collector calls this in any thread, which may have other work than to wait for a BMC.
    """

    def close() -> None:
        with contextlib.suppress(Exception):
            login.close()

    if threading.current_thread() is threading.main_thread():
        close()
    else:
        threading.Thread(target=close, name="Redfish session").start()
