"""The real server of the teleop page, asked as browsers and as others ask."""

from __future__ import annotations

import http.client
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip('uvicorn', reason='needs uvicorn (extra `page`)')

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes import page_server
from robot_rl.nodes.page_helm import Helm, PageConfig
from robot_rl.nodes.page_server import PageServer, Pictures

ABOUT = {'robot': 'arm', 'joints': [{'name': 'a', 'lower': -1, 'upper': 1}], 'gripper': False}
TOKEN = 'a-token-of-the-test'
DEADLINE_S = 10.0


def serving(helm: Helm, pictures: Pictures, host: str, port: int, token: str = '') -> PageServer:
    given = PageConfig(page_host=host, page_port=port, page_token=token)
    return PageServer(helm, pictures, ABOUT, given)


class Served:
    """A server, and what it serves."""

    def __init__(self, host: str = '127.0.0.1', token: str = ''):
        self.helm, self.pictures = Helm(1, 0.25), Pictures()
        self.server = serving(self.helm, self.pictures, host, 0, token)
        self.host = f'127.0.0.1:{self.server.port}'

    def ask(self, path: str = '/', method: str = 'GET', **headers: str) -> tuple[int, str, dict]:
        """Return status, text and headers of the answer; `headers` may name another Host."""
        connection = http.client.HTTPConnection('127.0.0.1', self.server.port, timeout=DEADLINE_S)
        given = {'Host': self.host} | {name.title(): value for name, value in headers.items()}
        connection.request(method, path, headers=given)
        response = connection.getresponse()
        with response:
            return response.status, response.read().decode(), dict(response.getheaders())

    @contextmanager
    def socket(self, path: str = '/helm', origin: str | None = None, **headers: str) -> Iterator:
        with connect(
            f'ws://{self.host}{path}',
            origin=origin,
            additional_headers=headers,
            open_timeout=DEADLINE_S,
            proxy=None,
        ) as socket:
            yield socket


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started = []

    def start(*args: str) -> Served:
        started.append(Served(*args))
        return started[-1]

    yield start
    for served in started:
        served.server.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, 'it never was'
        time.sleep(0.005)


