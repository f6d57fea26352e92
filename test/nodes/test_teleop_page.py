"""The teleop page in a real browser: a person leads the twin through the guard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

pytest.importorskip('uvicorn', reason='needs uvicorn (extra `page`)')
pytest.importorskip('playwright', reason='needs playwright (extra `dev`)')

from playwright.sync_api import Browser, Page, expect, sync_playwright
from rcl_interfaces.msg import Log
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from robot_rl.nodes.support import LATCHED_READER as READER
from robot_rl.robots.kinematics import KinematicChain

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason='needs chromium (Debian: apt-get install chromium)'
)
# What the twin may still move in REST_S when it holds [rad].
STILL, REST_S = 2e-3, 0.3
# After which a button that does not move the arm is pressed anew [s].
PRESSED_S = 4.0
PHONE = {
    'viewport': {'width': 360, 'height': 740},
    'has_touch': True,
    'is_mobile': True,
    'color_scheme': 'dark',
}

# The colour in the middle of a canvas of 64 x 48 pixels, RGBA.
MIDDLE = "canvas => [...canvas.getContext('2d').getImageData(32, 24, 1, 1).data]"


def page_url(supervisor) -> str:
    """Return the address that the node has printed."""
    said = (supervisor.log_dir / 'teleop.out').read_text()
    (line,) = [line for line in said.splitlines() if line.startswith('page: ')]
    return line.removeprefix('page: ')


class Twin:
    """The twin behind guard and teleop, as the test sees it."""

    def __init__(self, supervisor, observer, robot):
        supervisor.start('sim_robot', {'robot': 'ur5e', 'task': ''})
        supervisor.start('command_guard', {'robot': 'ur5e', 'start': 'ramp', 'timeout_s': 0.1})
        supervisor.start('teleop', {'device': 'page', 'robot': 'ur5e', 'page_port': 0})
        supervisor.wait_ready()
        self._observer, self._robot = observer, robot
        self._chain = KinematicChain.from_spec(robot)
        self._states = observer.listen(JointState, 'joint_states')
        self._stopped = observer.listen(Bool, 'command_guard/estop_active', READER)
        source = observer.listen(String, 'command_guard/source', READER)
        self.until(lambda: source and source[-1].data != 'starting', 'the guard listens still')
        self.until(lambda: self._states, 'no joint states')
        self.url = page_url(supervisor)

    def until(self, condition: Callable[[], object], what: str) -> object:
        return self._observer.until(condition, what)

    def joint(self, name: str) -> float:
        state = self._states[-1]
        return state.position[list(state.name).index(name)]

    def tool(self) -> np.ndarray:
        """Return where the tool is [3] in the base frame [m]."""
        return self._chain.forward([self.joint(name) for name in self._robot.joints])[0]

    def is_at_rest(self) -> bool:
        before = np.array(self._states[-1].position)
        time.sleep(REST_S)
        return bool(np.abs(np.array(self._states[-1].position) - before).max() < STILL)

    def is_stopped(self) -> bool:
        return bool(self._stopped) and self._stopped[-1].data


@pytest.fixture
def twin(supervisor, observer, ur5e) -> Twin:
    return Twin(supervisor, observer, ur5e)


@pytest.fixture(scope='module')
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox: those who run tests in containers are often root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Page]]:
    """Return `open(url, **context)`, which opens a page that has control or watches.

    Whatever a page's script complains about fails the test.
    """
    contexts, complaints = [], []

    def visit(url: str, **options) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.goto(url)
        expect(page.locator('#connection')).to_have_text('connected')
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints


def hold(page: Page, label: str) -> None:
    """Put the mouse down on a button, and leave it there."""
    page.get_by_label(label, exact=True).hover()
    page.mouse.down()


def lead(twin: Twin, page: Page, label: str, name: str, by: float) -> None:
    """Hold a button until a joint has moved `by` or farther in the direction of its sign.

    Where a busy machine has let it go, or was too late to follow, it is held anew, as people do.
    """
    start, pressed_at = twin.joint(name), -PRESSED_S

    def moved() -> bool:
        nonlocal pressed_at
        if time.monotonic() - pressed_at > PRESSED_S or not page.locator('.held').count():
            page.mouse.up()
            hold(page, label)
            pressed_at = time.monotonic()
        return (twin.joint(name) - start) / by > 1

    twin.until(moved, f'{name} does not move')


def test_a_held_button_moves_the_twin_and_stop_holds_it(twin, visit):
    page = visit(twin.url)
    expect(page.locator('#control')).to_have_text('You have control')
    expect(page.locator('#guard')).to_have_text('guard: idle')
    lead(twin, page, 'elbow_joint +', 'elbow_joint', 0.05)
    expect(page.locator('#guard')).to_have_text('guard: teleop')
    page.mouse.up()
    twin.until(twin.is_at_rest, 'it moves on after it was let go')

    lead(twin, page, 'elbow_joint -', 'elbow_joint', -0.02)
    page.keyboard.press('Escape')  # stop, while the button is held
    twin.until(twin.is_stopped, 'the guard has not stopped')
    twin.until(twin.is_at_rest, 'it moves on though the guard has stopped')
    page.mouse.up()

    stands = twin.joint('elbow_joint')
    hold(page, 'elbow_joint +')
    expect(page.locator('#said')).to_contain_text('emergency stop is reset')
    time.sleep(REST_S)
    page.mouse.up()
    assert abs(twin.joint('elbow_joint') - stands) < STILL

    page.get_by_role('button', name='Reset…').click()
    assert twin.is_stopped()  # until it is confirmed
    page.get_by_role('button', name='Release').click()
    twin.until(lambda: not twin.is_stopped(), 'the stop is not released')
    expect(page.locator('#reset')).to_be_hidden()
    lead(twin, page, 'elbow_joint +', 'elbow_joint', 0.02)
    page.locator('#stop').hover()  # the pointer is the button's until it is let go
    page.mouse.up()
    twin.until(twin.is_at_rest, 'it moves on after it was let go')
    page.locator('#stop').click()
    twin.until(twin.is_stopped, 'the guard has not stopped')


@pytest.mark.slow
def test_a_closed_tab_has_let_go_and_the_next_page_has_control(twin, visit):
    page, other = visit(twin.url), visit(twin.url)
    expect(other.locator('#control')).to_have_text('Another page has control')
    hold(other, 'wrist_1_joint +')
    expect(other.locator('#said')).to_have_text('Take control first.')
    other.mouse.up()
    lead(twin, page, 'wrist_1_joint +', 'wrist_1_joint', 0.05)
    other.get_by_role('button', name='Take control').click()
    expect(other.locator('#said')).to_contain_text('wait until it lets go')
    page.close()
    twin.until(twin.is_at_rest, 'it moves on though the tab is closed')
    other.get_by_role('button', name='Take control').click()
    expect(other.locator('#control')).to_have_text('You have control')
    lead(twin, other, 'turn about z +', 'wrist_3_joint', -0.05)
    other.mouse.up()
    assert twin.until(twin.is_at_rest, 'it moves on after it was let go')


@pytest.mark.slow
def test_a_phone(twin, visit, observer):
    phone = visit(twin.url, **PHONE)
    assert phone.evaluate('document.documentElement.scrollWidth') == 360
    expect(phone.locator('#stop')).to_be_in_viewport(ratio=1)

    picture = np.full((48, 64, 3), (0, 0, 255), np.uint8)  # red, in OpenCV's order
    jpeg = cv2.imencode('.jpg', picture)[1].tobytes()
    camera = observer.node.create_publisher(CompressedImage, 'front/image_raw/compressed', 1)
    timer = observer.node.create_timer(0.1, lambda: camera.publish(CompressedImage(data=jpeg)))
    canvas = phone.get_by_label('camera front')
    expect(canvas).to_have_attribute('width', '64')
    assert np.allclose(canvas.evaluate(MIDDLE), (255, 0, 0, 255), atol=8)
    timer.cancel()
    phone.get_by_role('button', name='front').click()
    expect(canvas).to_have_count(0)

    # A finger on the pad for z, up to its end: up is up.
    pad = phone.locator('#z')
    pad.evaluate("pad => pad.scrollIntoView({ block: 'center' })")
    box = pad.bounding_box()
    finger = phone.context.new_cdp_session(phone)
    x, y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    touch = lambda kind, *points: finger.send(  # noqa: E731
        'Input.dispatchTouchEvent', {'type': kind, 'touchPoints': list(points)}
    )
    height = twin.tool()[2]
    touch('touchStart', {'x': x, 'y': y})
    touch('touchMove', {'x': x, 'y': y - box['height'] / 2})
    twin.until(lambda: twin.tool()[2] > height + 0.03, 'the tool does not rise')
    touch('touchEnd')
    twin.until(twin.is_at_rest, 'it moves on though the finger is off')
    expect(pad).to_have_attribute('aria-valuenow', '0')
    phone.locator('#stop').tap()
    twin.until(twin.is_stopped, 'the guard has not stopped')


def test_the_buttons_of_the_episode_call_the_session(supervisor, observer, conductor, visit):
    supervisor.start('teleop', {'device': 'page', 'robot': 'ur5e', 'page_port': 0})
    supervisor.wait_ready()
    asked = []

    def answer(name: str) -> Callable[..., Trigger.Response]:
        def call(_, response: Trigger.Response) -> Trigger.Response:
            asked.append(name)
            response.success, response.message = name != 'discard', f'no {name} now'
            return response

        return call

    for name in ('start', 'success', 'failure', 'discard', 'rerecord'):
        observer.node.create_service(Trigger, f'session/{name}', answer(name))
    session, page = conductor('teleop'), visit(page_url(supervisor))
    button = lambda name: page.get_by_role('button', name=name, exact=True)  # noqa: E731
    expect(button('Start')).to_be_disabled()
    session.say('ready', index=0)
    expect(button('Start')).to_be_enabled()
    expect(button('Record again')).to_be_disabled()  # there is none before
    session.say('ready', index=4)
    expect(page.locator('#episode')).to_have_text('Episode 5: ready')
    expect(button('Record again')).to_be_enabled()  # of the one before
    button('Start').click()
    observer.until(lambda: asked == ['start'])
    session.say('running')
    expect(button('Start')).to_be_disabled()
    button('Record again').click()
    observer.until(lambda: asked == ['start', 'rerecord'])
    button('Discard').click()
    expect(page.locator('#said')).to_have_text('teleop: discard: no discard now')
    assert asked == ['start', 'rerecord', 'discard']
    session.say('ended', 'success')
    expect(page.locator('#counts')).to_have_text('1 success')
    session.say('prepare', episode='e2', instead_of='e1')
    expect(page.locator('#counts')).to_have_text('')
    expect(page.locator('#guard')).to_have_text('guard: not heard')


def test_the_screen_of_a_recording_hears_the_address(supervisor, observer):
    lines = observer.listen(Log, '/rosout', READER)
    supervisor.start('teleop', {'device': 'page', 'robot': 'ur5e', 'page_port': 0})
    supervisor.wait_ready()
    address = f'page: {page_url(supervisor)}'
    assert observer.until(lambda: any((m.name, m.msg) == ('teleop', address) for m in lines))


@pytest.mark.slow
def test_a_camera_that_compresses_nothing_is_seen(supervisor, observer, visit):
    supervisor.start('teleop', {'device': 'page', 'robot': 'ur5e', 'page_port': 0})
    supervisor.wait_ready()
    camera = observer.node.create_publisher(Image, 'wrist/image_raw', 1)
    blue = np.full((48, 64, 3), (0, 0, 255), np.uint8).tobytes()
    message = Image(height=48, width=64, encoding='rgb8', step=192, data=blue)
    observer.node.create_timer(0.1, lambda: camera.publish(message))
    canvas = visit(page_url(supervisor)).get_by_label('camera wrist')
    expect(canvas).to_have_attribute('width', '64')
    assert np.allclose(canvas.evaluate(MIDDLE), (0, 0, 255, 255), atol=8)


@pytest.mark.slow
def test_a_hidden_tab_has_let_go(twin, visit):
    page = visit(twin.url)
    lead(twin, page, 'elbow_joint +', 'elbow_joint', 0.02)
    page.evaluate("""() => {
        Object.defineProperty(document, 'hidden', { get: () => true });
        document.dispatchEvent(new Event('visibilitychange'));
    }""")
    assert twin.until(twin.is_at_rest, 'it moves on in a hidden tab')


@pytest.mark.slow
def test_a_page_that_hangs_has_let_go(twin, visit):
    page = visit(twin.url)
    lead(twin, page, 'elbow_joint +', 'elbow_joint', 0.02)
    page.evaluate('() => { setTimeout(() => { for (;;); }, 0); }')
    assert twin.until(twin.is_at_rest, 'it moves on though the page hangs')
