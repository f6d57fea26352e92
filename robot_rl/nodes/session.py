"""session: runs episodes, one after another, with everybody who takes part in them."""

from __future__ import annotations

import collections
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pydantic
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from robot_rl import registry
from robot_rl.control.loop import require_served
from robot_rl.control.runtime import identify
from robot_rl.control.session import Result, Session, SessionInfo
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.nodes import support
from robot_rl.nodes.main import End
from robot_rl.nodes.policy import open_policy
from robot_rl.specs import Spec
from robot_rl.storage.files import new_id

RECORDER, TWIN = 'episode_recorder', 'sim_robot'
# What a person may call, and the result that it gives to the episode in hand.
CALLS: dict[str, Result | None] = {
    'start': None,
    'stop': 'truncated',
    'success': 'success',
    'failure': 'failure',
    'discard': 'discarded',
    'rerecord': 'discarded',
}
# How long a state is kept for those who have not heard it yet: nobody is to hang others [s].
HEARD_WITHIN_S = 0.2
# Whoever is not ready by then is named: a person at the arm may see what is missing [s].
WAITS_SILENTLY_S = 5.0
# An episode whose guard is gone for so long is over: the arm stands, whatever its policy does. One
# that only hung for a moment, or is started anew at once, says itself what is to become of it.
GUARD, GONE_S = 'command_guard', 1.0


class NotReady(RobotRLError, RuntimeError):
    """Somebody who takes part in the episode did not get ready."""


class Ending(Exception):
    """How the episode in hand ends, and why."""

    def __init__(self, result: Result, reason: str):
        self.result, self.reason = result, reason
        super().__init__(reason)


class Parameters(Spec):
    """The ROS parameters of session."""

    task: str = pydantic.Field('ur5e/reach', description='task of the episodes')
    source: str = pydantic.Field('policy', description="who commands: 'policy', 'teleop', ...")
    policy: str = pydantic.Field(
        'constant',
        description='what the node policy is to run, as for its own parameter; another one, or '
        'another file of that name, is taken with the next episode',
    )
    policy_label: str = pydantic.Field(
        '', description="the policy's name in the record; empty: the id of its card"
    )
    episodes: pydantic.NonNegativeInt = pydantic.Field(
        1, description='how many to run; 0: until stopped'
    )
    first_seed: int = pydantic.Field(
        0, ge=-1, description='seed of the first episode, then one more each; -1: no seeds'
    )
    max_steps: pydantic.NonNegativeInt = pydantic.Field(
        0, description="ticks of an episode; 0: the task's own number"
    )
    participants: tuple[str, ...] = pydantic.Field(
        (TWIN, 'policy', GUARD, RECORDER),
        description='nodes that must be ready before an episode runs',
    )
    operator: str = pydantic.Field('', description='the person beside the arm')
    tags: tuple[str, ...] = pydantic.Field((), description='tags of the episodes')
    manual: bool = pydantic.Field(
        False,
        description='wait for ~/start before each episode; one that no policy ends after its '
        'steps is ended by a person',
    )
    exit_when_done: bool = pydantic.Field(True, description='end the node after the last episode')
    ready_timeout_s: pydantic.PositiveFloat = pydantic.Field(
        30.0, le=3600, description='time for everybody to be found and to get ready [s]'
    )
    run_margin_s: pydantic.PositiveFloat = pydantic.Field(
        5.0, le=3600, description='time beyond its steps after which an episode is ended [s]'
    )
    commit_timeout_s: pydantic.PositiveFloat = pydantic.Field(
        30.0, le=3600, description='time for the recorder to finish an episode [s]'
    )


