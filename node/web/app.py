"""The application: who is asking, may they, and what a browser is allowed to do with the answer.

Every answer carries a content security policy without inline code. Every change needs a session,
its role and its token against forged requests, and goes into the audit trail.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from config.selection import SelectionSettings
from config.settings import Settings
from node.audit import Audit, AuditEvent
from node.daily import SelfTests
from node.ledger import Ledger
from node.ledger.overview import Overview
from node.outcome import ResultsFolder
from node.sitekey import site_key, tag
from node.web.accounts import ACCOUNTS_FILE, Accounts, Role, Session, SignInRefusedError
from node.web.words import TEMPLATE_WORDS

log = structlog.get_logger(__name__)

HERE = Path(__file__).parent
COOKIE = "flairnode-session"
CSRF_FIELD, CSRF_HEADER = "csrf", "X-CSRF-Token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LARGEST_BODY_BYTES = 8_000_000  # some hundred DICOM headers without their pixels
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


@dataclass(slots=True)
class Surroundings:
    """What the page looks at, and what it changes things through."""

    settings: Settings
    config: Path
    ledger: Ledger
    audit: Audit
    answering: Callable[[], dict[str, bool]] = dict
    """Peer -> did it answer when it was last asked."""
    workers: Callable[[], list[dict[str, Any]]] = list
    """Of each worker process: index, whether it runs, since when."""
    use_selection: Callable[[SelectionSettings], None] = lambda _: None
    """Puts other rules in force."""
    tests: SelfTests | None = None
    """The self-test of the day."""
    results: ResultsFolder = field(init=False)
    accounts: Accounts = field(init=False)
    overview: Overview = field(init=False)

    def __post_init__(self) -> None:
        data_dir = self.settings.node.data_dir
        key = site_key(data_dir)
        self.results = ResultsFolder(data_dir)
        self.accounts = Accounts(data_dir / ACCOUNTS_FILE)
        self.overview = Overview(self.ledger.path, lambda uid: tag(key, uid))


class SignInNeededError(Exception):
    """Nobody is signed in."""


def create_app(surroundings: Surroundings) -> FastAPI:
    """The application over one node."""
    from node.web import actions, audit, health, pages, rules  # they import what is defined here

    app = FastAPI(title="flairnode", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.surroundings = surroundings
    app.state.templates = Jinja2Templates(HERE / "templates")
    app.state.templates.env.globals.update(TEMPLATE_WORDS)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.include_router(health.router)
    app.include_router(pages.router)
    app.include_router(rules.router)
    app.include_router(audit.router)
    app.include_router(actions.router)
    app.add_api_route("/sign-in", show_sign_in, methods=["GET"])
    app.add_api_route("/sign-in", sign_in, methods=["POST"])
    app.add_api_route("/sign-out", sign_out, methods=["POST"])
    app.add_exception_handler(SignInNeededError, _to_sign_in)
    app.add_exception_handler(HTTPException, _refused)
    app.middleware("http")(_guard)
    app.add_middleware(
        TrustedHostMiddleware,
        allowed_hosts=["127.0.0.1", "localhost", "[::1]", *surroundings.settings.web.host_names],
    )
    return app


# --- who is asking -----------------------------------------------------------------------------


def surroundings_of(request: Request) -> Surroundings:
    """The node behind a request."""
    found: Surroundings = request.app.state.surroundings
    return found


def session_of(request: Request) -> Session | None:
    """Who is asking; None: nobody who is known."""
    node = surroundings_of(request)
    if (name := _named_by_proxy(request, node.settings)) is not None:
        role = node.accounts.role_of(name)
        # The proxy's own sign-in keeps no session here: the token is bound to the cookie that the
        # first page set, which another site can neither read nor set.
        return None if role is None else Session(name, role, _proxy_csrf(request))
    token = request.cookies.get(COOKIE)
    return None if token is None else node.accounts.session(token)


def needs(role: Role) -> Any:  # noqa: ANN401  # FastAPI's own marker
    """A dependency: the session of somebody who may do what `role` may."""

    def check(request: Request) -> Session:
        session = session_of(request)
        if session is None:
            raise SignInNeededError
        if not session.role.may(role):
            note(request, session, "refused", path=request.url.path)
            raise HTTPException(403, f"This needs the role of {role.value}.")
        return session

    return Depends(check)


Viewer = Annotated[Session, needs(Role.VIEWER)]
Operator = Annotated[Session, needs(Role.OPERATOR)]
Administrator = Annotated[Session, needs(Role.ADMINISTRATOR)]


async def changes(request: Request) -> None:
    """A dependency of every change: the request comes from a page of ours.

    Raises:
        HTTPException: 403, the token is missing or another session's.
    """
    session = session_of(request)
    if session is None:
        raise SignInNeededError
    given = request.headers.get(CSRF_HEADER) or (await request.form()).get(CSRF_FIELD)
    if not isinstance(given, str) or not secrets.compare_digest(given, session.csrf):
        raise HTTPException(403, "This page is out of date: load it again, then repeat.")


def note(request: Request, session: Session | None, what: str, **facts: str) -> None:
    """Write what somebody did into the audit trail."""
    surroundings_of(request).audit.append(
        AuditEvent.OPERATOR,
        what=f"web-{what}",
        user=session.name if session is not None else "",
        address=request.client.host if request.client is not None else "",
        **facts,
    )


def _named_by_proxy(request: Request, settings: Settings) -> str | None:
    header, client = settings.web.proxy_user_header, request.client
    if not header or client is None:
        return None
    name = request.headers.get(header)
    if name is None:
        return None
    address = ipaddress.ip_address(client.host)
    trusted = (ipaddress.ip_network(one) for one in settings.web.proxy_addresses)
    if not any(address in network for network in trusted):
        log.warning("web.header-from-elsewhere")
        return None
    return name.strip().lower()


def _proxy_csrf(request: Request) -> str:
    return request.cookies.get(f"{COOKIE}-csrf") or str(request.state.new_csrf)


# --- signing in --------------------------------------------------------------------------------


def show_sign_in(request: Request) -> Response:
    """The form."""
    if session_of(request) is not None:
        return RedirectResponse("/", status_code=303)
    return page(request, "sign_in.html", None)


def sign_in(
    request: Request,
    name: Annotated[str, Form(max_length=64)] = "",
    password: Annotated[str, Form(max_length=1024)] = "",
    onward: Annotated[str, Form(max_length=512)] = "/",
) -> Response:
    """Begin a session, or say that it was refused."""
    node = surroundings_of(request)
    # Before there is a session there is no token: a form of another site is told by its origin.
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "The form was sent by another site.")
    try:
        token = node.accounts.sign_in(name.strip().lower(), password)
    except SignInRefusedError as error:
        note(request, None, "sign-in-refused", reason="locked" if error.locked else "wrong")
        return page(request, "sign_in.html", None, {"refused": True}, status_code=401)
    note(request, node.accounts.session(token), "sign-in")
    answer = RedirectResponse(onward if _is_ours(onward) else "/", status_code=303)
    answer.set_cookie(
        COOKIE,
        token,
        httponly=True,
        samesite="strict",
        secure=_is_https(request),
        path="/",
    )
    return answer


async def sign_out(request: Request) -> Response:
    """End the session."""
    await changes(request)
    token = request.cookies.get(COOKIE)
    if token is not None:
        note(request, session_of(request), "sign-out")
        surroundings_of(request).accounts.sign_out(token)
    answer = RedirectResponse("/sign-in", status_code=303)
    answer.delete_cookie(COOKIE, path="/")
    return answer


def _is_ours(path: str) -> bool:
    """A path on this node: browsers read two slashes of either kind as another host."""
    return path.startswith("/") and not path.startswith(("//", "/\\"))


def _is_https(request: Request) -> bool:
    return request.url.scheme == "https"


# --- answering ---------------------------------------------------------------------------------


def page(
    request: Request,
    template: str,
    session: Session | None,
    facts: Mapping[str, object] | None = None,
    *,
    status_code: int = 200,
) -> HTMLResponse:
    """A whole page, or a part of one where the template is a part."""
    templates: Jinja2Templates = request.app.state.templates
    node = surroundings_of(request)
    return templates.TemplateResponse(
        request,
        template,
        {
            "session": session,
            "ae_title": node.settings.node.ae_title,
            "Role": Role,
            **(facts or {}),
        },
        status_code=status_code,
    )


async def _guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    request.state.new_csrf = secrets.token_urlsafe(24)
    length = request.headers.get("Content-Length", "0")
    if request.method not in SAFE_METHODS and (
        not length.isdigit() or int(length) > LARGEST_BODY_BYTES or _is_chunked(request)
    ):
        answer: Response = Response("The request is too large.", status_code=413)
    else:
        answer = await call_next(request)
    for header, value in SECURITY_HEADERS.items():
        answer.headers.setdefault(header, value)
    if request.url.path.startswith("/static/"):
        answer.headers["Cache-Control"] = "max-age=3600"
    if surroundings_of(request).settings.web.proxy_user_header and (
        f"{COOKIE}-csrf" not in request.cookies
    ):
        answer.set_cookie(
            f"{COOKIE}-csrf",
            request.state.new_csrf,
            httponly=True,
            samesite="strict",
            secure=_is_https(request),
        )
    return answer


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.headers.get("Transfer-Encoding", "").lower()


def _to_sign_in(request: Request, _error: Exception) -> Response:
    if "HX-Request" in request.headers:  # a part of a page cannot be the form
        return Response(status_code=401, headers={"HX-Redirect": "/sign-in"})
    if request.method not in SAFE_METHODS:
        return RedirectResponse("/sign-in", status_code=303)
    onward = request.url.path
    return page(request, "sign_in.html", None, {"onward": onward}, status_code=401)


def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = str(error.detail) if isinstance(error, HTTPException) else ""
    if status == 404:
        detail = "There is nothing of that name here. It may have been removed after its time."
    facts = {"status": status, "detail": detail}
    return page(request, "refused.html", session_of(request), facts, status_code=status)
