"""The web server of the teleop page: who may reach it, and what goes between browser and helm.

It runs in a thread with an event loop of its own, so that no browser is in the node's way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes.page_helm import Helm, PageConfig

try:
    import uvicorn
    import websockets  # noqa: F401  (uvicorn takes it by itself)
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import (
        FileResponse,
        PlainTextResponse,
        RedirectResponse,
        Response,
    )
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket, WebSocketClose, WebSocketDisconnect
except ImportError as error:
    raise RobotRLError(
        f"the teleop page needs {error.name}: pip install 'robot_rl[page]'"
    ) from None

FILES = Path(__file__).parent / 'page'
# How often a page is told what the arm does [s]; how often a picture is looked for.
_VIEW_EVERY_S, _LOOK_EVERY_S = 0.05, 0.02
# What a browser says is a few hundred bytes.
_MAX_MESSAGE = 4096
# A browser that does not answer for so long is gone: its page's control is free [s].
_PING_S = 2.0
# Nobody else's page may show this one in a frame, where a click would move the arm.
_HEADERS = [
    (
        'Content-Security-Policy',
        "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    ),
    ('X-Content-Type-Options', 'nosniff'),
    ('Referrer-Policy', 'no-referrer'),
    ('Cache-Control', 'no-cache'),
]


class Pictures:
    """The newest picture of each camera, as JPEG (or PNG) bytes, and how many pages look at it."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, bytes]] = {}
        self._watched: Counter[str] = Counter()
        self._lock = threading.Lock()

    def put(self, camera: str, picture: bytes) -> None:
        """Take a picture; the one before is forgotten."""
        number, _ = self._newest.get(camera, (0, b''))
        self._newest[camera] = number + 1, picture

    def newest(self, camera: str) -> tuple[int, bytes]:
        """Return the number and the bytes of a camera's newest picture; 0: none has come."""
        return self._newest.get(camera, (0, b''))

    def watch(self, camera: str, pages: int) -> None:
        """Count `pages` more (or fewer) that look at a camera."""
        with self._lock:
            self._watched[camera] += pages

    def watched(self) -> set[str]:
        """Return the cameras that somebody looks at."""
        with self._lock:
            return set(+self._watched)


class Gate:
    """Lets through whoever may reach the page; ASGI.

    A name in Host that is not this machine's is a page of somebody else's who has let it point
    here (DNS rebinding); an Origin that is not Host is somebody else's page in the same browser.
    Where a `token` is needed it comes once in the address, and from then on as a cookie.
    """

    def __init__(self, app: ASGIApp, names: set[str], token: str):
        self._app, self._names, self._token = app, names, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page answer."""
        asked = HTTPConnection(scope)
        cookie = f'robot_rl_token_{scope["server"][1]}'  # cookies do not tell ports apart
        answer: ASGIApp = self._app
        if refusal := self._foreign(asked):
            answer = _refuse(scope, refusal)
        elif self._token and not self._is(asked.cookies.get(cookie, '')):
            if self._is(asked.query_params.get('token', '')):
                # From now on the cookie is enough, and the address is without the token.
                answer = RedirectResponse('/', status_code=303)
                answer.set_cookie(cookie, self._token, httponly=True, samesite='lax')
            else:
                answer = _refuse(scope, 'the address ends in ?token=..., as the node printed it')
        await answer(scope, receive, send)

    def _foreign(self, asked: HTTPConnection) -> str:
        """Say why a request is another page's, if it is."""
        host = asked.headers.get('host', '').lower()
        origin = asked.headers.get('origin', f'http://{host}').lower()
        name = _host_name(host)
        if not (name in self._names or _is_address(name)):
            return f'host {name!r} is not this machine'
        if origin not in (f'http://{host}', f'https://{host}'):
            return f'origin {origin!r} is not this page'
        return ''

    def _is(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())


