from __future__ import annotations

import numpy as np
import pytest

from robot_rl.control.limiter import Limits
from robot_rl.control.loop import ControlLoop
from robot_rl.control.runtime import ConstantPolicy, OnnxPolicy, RandomPolicy
from robot_rl.errors import ContractMismatch, PolicyFileError
from robot_rl.specs import ActionField, Contract, ObservationField, PolicyCard

NAMES = ('shoulder', 'elbow', 'wrist')
START = np.array([0.1, -0.2, 0.3])


class Scripted:
    """A policy that plays back actions and keeps what it saw."""

    is_pure = False

    def __init__(self, contract: Contract, actions):
        self.card = PolicyCard(id='scripted', contract=contract)
        self.contract, self.actions, self.seen = contract, list(actions), []

    def initial_state(self, batch):
        return {'calls': np.zeros((batch, 1))}

    def select(self, observation, state):
        self.seen.append((observation, state))
        action = self.actions[len(self.seen) - 1]
        return np.array([action], np.float32), {'calls': state['calls'] + 1}


def feed(loop: ControlLoop, stamp: float, position=START) -> None:
    values = {'position': position, 'velocity': np.zeros(3)}
    loop.observations.put('joint_states', stamp, values, NAMES)
    loop.observations.put('target_pose', stamp, {'position': [0.5, 0.2, 0.0]})


def test_deltas_add_to_the_last_command_and_never_to_the_measurement(contract, robot, chain):
    policy = Scripted(contract, [[0.02, -0.03, 0.04]] * 5)
    loop = ControlLoop(contract, robot, chain, policy)
    loop.begin(START)
    for k in range(5):
        feed(loop, 0.05 * k, position=START + 0.3)  # the arm lags or sags: of no matter here
        command = loop.tick(0.05 * k)
        np.testing.assert_allclose(
            command.target, START + (k + 1) * np.array([0.02, -0.03, 0.04]), atol=1e-7
        )
        np.testing.assert_allclose(command.applied, command.requested, atol=1e-7)
        assert command.stamp_s == 0.05 * k
        np.testing.assert_allclose(command.observation['joint_position'], START + 0.3, rtol=1e-6)
    assert loop.steps == 5
    observation, state = policy.seen[4]
    assert state['calls'] == 4
    assert {name: values.shape for name, values in observation.items()} == {
        name: (1, *shape) for name, shape in contract.observation_shapes.items()
    }
    np.testing.assert_allclose(observation['command'][0, 1], START + np.array([0.08, -0.12, 0.16]))


def test_deltas_add_to_where_somebody_else_has_led_the_arm(contract, robot, chain):
    """They added to the policy's own last command: it led the arm back."""
    delta = np.array([0.02, -0.03, 0.04])
    policy = Scripted(contract, [delta] * 5)
    loop = ControlLoop(contract, robot, chain, policy)
    loop.begin(START)
    for k in range(2):
        feed(loop, 0.05 * k)
        loop.tick(0.05 * k)
    led = START + np.array([0.3, 0.2, -0.1])
    loop.rebase(led)
    for k in range(2, 5):
        feed(loop, 0.05 * k)
        command = loop.tick(0.05 * k)
        np.testing.assert_allclose(command.target, led + (k - 1) * delta, atol=1e-7)
        np.testing.assert_allclose(command.applied, delta, atol=1e-7)
    observation, state = policy.seen[2]
    assert state['calls'] == 2  # it is the same episode
    np.testing.assert_allclose(observation['command'][0], [START + delta, led], atol=1e-6)
    for wrong, told in (([0, np.nan, 0], 'not finite'), ([0, 0], r'shape \[2\], right is')):
        with pytest.raises(ContractMismatch, match=f'applied command: {told}'):
            loop.rebase(wrong)


@pytest.mark.parametrize('kind', ['recurrent', 'random'])
def test_a_tick_that_was_prepared_is_as_one_that_was_not(
    policy_file, contract, robot, chain, kind
):
    """Whatever comes in between: nothing, another sample, somebody else who led the arm."""
    path = policy_file(contract, memory=4, seed=2) if kind == 'recurrent' else None

    def commands(prepares: bool):
        policy = OnnxPolicy(path) if path else RandomPolicy(contract, seed=3)
        loop = ControlLoop(contract, robot, chain, policy)
        loop.begin(START)
        for k in range(12):
            feed(loop, 0.05 * k - 0.01, position=START + 0.01 * k)
            if prepares:
                loop.prepare(lambda k=k: 0.05 * k - 0.001)
            if k % 3 == 1:
                feed(loop, 0.05 * k, position=START + 0.02 * k)
            elif k % 3 == 2:
                loop.rebase(START + 0.03 * k)
            yield loop.tick(0.05 * k)

    for plain, prepared in zip(commands(False), commands(True), strict=True):
        np.testing.assert_array_equal(plain.target, prepared.target)
        np.testing.assert_array_equal(plain.requested, prepared.requested)
        assert plain.stamp_s == prepared.stamp_s
        for name, values in plain.observation.items():
            np.testing.assert_array_equal(values, prepared.observation[name])