def heard(socket: ClientConnection, kind: str) -> dict | str:
    """Return the next message of a kind: about, view or refused."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        message = json.loads(socket.recv(DEADLINE_S))
        if kind in message:
            return message[kind]
    raise AssertionError(f'no {kind}')


def hold(served: Served, socket: ClientConnection, joint: float) -> None:
    """Hold a joint until that is heard: an answer to what was shown too long ago is refused."""
    end = time.monotonic() + DEADLINE_S
    while not served.helm.wish(time.monotonic()).enabled:
        assert time.monotonic() < end, 'it is not held'
        seen = heard(socket, 'view')['time']
        socket.send(json.dumps({'hold': {'seen': seen, 'joints': [joint]}}))
        time.sleep(0.005)


def test_the_page_and_its_files_are_served(serve):
    served = serve()
    status, text, headers = served.ask()
    assert status == 200
    assert '<title>' in text
    assert "frame-ancestors 'none'" in headers['content-security-policy']
    for file in ('page.js', 'page.css', 'icon.svg'):
        assert served.ask(f'/page/{file}')[0] == 200
    assert served.ask('/page/../teleop_page.py')[0] == 404
    assert served.ask('/page/%2e%2e/teleop_page.py')[0] == 404
    assert served.server.url == f'http://127.0.0.1:{served.server.port}/'


def test_a_page_is_told_and_heard(serve):
    served = serve()
    served.helm.tell({'joints': [0.5]})
    with served.socket() as socket:
        assert heard(socket, 'about') == ABOUT
        view = heard(socket, 'view')
        assert (view['joints'], view['control'], view['pages']) == ([0.5], 'yours', 1)
        hold(served, socket, 0.5)
        socket.send(json.dumps({'ask': 'start'}))
        until(lambda: served.helm.calls() == ['start'])
    assert not served.helm.wish(time.monotonic()).enabled


def test_a_page_that_falls_silent_has_let_go(serve):
    served = serve()
    with served.socket() as socket:
        hold(served, socket, 1)
        until(lambda: not served.helm.wish(time.monotonic()).enabled)
        assert heard(socket, 'view')['control'] == 'yours'


@pytest.mark.parametrize('said', ['no JSON', b'\xff\xfe', '{"ask": "fly"}', '{"hold": {}}'])
def test_what_is_no_message_gets_one_line_and_the_page_goes_on(serve, said):
    served = serve()
    with served.socket() as socket:
        socket.send(said)
        refused = heard(socket, 'refused')
        assert refused.startswith('page: ')
        assert '\n' not in refused
        socket.send(json.dumps({'ask': 'estop'}))
        until(lambda: served.helm.calls() == ['estop'])


def test_what_is_too_long_closes_the_page(serve):
    served = serve()
    with served.socket() as socket:
        socket.send('x' * 100_000)
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(DEADLINE_S)
    with served.socket() as socket:
        until(lambda: heard(socket, 'view')['control'] == 'yours')


def test_anybody_on_the_page_stops_also_without_a_socket(serve):
    served = serve()
    assert served.ask('/stop', 'POST', origin=f'http://{served.host}')[0] == 200
    assert served.helm.calls() == ['estop']
    assert served.ask('/stop')[0] == 405


@pytest.mark.parametrize(
    'host', ['evil.example', 'evil.example:80', '127.0.0.1.evil.example', '', '[', 'a b']
)
def test_a_name_that_points_here_is_not_this_machine(serve, host):
    served = serve()
    for method, path in (('GET', '/'), ('POST', '/stop')):
        status, text, _ = served.ask(path, method, host=host)
        assert status in (400, 403), text
    assert served.helm.calls() == []


@pytest.mark.parametrize('name', ['localhost', '127.0.0.1', '[::1]', '192.168.1.5', 'LOCALHOST'])
def test_names_of_this_machine_are(serve, name):
    served = serve()
    host = f'{name}:{served.server.port}'
    assert served.ask(host=host, origin=f'http://{host}'.lower())[0] == 200


@pytest.mark.parametrize(
    'origin',
    ['http://evil.example', 'null', 'http://127.0.0.1:1', 'http://127.0.0.1.evil.example'],
)
def test_another_page_of_the_same_browser_has_no_way_in(serve, origin):
    served = serve()
    with pytest.raises(InvalidStatus), served.socket(origin=origin):
        pass
    with pytest.raises(InvalidStatus), served.socket('/camera/front', origin=origin):
        pass
    assert served.ask('/stop', 'POST', origin=origin)[0] == 403
    assert served.helm.calls() == []
    with served.socket(origin=f'http://{served.host}') as socket:
        assert heard(socket, 'view')['control'] == 'yours'


def test_other_machines_need_the_token(serve):
    served = serve('0.0.0.0', TOKEN)
    assert served.server.url.endswith(f':{served.server.port}/?token={TOKEN}')
    for path in ('/', '/page/page.js', '/?token=', f'/?token={TOKEN}x', f'/?token={TOKEN[:-1]}',
                 '/?token=%F0%9F%98%80'):  # fmt: skip
        assert served.ask(path)[0] == 403
    assert served.ask('/stop', 'POST')[0] == 403
    with pytest.raises(InvalidStatus), served.socket():
        pass
    status, _, headers = served.ask(f'/?token={TOKEN}')
    assert (status, headers['location']) == (303, '/')
    kept = headers['set-cookie']
    assert 'HttpOnly' in kept
    cookie = kept.split(';')[0]
    assert served.ask(cookie=cookie)[0] == 200
    assert served.ask('/stop', 'POST', cookie=cookie)[0] == 200
    with served.socket(Cookie=cookie) as socket:
        assert heard(socket, 'about') == ABOUT
    name, _, _ = cookie.partition('=')
    assert served.ask(cookie=f'{name}=wrong')[0] == 403
    assert served.ask(cookie='"')[0] == 403


def test_a_token_is_made_where_none_is_given(serve):
    tokens = [serve('0.0.0.0').server.url.partition('?token=')[2] for _ in range(2)]
    assert len(set(tokens)) == 2
    assert all(len(token) > 16 for token in tokens)


def test_an_address_that_is_not_to_be_had_is_one_line(serve):
    served = serve()
    for host, port in (('127.0.0.1', served.server.port), ('198.51.100.1', 0)):
        with pytest.raises(SpecError, match=f'page_host {host}, page_port {port}: '):
            serving(Helm(1, 0.25), Pictures(), host, port)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(RobotRLError, match=r"needs uvicorn: pip install 'robot_rl\[page\]'"):
        runpy.run_path(page_server.__file__)


def test_a_slow_reader_gets_the_newest_picture(serve):
    served = serve()
    with served.socket('/camera/front/left') as socket:
        until(lambda: served.pictures.watched() == {'front/left'})
        served.pictures.put('front/left', b'first')
        assert socket.recv(DEADLINE_S) == b'first'
        for number in range(50):
            served.pictures.put('front/left', b'%d' % number)
        with pytest.raises(TimeoutError):  # the first one has not been shown yet
            socket.recv(0.2)
        socket.send('shown')
        assert socket.recv(DEADLINE_S) == b'49'
    until(lambda: not served.pictures.watched())


def test_a_closed_server_frees_its_address(serve, capfd):
    served = serve()
    with served.socket() as socket, served.socket('/camera/front'):
        heard(socket, 'view')
        served.server.close()
    assert capfd.readouterr().err == ''
    again = serving(Helm(1, 0.25), Pictures(), '127.0.0.1', served.server.port)
    again.close()
