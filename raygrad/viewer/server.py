"""The server behind `raygrad view`: GET only, loopback by default, a token elsewhere, files of this package only.

Answers are made in threads, so a page that needs a large table keeps no other from being served. They carry an ETag of
the folder's fingerprint: a page that asks again gets 304 until a table has changed.
"""

import asyncio
import errno
import hashlib
import hmac
import json
import math
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from aiohttp import web

from raygrad.errors import BadInput
from raygrad.reports import curves, pictures
from raygrad.viewer import answers
from raygrad.viewer.catalog import Catalog, Kind, NotFound, fingerprint, is_running

STATIC = Path(__file__).parent / "static"
COOKIE = "raygrad-token"
FIRST_WAIT_S = 0.5  # a list waits so long for its lines before it is sent with those that are known
FORKS_WAIT_S = 10.0  # the forks of a run are asked for when everything else is drawn
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_CATALOG: web.AppKey[Catalog] = web.AppKey("catalog", Catalog)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_Answer = Callable[[web.Request], Any]


def application(catalog: Catalog, token: str | None = None) -> web.Application:
    """The viewer over a catalog. With a `token` every request has to bring it; without, it has to come to loopback."""
    guard = _with_token(token) if token is not None else _on_loopback
    app = web.Application(middlewares=[_safely, guard])
    app[_CATALOG] = catalog
    page = _file(STATIC / "index.html")
    run, sweep = "/api/run/{at:.+}", "/api/sweep/{at:.+}"
    app.add_routes(
        [
            web.get("/", page),
            web.get("/run/{at:.+}", page),
            web.get("/sweep/{at:.+}", page),
            web.get("/compare", page),
            web.get("/palette.css", _palette),
            web.static("/static", STATIC),
            web.get("/api/list", _plain(lambda r: answers.listed(r.app[_CATALOG], FIRST_WAIT_S))),
            web.get("/api/compare", _plain(_compare)),
            web.get("/api/forks/{at:.+}", _plain(lambda r: answers.forks(*_at(r), FORKS_WAIT_S))),
            *(
                web.get(f"/api/{what}/{{at:.+}}", _about("run", answer))
                for what, answer in {
                    "curves": lambda r: answers.run_curves(*_at(r), _axis(r)),
                    "participation": lambda r: answers.participation(*_at(r)),
                    "hosts": lambda r: answers.hosts(*_at(r), _number(r, "from"), _number(r, "to")),
                    "partition": lambda r: answers.partition(*_at(r)),
                }.items()
            ),
            web.get(run, _about("run", lambda r: answers.run(*_at(r)))),
            web.get(sweep, _about("sweep", lambda r: answers.sweep(*_at(r)))),
        ]
    )
    return app


