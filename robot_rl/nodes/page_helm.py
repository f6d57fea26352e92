"""Who is at the teleop page, who of them has control, and what that one asks for; ROS-free.

The web server's thread brings what browsers say, the node's takes what is wished.
"""

from __future__ import annotations

import itertools
import threading
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from robot_rl.control.jog import Wish
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.specs import Spec

# What is held answers a picture of the arm that is no older than this [s]. Wishes that a network
# has kept back, and those of somebody who has not seen for a while what the arm does, are none.
LATE_S = 0.5

Share = Annotated[float, pydantic.Field(ge=-1.0, le=1.0)]
# What everybody may ask for, and what only the one who has control may.
Free = Literal['take', 'release', 'estop']
Controlled = Literal['start', 'success', 'failure', 'discard', 'rerecord', 'estop_reset']


class PageConfig(Spec):
    """Where the page is. The descriptions are those of the node's parameters."""

    page_host: str = pydantic.Field(
        '127.0.0.1',
        description='address that the page is served on; 0.0.0.0: to all machines that reach '
        'this one, who then need a token',
    )
    page_port: int = pydantic.Field(
        8500, ge=0, le=65535, description='port of the page; 0: any free one'
    )
    page_token: str = pydantic.Field(
        '',
        pattern='^([A-Za-z0-9_-]{8,})?$',
        description='what the address of the page ends in where others reach it: 8 or more of '
        'A-Z a-z 0-9 _ -; empty: a new one each time',
    )


class Refused(RobotRLError):
    """What a browser said was not taken; its page says why."""


class Hold(Spec):
    """What is held on the page at this moment: the dead-man switch, and where it leads."""

    seen: float
    """The `time` of the newest view that the page has shown."""
    joints: tuple[Share, ...] | None = None
    """Shares of each joint's jog speed."""
    twist: Annotated[tuple[Share, ...], pydantic.Field(min_length=6, max_length=6)] | None = None
    """Shares of the jog speed: linear x y z, angular x y z."""
    frame: Literal['base', 'tool'] = 'base'
    grip: Share = 0.0

    @pydantic.model_validator(mode='after')
    def _leads_one_way(self) -> Hold:
        if self.joints is not None and self.twist is not None:
            raise ValueError('joints or twist, not both')
        return self

    def wish(self) -> Wish:
        """Return it as every device says it."""
        return Wish(
            enabled=True,
            joints=None if self.joints is None else np.array(self.joints),
            twist=None if self.twist is None else np.array(self.twist),
            frame=self.frame,
            grip=self.grip,
        )


class Message(Spec):
    """What a browser says: what is held, or what it asks for."""

    hold: Hold | None = None
    ask: Free | Controlled | None = None

    @pydantic.model_validator(mode='after')
    def _says_one_thing(self) -> Message:
        if (self.hold is None) == (self.ask is None):
            raise ValueError('either hold or ask')
        return self


class Helm:
    """The pages that are open, by number. One at a time has control, the others watch.

    Whoever comes to a helm without anybody in control has it; it is given over when another
    one asks for it and nothing is held. A browser says again and again what is held; one that is
    silent for `stale_s` has let go. Times are steady [s].
    """

    def __init__(self, joints: int, stale_s: float):
        self._joints, self._stale_s = joints, stale_s
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pages: set[int] = set()
        self._controller: int | None = None
        self._wish, self._wished_at = Wish(), -float('inf')
        self._calls: list[str] = []
        self._news: dict[str, Any] = {}

    def join(self) -> int:
        """Open a page; return its number."""
        with self._lock:
            page = next(self._numbers)
            self._pages.add(page)
            if self._controller is None:
                self._controller = page
            return page

    def leave(self, page: int) -> None:
        """Close a page. What it held is let go, and control is free."""
        with self._lock:
            self._pages.discard(page)
            if page == self._controller:
                self._controller, self._wish = None, Wish()

    def hear(self, page: int, text: str, now: float) -> None:
        """Take what a page says. Raises SpecError or Refused, and has changed nothing then.

        Only what comes too late is also let go.
        """
        message = Message.from_json(text, 'page')
        with self._lock:
            if message.hold is not None:
                self._hold(page, message.hold, now)
            elif message.ask == 'take':
                self._take(page, now)
            elif message.ask == 'release':
                if page == self._controller:
                    self._wish = Wish()
            elif message.ask == 'estop':
                self._stop()
            else:
                self._require_control(page)
                self._call(message.ask)

    def stop(self) -> None:
        """Call the emergency stop."""
        with self._lock:
            self._stop()

    def wish(self, now: float) -> Wish:
        """Return what the page in control asks of the arm; let alone where it is silent."""
        with self._lock:
            return self._wish if self._holds(now) else Wish()

    def calls(self) -> list[str]:
        """Return what was asked for since the last call."""
        with self._lock:
            calls, self._calls = self._calls, []
            return calls

    def tell(self, news: dict[str, Any]) -> None:
        """Take what all pages are to show, as plain data."""
        self._news = news

    def view(self, page: int, now: float) -> dict[str, Any]:
        """Return what one page is to show, and when it was so."""
        with self._lock:
            control = 'free' if self._controller is None else 'taken'
            if page == self._controller:
                control = 'yours'
            return self._news | {'time': now, 'control': control, 'pages': len(self._pages)}

    def _holds(self, now: float) -> bool:
        return self._wish.enabled and now - self._wished_at <= self._stale_s

    def _hold(self, page: int, hold: Hold, now: float) -> None:
        self._require_control(page)
        if self._news.get('estop'):
            raise Refused('stopped: reset the emergency stop first')
        if hold.joints is not None and len(hold.joints) != self._joints:
            raise SpecError(f'page: {len(hold.joints)} joints, the arm has {self._joints}')
        if not now - LATE_S <= hold.seen <= now:
            self._wish = Wish()
            raise Refused(
                f'let go: what you see is {now - hold.seen:.1f} s old; the connection is slow'
            )
        if self._wish.enabled and not self._holds(now):  # nobody moves on by themselves
            self._wish = Wish()
            raise Refused(f'let go: nothing has come for {now - self._wished_at:.1f} s')
        self._wish, self._wished_at = hold.wish(), now

    def _take(self, page: int, now: float) -> None:
        if self._controller not in (None, page) and self._holds(now):
            raise Refused('another page moves the arm; wait until it lets go')
        if page != self._controller:
            self._controller, self._wish = page, Wish()

    def _stop(self) -> None:
        self._wish = Wish()
        self._call('estop')

    def _call(self, name: str) -> None:
        if name not in self._calls:
            self._calls.append(name)

    def _require_control(self, page: int) -> None:
        if page != self._controller:
            raise Refused('another page has control; take it first')