def test_what_was_prepared_is_not_decided_once_more(contract, robot, chain):
    policy = Scripted(contract, [[0.02, -0.03, 0.04]] * 3)
    policy.is_pure = True
    loop = ControlLoop(contract, robot, chain, policy)
    loop.prepare(lambda: 0.0)  # no episode has begun: there is nothing to decide
    loop.begin(START)
    feed(loop, 0.0)
    loop.prepare(lambda: 0.0)
    assert (loop.tick(0.0).stamp_s, len(policy.seen), loop.steps) == (0.0, 1, 1)
    feed(loop, 0.05)
    loop.prepare(lambda: 0.05)
    assert loop.is_prepared(0.06)
    feed(loop, 0.06)
    assert not loop.is_prepared(0.06)
    assert (loop.tick(0.06).stamp_s, len(policy.seen), loop.steps) == (0.06, 3, 2)


def test_what_waits_for_a_late_tick_is_decided_anew(contract, robot, chain):
    """A process that was halted meanwhile: what it decided is not of now."""
    policy = Scripted(contract, [[0.02, -0.03, 0.04]] * 3)
    policy.is_pure = True
    loop = ControlLoop(contract, robot, chain, policy)
    loop.begin(START)
    feed(loop, 0.0)
    times = iter([0.0, 0.02])  # when it begins to decide, and when it has decided
    loop.prepare(lambda: next(times))
    assert loop.is_prepared(0.057) and not loop.is_prepared(0.058)
    loop.tick(0.058)
    assert len(policy.seen) == 2


def test_what_was_made_of_a_sample_that_is_too_old_by_now_is_not_used(contract, robot, chain):
    """It broke the episode off, while a fresh sample waited to be heard."""
    policy = Scripted(contract, [[0.02, -0.03, 0.04]] * 3)
    policy.is_pure = True
    loop = ControlLoop(contract, robot, chain, policy, joint_states_max_age_s=0.05)
    loop.begin(START)
    feed(loop, 0.0)
    loop.prepare(lambda: 0.049)
    assert loop.is_prepared(0.05) and not loop.is_prepared(0.051)
    feed(loop, 0.05)  # the node hears it then
    assert loop.tick(0.051).stamp_s == 0.05


def test_a_sample_that_has_grown_too_old_since_a_tick_was_prepared_is_refused(
    policy_file, contract, robot, chain
):
    policy = OnnxPolicy(policy_file(contract))
    loop = ControlLoop(contract, robot, chain, policy, joint_states_max_age_s=0.05)
    loop.begin(START)
    feed(loop, 0.0)
    loop.prepare(lambda: 0.05)
    with pytest.raises(ContractMismatch, match=r'joint_states is 0\.051 s old'):
        loop.tick(0.051)


def test_requested_and_applied_differ_where_limits_bite(contract, robot, chain):
    # shoulder: 1 rad/s allows 0.05 in a period; the bounds of the contract are wider here
    field = contract.action[0].replace(lower=(-0.2,) * 3, upper=(0.2,) * 3)
    contract = contract.model_copy(update={'action': (field,)})
    loop = ControlLoop(contract, robot, chain, Scripted(contract, [[0.1, 0.04, 0.5]] * 20))
    loop.begin(START)
    feed(loop, 0.0)
    command = loop.tick(0.0)
    np.testing.assert_allclose(command.requested, [0.1, 0.04, 0.5])
    np.testing.assert_allclose(command.applied, [0.05, 0.02, 0.1])
    np.testing.assert_allclose(command.target, START + np.array([0.05, 0.02, 0.1]))
    for _ in range(19):
        command = loop.tick(0.0)
    np.testing.assert_allclose(command.target, START + 20 * np.array([0.05, 0.02, 0.1]))