def serve(catalog: Catalog, host: str, port: int, token: str | None, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` gets the address once it answers. Raises BadInput for a port in use."""
    sock = _bound(host, port)
    port = sock.getsockname()[1]
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    address = f"http://{shown}:{port}/" + (f"?token={quote(token)}" if token else "")
    with sock:
        asyncio.run(_serve(application(catalog, token), sock, lambda: ready(address)))


async def _serve(app: web.Application, sock: socket.socket, ready: Callable[[], None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pa.array([0.0])  # loads what pyarrow loads with its first array: a third of a second, not of the first answer
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        ready()
        await stop.wait()
    finally:
        app[_CATALOG].close()
        await runner.cleanup()


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    with suppress(ValueError):
        return ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_urlsafe(24)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises BadInput."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise BadInput(f"port {port} of {host} is in use; --port 0 takes one that is free") from e
        raise BadInput(f"{host}:{port} cannot be listened at: {e.strerror or e}") from e
    except OverflowError as e:
        raise BadInput(f"port {port} is none; ports go from 0 to 65535") from e


# --- requests


def _at(request: web.Request) -> tuple[Catalog, str]:
    return request.app[_CATALOG], request.match_info["at"]


def _axis(request: web.Request) -> curves.Axis:
    axis = request.query.get("axis", "round")
    if axis not in curves.AXES:
        raise BadInput(f"axis {axis!r} is none of {', '.join(curves.AXES)}")
    return axis


def _number(request: web.Request, name: str) -> float | None:
    text = request.query.get(name, "")
    try:
        number = float(text) if text else None
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise BadInput(f"{name} {text!r} is no number")
    return number


def _compare(request: web.Request) -> answers.Json:
    runs = _chosen(request.query.get("runs", ""))
    return answers.compare(request.app[_CATALOG], runs, _axis(request), _number(request, "target"))


def _chosen(text: str) -> list[str]:
    """The runs of a list with commas, where names may have commas, too: a piece without "/" begins the next run's."""
    found, begun = [], ""
    for piece in text.split(","):
        begun += piece
        if "/" in piece:
            found.append(begun)
        begun = "" if "/" in piece or not begun else f"{begun},"
    return [*found, begun.rstrip(",")] if begun else found


def _plain(answer: _Answer) -> _Handler:
    """An answer whose ETag is that of its content."""

    async def handle(request: web.Request) -> web.StreamResponse:
        value = await asyncio.to_thread(answer, request)
        tag = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
        return _unchanged(request, tag) or _json(value, tag)

    return handle


def _about(kind: Kind, answer: _Answer) -> _Handler:
    """An answer that changes when the folder's files do, or when its process begins or ends."""

    def tagged(request: web.Request) -> str:
        folder = request.app[_CATALOG].folder(request.match_info["at"], kind)
        state = repr((fingerprint(folder), is_running(folder), sorted(request.query.items()), request.path))
        return hashlib.sha256(state.encode()).hexdigest()[:32]

    async def handle(request: web.Request) -> web.StreamResponse:
        tag = await asyncio.to_thread(tagged, request)
        return _unchanged(request, tag) or _json(await asyncio.to_thread(answer, request), tag)

    return handle


def _unchanged(request: web.Request, tag: str) -> web.Response | None:
    """304 for who has this already."""
    if any(found.value == tag for found in request.if_none_match or ()):
        return web.Response(status=304, headers={"ETag": f'"{tag}"'})
    return None


def _json(value: Any, tag: str) -> web.Response:
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    body = text.encode(errors="replace")
    response = web.Response(body=body, content_type="application/json", charset="utf-8", headers={"ETag": f'"{tag}"'})
    if len(body) > 1024:
        response.enable_compression()
    return response


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which are no JSON."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _file(path: Path) -> _Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return handle


async def _palette(request: web.Request) -> web.StreamResponse:
    """The colours of the reports' pictures as CSS variables, for a light and a dark ground."""
    light, dark = (";".join(f"{n}:{c}" for n, c in found.items()) for found in (pictures.LIGHT, pictures.DARK))
    text = (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )
    return web.Response(text=text, content_type="text/css")


# --- what every request goes through


@web.middleware
async def _safely(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Safe headers, and errors as one line of JSON."""
    try:
        response = await handler(request)
    except web.HTTPException as e:
        e.headers.update(_HEADERS)
        raise
    except NotFound as e:
        response = web.json_response({"error": str(e)}, status=404)
    except BadInput as e:
        response = web.json_response({"error": str(e)}, status=422)
    except PermissionError as e:
        said = f"{e.filename} cannot be read: {e.strerror}; may the user who started the viewer read it?"
        response = web.json_response({"error": said}, status=422)
    except Exception as e:  # a file that no raygrad wrote
        said = " ".join(f"{type(e).__name__}: {e}".split())
        response = web.json_response({"error": f"this cannot be shown; is a file damaged? ({said})"}, status=500)
    response.headers.update(_HEADERS)
    return response


@web.middleware
async def _on_loopback(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Only requests to this machine by its own name: a page elsewhere cannot make a browser read here."""
    if not is_loopback(request.url.host or ""):
        raise web.HTTPForbidden(text="this viewer answers at loopback addresses only; see raygrad view --host")
    return await handler(request)


def _with_token(token: str) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        """The token, once in the address and then as a cookie, or as a bearer token."""
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = request.query.get("token")
        for found in (given, request.cookies.get(COOKIE), bearer):
            if found and hmac.compare_digest(found.encode(), token.encode()):
                break
        else:
            raise web.HTTPUnauthorized(text="this viewer needs the token that `raygrad view` printed: ?token=…")
        if given is None:
            return await handler(request)
        response = web.HTTPFound(request.url.without_query_params("token"))
        response.set_cookie(COOKIE, token, httponly=True, samesite="Lax")  # a link elsewhere may lead here
        return response

    return guard