class PageServer:
    """Serves the page at `url` until it is closed.

    `about` is what a page has to know of the arm. Raises RobotRLError where the address is not
    to be had.
    """

    def __init__(self, helm: Helm, pictures: Pictures, about: dict, given: PageConfig):
        host, token = given.page_host, given.page_token
        self._helm, self._pictures, self._about = helm, pictures, about
        self._socket = _listening(host, given.page_port)
        self.port = self._socket.getsockname()[1]
        if not _is_loopback(host):
            token = token or secrets.token_urlsafe(16)
        self.url = f'http://{_shown_host(host)}:{self.port}/'
        self.url += f'?token={token}' if token else ''
        app = Gate(self._routes(), _names(host), token)
        self._server = uvicorn.Server(_config(app))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={'sockets': [self._socket]}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Close all pages and free the address."""
        self._server.should_exit = True
        self._thread.join(3.0)
        self._socket.close()

    def _routes(self) -> Starlette:
        return Starlette(
            routes=[
                Route('/', self._index),
                Route('/stop', self._stop, methods=['POST']),
                WebSocketRoute('/helm', self._at_helm),
                WebSocketRoute('/camera/{name:path}', self._at_camera),
                Mount('/page', StaticFiles(directory=FILES)),
            ]
        )

    async def _index(self, _: Request) -> Response:
        return FileResponse(FILES / 'index.html')

    async def _stop(self, _: Request) -> Response:
        """Stop for a page whose way to the helm is broken."""
        self._helm.stop()
        return PlainTextResponse('stopping\n')

    async def _at_helm(self, socket: WebSocket) -> None:
        """Tell a page what the arm does, and hear what it says, until it is closed."""
        await socket.accept()
        page = self._helm.join()
        telling = asyncio.create_task(self._tell(socket, page))
        try:
            await socket.send_json({'about': self._about})
            while True:
                said = await _heard(socket)
                try:
                    self._helm.hear(page, said, time.monotonic())
                except RobotRLError as error:
                    await socket.send_json({'refused': ' '.join(str(error).split())})
        except WebSocketDisconnect:
            pass
        finally:
            self._helm.leave(page)
            telling.cancel()

    async def _tell(self, socket: WebSocket, page: int) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            while True:  # one that is slow to read is told less often: nothing is queued
                await socket.send_json({'view': self._helm.view(page, time.monotonic())})
                await asyncio.sleep(_VIEW_EVERY_S)

    async def _at_camera(self, socket: WebSocket) -> None:
        """Give a page the newest picture whenever it has shown the one before."""
        await socket.accept()
        camera, shown = socket.path_params['name'], asyncio.Event()
        shown.set()
        self._pictures.watch(camera, 1)
        showing = asyncio.create_task(self._show(socket, camera, shown))
        try:
            while True:
                await _heard(socket)
                shown.set()
        except WebSocketDisconnect:
            pass
        finally:
            self._pictures.watch(camera, -1)
            showing.cancel()

    async def _show(self, socket: WebSocket, camera: str, shown: asyncio.Event) -> None:
        last = 0
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await shown.wait()
                number, picture = self._pictures.newest(camera)
                if number == last:
                    await asyncio.sleep(_LOOK_EVERY_S)
                    continue
                last = number
                shown.clear()
                await socket.send_bytes(picture)


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop='asyncio',
        ws='websockets-sansio',
        ws_max_size=_MAX_MESSAGE,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PING_S,
        ws_per_message_deflate=False,  # pictures are compressed already
        lifespan='off',
        log_level='error',
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=_HEADERS,
        timeout_graceful_shutdown=1,
    )


async def _heard(socket: WebSocket) -> str:
    """Return the next message; bytes are text as well. Raises WebSocketDisconnect."""
    message = await socket.receive()
    if message['type'] == 'websocket.disconnect':
        raise WebSocketDisconnect(message.get('code', 1000))
    return message.get('text') or (message.get('bytes') or b'').decode('utf-8', 'replace')


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there, on any free port where `port` is 0."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise SpecError(f'page_host {host}, page_port {port}: {reason}') from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _names(host: str) -> set[str]:
    """Return the names by which a browser may call this machine."""
    own = socket.gethostname().lower()
    return {'localhost', host.lower(), own, own.split('.')[0], f'{own.split(".")[0]}.local'}


def _shown_host(host: str) -> str:
    """Return where another machine finds this one that listens on `host`."""
    if host in ('', '0.0.0.0', '::'):
        return socket.gethostname()
    return f'[{host}]' if ':' in host else host


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f'//{host}').hostname or ''
    except ValueError:
        return ''


def _refuse(scope: Scope, words: str) -> ASGIApp:
    """Return what answers a request that is not let through."""
    if scope['type'] == 'websocket':
        return WebSocketClose(code=1008, reason=words)
    return PlainTextResponse(f'{words}\n', status_code=403)