def test_the_command_never_leaves_the_position_limits(contract, robot, chain):
    loop = ControlLoop(contract, robot, chain, Scripted(contract, [[0, 0.05, 0]] * 40))
    loop.begin(START)
    for _ in range(40):
        feed(loop, 0.0)
        command = loop.tick(0.0)
    assert command.target[1] == 1.0
    np.testing.assert_allclose(command.applied, 0, atol=1e-12)


def test_begin_starts_state_history_and_command_anew(policy_file, contract, robot, chain):
    policy = OnnxPolicy(policy_file(contract, memory=3))
    loop = ControlLoop(contract, robot, chain, policy)

    def episode():
        loop.begin(START)
        feed(loop, 0.0)
        return np.array([loop.tick(0.0).target for _ in range(10)])

    first = episode()
    assert np.array_equal(episode(), first)
    assert len(np.unique(first.round(9), axis=0)) == 10


def test_nothing_is_commanded_before_begin_or_on_bad_input(contract, robot, chain):
    policy = Scripted(contract, [[0, 0, 0], [np.nan, 0, 0], [0.01, 0, 0]])
    loop = ControlLoop(contract, robot, chain, policy)
    with pytest.raises(ContractMismatch, match='tick before begin'):
        loop.tick(0.0)
    for measured, told in (([0, np.nan, 0], 'not finite'), ([0, 0], r'shape \[2\], right is')):
        with pytest.raises(ContractMismatch, match=f'measured joint positions: {told}'):
            loop.begin(measured)
    loop.begin(START)
    with pytest.raises(ContractMismatch, match='joint_states: none has come'):
        loop.tick(0.0)
    feed(loop, 0.0)
    loop.tick(0.0)
    with pytest.raises(ContractMismatch, match='action: not finite'):
        loop.tick(0.0)
    assert loop.steps == 1
    np.testing.assert_allclose(loop.tick(0.0).target, START + np.array([0.01, 0, 0]), atol=1e-7)


def test_a_policy_that_gives_nan_does_not_reach_the_command(policy_file, contract, robot, chain):
    loop = ControlLoop(contract, robot, chain, OnnxPolicy(policy_file(contract)))
    loop.begin(START)
    feed(loop, 0.0)
    loop.observations._samples['target_pose'].values['position'][:] = np.nan
    with pytest.raises((ContractMismatch, PolicyFileError), match='NaN or infinite'):
        loop.tick(0.0)


def test_a_contract_that_does_not_fit_the_robot_is_refused_at_once(contract, robot, chain):
    def build(**changes):
        wrong = contract.model_copy(update=changes)
        return ControlLoop(wrong, robot, chain, ConstantPolicy(wrong))

    knee = ActionField(name='a', kind='joint_delta', names=('knee',), lower=(-1,), upper=(1,))
    with pytest.raises(ContractMismatch, match=r"robot planar: .*\['knee'\] are not commanded"):
        build(action=(knee,))
    effort = ActionField(name='a', kind='generic', names=('x',), lower=(-1,), upper=(1,))
    with pytest.raises(ContractMismatch, match="kind 'generic' cannot be commanded"):
        build(action=(effort,))
    env = ObservationField(name='o', source='env.position', shape=(3,))
    with pytest.raises(ContractMismatch, match="observation o: no stream 'env'"):
        build(observation=(env,))
    knee = ObservationField(name='o', source='joint_states.position', names=('knee',), shape=(1,))
    with pytest.raises(ContractMismatch, match=r"observation o: \['knee'\] missing in"):
        build(observation=(knee,))
    knee = knee.replace(source='posture.position')
    with pytest.raises(ContractMismatch, match=r"\['knee'\] missing in 'posture'"):
        build(observation=(knee,))
    for source, told in (
        ('wrench.force', "'wrench.force'; those of kind 'pose' bring position, orientation, from"),
        ('joint_states.effort', "'joint_states.effort'; those of kind 'joints' bring position, v"),
    ):
        other = ObservationField(name='o', source=source, shape=(3,))
        with pytest.raises(ContractMismatch, match=f'observation o: no message brings {told}'):
            build(observation=(other,))


def test_the_limits_can_be_tighter_than_the_robot_s(contract, robot, chain):
    policy = RandomPolicy(contract, seed=0)
    loop = ControlLoop(contract, robot, chain, policy, Limits.from_spec(robot).slowed(0.1))
    loop.begin(START)
    feed(loop, 0.0)
    last = START
    for _ in range(20):
        target = loop.tick(0.0).target
        assert np.abs(target - last).max() <= 0.1 * 0.05 + 1e-12
        last = target