class SessionNode(support.WorkingNode):
    """prepare -> (all ready) -> ready -> running -> (done, a call, an error, time out) -> ended.

    Prints one JSON line per ended episode. Ends with code 0 after the last episode, with 2 where
    somebody did not get ready; with a person beside it (manual) it waits for the next ~/start.
    """

    def __init__(self) -> None:
        super().__init__('session')
        support.declare_parameters(self, Parameters, changeable=('policy',))
        self._given = support.read_parameters(self, Parameters)
        self._session = Session()
        self._answers: dict[str, support.Answer] = {}
        self._asked_to_start = threading.Event()
        self._ends: collections.deque[str] = collections.deque()  # calls that end an episode
        self._changed = threading.Event()
        self._paused = self._given.manual
        self._fields = self._describe()
        self.add_on_set_parameters_callback(self._on_parameters)
        self._publisher = support.alive_publisher(self, support.SESSION_STATE)
        for name in self._given.participants:
            self.create_subscription(
                String, f'{name}/status', self._listener(name), support.LATCHED_READER
            )
        self._guard_gone_at = math.inf
        if GUARD in self._given.participants:
            support.watch(self, GUARD, self._on_life)
        for name in CALLS:
            self.create_service(Trigger, f'~/{name}', self._service(name))
        self._diagnostics = support.Diagnostics(self, str(self._fields['robot']))
        self._diagnostics.repeat(self._report)
        self._counts: collections.Counter[str] = collections.Counter()  # of episodes, by result
        self._last: SessionInfo | None = None  # what counted last, and can be run again
        self._instead_of = ''  # the one that the next is run in the place of
        self._end: End | None = None

    def start(self, end: End) -> None:
        """Begin with the first episode."""
        self._end = end
        super().start(end)

    def close(self) -> None:
        """End the episode in hand."""
        if self._worker:
            self._worker.stop_event.set()
            self._changed.set()
            super().close()
        self._wait_until_heard()

    def _describe(self) -> dict[str, Any]:
        """Return the fields of SessionInfo that all episodes share."""
        parameters, task = self._given, registry.make_task(self._given.task)
        contract, label, steps = task.contract(), parameters.policy_label, parameters.max_steps
        by_policy, file, digest = parameters.source == 'policy', '', ''
        if by_policy:
            # Identified first: what is opened is what it stood for then.
            file, digest = identify(parameters.policy)
            policy = open_policy(file, parameters.task)
            if TWIN in parameters.participants:  # which has nothing that its task does not have
                task.require_shown(policy.contract)
            require_served(policy.contract, task.robot)
            contract, label = policy.contract, label or policy.card.id
        self._period_s = contract.period_s
        return {
            'task': task.name,
            'source': parameters.source,
            'policy': label,
            'policy_file': file,
            'policy_sha256': digest,
            'max_steps': steps or (task.max_steps if by_policy or not parameters.manual else None),
            'operator': parameters.operator,
            'robot': task.robot.name,
            'contract': contract.to_dict(),
            'tags': parameters.tags,
        }

    def _take_policy(self) -> None:
        """Describe the episodes anew where the policy's name stands for another file by now.

        Where that cannot be run, the former one goes on.
        """
        if self._given.source != 'policy':
            return
        try:
            known = self._fields['policy_file'], self._fields['policy_sha256']
            if identify(self._given.policy) != known:
                self._fields = self._describe()
        except RobotRLError as error:
            self.get_logger().error(f'{error}; {self._fields["policy"]} goes on')

    def _on_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        """Take another policy, with the next episode, if there is one of that name."""
        for change in changes:
            if change.name == 'policy':
                former, self._given = self._given, self._given.replace(policy=str(change.value))
                try:
                    self._describe()
                except RobotRLError as error:
                    self._given = former
                    return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _listener(self, name: str) -> Callable[[String], None]:
        def listen(message: String) -> None:
            try:
                self._answers[name] = support.Answer.from_json(message.data, f'{name}/status')
            except SpecError as error:
                self.get_logger().error(str(error))
            self._changed.set()

        return listen

    def _on_life(self, _: str, alive: bool) -> None:
        self._guard_gone_at = math.inf if alive else time.monotonic()
        if not alive:
            later = threading.Timer(GONE_S, self._changed.set)
            later.daemon = True
            later.start()

    def _service(self, name: str) -> Callable[[Any, Trigger.Response], Trigger.Response]:
        def call(_: Any, response: Trigger.Response) -> Trigger.Response:
            state = self._session.info.state
            response.success = self._is_possible(name)
            response.message = name if response.success else f'not possible in state {state!r}'
            if response.success:
                if name == 'start':
                    self._asked_to_start.set()
                else:
                    self._ends.append(name)
                self._changed.set()
            return response

        return call

    def _is_possible(self, call: str) -> bool:
        state = self._session.info.state
        if call == 'start':
            return self._paused and state != 'running'
        if call in ('success', 'failure'):
            return state == 'running'
        if call == 'rerecord' and state != 'running' and self._last is None:
            return False
        return state in ('prepare', 'ready', 'running')

    def _work(self, stop: threading.Event) -> None:
        index, episodes = 0, self._given.episodes
        while not stop.is_set() and (index < episodes or not episodes):
            try:
                index += self._episode(index, stop)
            except NotReady as error:
                if not self._given.manual:
                    raise
                self.get_logger().error(f'{error}; call ~/start to try again')
                self._wait(self._started, stop, ended=True)
        if self._session.info.state == 'ended':
            self._publish(self._session.reset())
        if self._given.exit_when_done and not stop.is_set():
            self._end()

    def _episode(self, index: int, stop: threading.Event) -> int:
        """Run one episode; return how far that leads: 0 where it was discarded, and is run again.

        It is -1 where the one before is to be recorded again. Raises NotReady where it could not
        begin.
        """
        self._take_policy()
        seed = self._given.first_seed
        fields = self._fields | {'index': index, 'seed': seed + index if seed >= 0 else None}
        prepared = self._session.prepare(new_id(), instead_of=self._instead_of, **fields)
        self._instead_of = ''
        self._publish(prepared)
        ending = self._walk(stop)
        has_run = self._session.info.state == 'running'
        stopped = stop.is_set() or (ending.result == 'discarded' and ending.reason in CALLS)
        ended = self._session.end(ending.result, ending.reason)
        self._forget_calls()  # they were about this episode, not the next
        self._publish(ended)
        self._counts[ending.result] += 1
        self._print(ending, stop)
        if not (has_run or stopped):
            raise NotReady(ending.reason)
        if ending.reason == 'rerecord' and not has_run and self._last is not None:
            last, self._last = self._last, None
            self._instead_of = last.episode
            self._counts[last.result] -= 1
            return -1
        if ending.result == 'discarded':
            return 0
        self._last = ended
        return 1

    def _walk(self, stop: threading.Event) -> Ending:
        """Take the prepared episode to its end; return how it ends."""
        parameters, info = self._given, self._session.info
        try:
            self._wait_for_all(stop)
            self._publish(self._session.ready())
            if self._paused:
                self.get_logger().info('ready: call ~/start')
                self._wait(self._started, stop)
            self._require_no_end(stop)  # the arm moves from here on
            self._publish(self._session.start())
            self._asked_to_start.clear()  # asked twice, it is still for one episode
            timeout_s = None
            if info.max_steps:
                timeout_s = info.max_steps * self._period_s + parameters.run_margin_s
            self._wait(self._done, stop, timeout_s)
            return Ending('truncated', f'nobody ended it within {timeout_s:g} s')
        except Ending as ending:
            return ending

    def _wait_for_all(self, stop: threading.Event) -> None:
        """Wait until everybody is ready; before long, say who is not. Raises Ending."""
        timeout_s = self._given.ready_timeout_s
        silent_s = min(timeout_s, WAITS_SILENTLY_S)
        if self._wait(self._all_ready, stop, silent_s):
            return
        self.get_logger().warning(f'not ready yet: {self._who_is_late()}')
        if not self._wait(self._all_ready, stop, timeout_s - silent_s):
            raise Ending('discarded', f'not ready within {timeout_s:g} s: {self._who_is_late()}')

    def _all_ready(self) -> bool:
        names = self._given.participants
        return all(self._answer(name).state == 'ready' for name in names)

    def _started(self) -> bool:
        if not self._asked_to_start.is_set():
            return False
        self._asked_to_start.clear()
        self._paused = self._given.manual
        return True

    def _done(self) -> bool:
        """Raise Ending where somebody has done all steps."""
        for name in self._given.participants:
            if self._answer(name).state == 'done':
                raise Ending('truncated', self._what_says(name))
        return False

    def _require_no_end(self, stop: threading.Event) -> None:
        """Raise Ending where a signal, a person or an error ends the episode in hand.

        An error says nothing of the skill: the episode is not judged a failure by it.
        """
        running = self._session.info.state == 'running'
        cut = 'truncated' if running else 'discarded'
        if stop.is_set():
            raise Ending(cut, 'the session was stopped')
        if self._ends:
            call = self._ends.popleft()
            self._paused = self._paused or call == 'stop'
            raise Ending(CALLS[call] if running else 'discarded', call)
        if running and time.monotonic() - self._guard_gone_at >= GONE_S:
            raise Ending(cut, f'{GUARD} is gone: the arm is not commanded any more')
        for name in self._given.participants:
            answer = self._answer(name)
            if answer.state == 'error':
                stopped = answer.detail.startswith('estop')
                raise Ending('estop' if stopped else cut, self._what_says(name))

    def _print(self, ending: Ending, stop: threading.Event) -> None:
        """Wait for the recording of the ended episode and print its line."""
        info = self._session.info
        line = {'episode': info.episode, 'index': info.index, 'seed': info.seed}
        line |= {'result': ending.result, 'reason': ending.reason}
        if RECORDER in self._given.participants and not stop.is_set():
            self._wait(self._recorded, stop, self._given.commit_timeout_s, ended=True)
            answer = self._answer(RECORDER)
            if answer.state == 'done':
                line |= json.loads(answer.detail)
            else:
                line['error'] = self._what_says(RECORDER)
        print(json.dumps(line), flush=True)

    def _recorded(self) -> bool:
        return self._answer(RECORDER).state in ('done', 'error')

    def _answer(self, name: str) -> support.Answer:
        """Return what `name` last said of the episode in hand."""
        answer = self._answers.get(name, support.Answer())
        return answer if answer.episode == self._session.info.episode else support.Answer()

    def _who_is_late(self) -> str:
        names = self._given.participants
        late = [name for name in names if self._answer(name).state != 'ready']
        return '; '.join(map(self._what_says, late))

    def _what_says(self, name: str) -> str:
        answer = self._answer(name)
        detail = f' ({answer.detail})' if answer.detail else ''
        return f'{name} is {answer.state}{detail}'

    def _forget_calls(self) -> None:
        self._asked_to_start.clear()
        self._ends.clear()

    def _wait(
        self,
        condition: Callable[[], bool],
        stop: threading.Event,
        timeout_s: float | None = None,
        ended: bool = False,
    ) -> bool:
        """Wait until `condition`, which is looked at whenever something changes.

        Returns False after `timeout_s`. Raises Ending where something ends the episode in hand;
        where it has `ended`, a stop makes it return False.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._changed.clear()
            if not ended:
                self._require_no_end(stop)
            elif stop.is_set():
                return False
            if condition():
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._changed.wait(left)

    def _publish(self, info: SessionInfo) -> None:
        self._wait_until_heard()  # a latched topic keeps the last state only
        self._publisher.publish(String(data=info.to_json()))

    def _wait_until_heard(self) -> None:
        """Wait until everybody has the state that was published last."""
        ends = time.monotonic() + HEARD_WITHIN_S
        # Time after time, for rclpy would wait with the whole process.
        while not self._publisher.wait_for_all_acked(Duration()) and time.monotonic() < ends:
            time.sleep(0.002)

    def _report(self) -> None:
        """Once a second: which episode is in hand, and what everybody says of it."""
        info, names = self._session.info, self._given.participants
        answers = {name: self._answer(name).state for name in names}
        values = {
            'state': info.state,
            'episode': info.episode,
            'task': self._fields['task'],
            'source': self._fields['source'],
            'policy': self._fields['policy'],
            'index': info.index,
            'episodes': self._given.episodes,
            'counted': ', '.join(f'{n} {result}' for result, n in (+self._counts).items()),
        }
        values |= {f'{name}.state': state for name, state in answers.items()}
        wrong = [self._what_says(name) for name in names if answers[name] == 'error']
        waits = [name for name in names if answers[name] != 'ready']
        level, words = DiagnosticStatus.OK, info.state
        if info.state == 'prepare' and waits:
            words = f'prepare: waits for {", ".join(waits)}'
        if wrong:
            level, words = DiagnosticStatus.ERROR, '; '.join(wrong)
        self._diagnostics.publish(level, words, values)
