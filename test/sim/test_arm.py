import mujoco
import numpy as np
import pytest

from robot_rl.control.actions import joint_target
from robot_rl.control.limiter import Limits, limit
from robot_rl.control.motion import Line, at_rest
from robot_rl.errors import ContractMismatch, RobotRLError
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.environment import HELD_OUT, StepType
from robot_rl.sim.reach import TARGET, TOOL
from robot_rl.sim.twin import Twin
from robot_rl.specs import ObservationField

SEEDS = [11, HELD_OUT, 13]


@pytest.fixture
def environment(reach):
    environment = ArmEnvironment(reach, num_envs=3, seed=0, threads=2)
    yield environment
    environment.close()


def actions_into_the_pedestal(steps, lanes):
    """Random actions, after a first second that presses lane 1 down into the pedestal."""
    actions = np.random.default_rng(4).uniform(-0.1, 0.1, (steps, lanes, 6))
    actions[:25, 1] = [0.0, 0.08, 0.08, 0.0, 0.0, 0.0]
    return actions.astype(np.float32)


class Follower:
    """What reaches a twin, by the control room's own functions."""

    def __init__(self, reach, seed):
        self.reach, self.twin = reach, Twin(reach)
        self.command = self.twin.reset(seed).joint_position
        self.limits = Limits.from_spec(reach.robot)
        self.motion = at_rest(self.command, self.limits)

    def step(self, action):
        wanted = joint_target(self.reach.contract(), action, self.command, self.reach.robot)
        target = limit(wanted, self.command, 1 / self.reach.config.rate_hz, self.limits)
        line = Line(self.command, target, 0.0, 0.05)
        self.command = target
        for tick in range(5):
            self.motion = self.motion.follow(line, (tick + 1) * 0.01, 0.01, self.limits)
            self.twin.set_command(self.motion.position)
            self.twin.advance(0.01)


def test_batched_steps_are_a_twins_to_the_last_bit_also_in_contact(reach, environment):
    environment.reset(SEEDS)
    followers = [Follower(reach, seed) for seed in SEEDS]
    touched = 0
    for action in actions_into_the_pedestal(60, 3):
        environment.step(action)
        columns = environment.columns
        for lane, follower in enumerate(followers):
            follower.step(action[lane])
            twin = follower.twin
            touched += twin.data.ncon
            for key, expected in (
                ('joint_states.position', twin.joint_position),
                ('joint_states.velocity', twin.joint_velocity),
                ('command.position', follower.command),
                (TARGET, twin.poses['target_pose'].position),
                ('tool.position', reach.chain.position(twin.joint_position)),
            ):
                np.testing.assert_allclose(columns[key][lane], expected, rtol=0, atol=1e-12)
            np.testing.assert_array_equal(
                columns['joint_states.position'][lane], twin.joint_position
            )
    assert touched > 0


def test_observations_are_the_columns_in_float32_and_tool_is_the_site(reach, environment):
    step = environment.reset(SEEDS)
    step = environment.step(np.full((3, 6), 0.03, np.float32))
    columns = environment.columns
    columns['target_pose.from_tool'] = columns[TARGET] - columns[TOOL]
    for field in environment.contract.observation:
        observed = step.observation[field.name]
        assert observed.dtype == np.float32 and observed.shape == (3, *field.full_shape)
        np.testing.assert_array_equal(observed, columns[field.source].astype(np.float32))
    for lane in range(3):
        _, data = environment.scene(lane)
        np.testing.assert_allclose(data.site('tool0').xpos, columns[TOOL][lane], atol=1e-12)
        np.testing.assert_array_equal(data.body('target').xpos, columns[TARGET][lane])


def test_reward_is_of_the_state_arrived_in(reach, environment):
    environment.reset(SEEDS)
    for action in actions_into_the_pedestal(3, 3):
        step = environment.step(action)
        expected = reach.reward(environment.columns, action)
        np.testing.assert_allclose(step.reward, expected, rtol=1e-6)


def test_an_episode_is_first_mid_last_then_first_again_with_its_action_ignored(reach, environment):
    step = environment.reset()
    assert (step.step_type == StepType.FIRST).all() and not step.reward.any()
    action = np.full((3, 6), 0.01, np.float32)
    for count in range(1, 61):
        step = environment.step(action)
        kind = StepType.LAST if count == 60 else StepType.MID
        assert (step.step_type == kind).all()
        assert (step.discount == 1).all()  # a time limit truncates, it does not terminate
    final = step.observation['joint_position'].copy()
    first = environment.step(np.full((3, 6), np.nan))
    assert (first.step_type == StepType.FIRST).all()
    assert (first.reward == 0).all() and (first.discount == 1).all()
    np.testing.assert_array_equal(step.observation['joint_position'], final)
    np.testing.assert_array_equal(
        first.observation['joint_position'], first.observation['command']
    )
    assert (environment.step(action).step_type == StepType.MID).all()


def test_lanes_end_on_their_own(reach, environment):
    environment.reset(SEEDS)
    environment._steps[:] = [0, 30, 59]
    kinds = [environment.step(np.zeros((3, 6))).step_type.tolist() for _ in range(31)]
    first, mid, last = StepType.FIRST, StepType.MID, StepType.LAST
    assert kinds[0] == [mid, mid, last] and kinds[1] == [mid, mid, first]
    assert kinds[29] == [mid, last, mid] and kinds[30] == [mid, first, mid]


def test_seeds_give_the_tasks_initial_conditions_and_runs_repeat(reach):
    def run(threads):
        environment = ArmEnvironment(reach, num_envs=4, seed=5, threads=threads)
        steps = [environment.reset()]
        actions = np.random.default_rng(0).uniform(-0.08, 0.08, (70, 4, 6))
        steps += [environment.step(action) for action in actions]
        environment.close()
        return steps

    for one, other in zip(run(1), run(3), strict=True):
        np.testing.assert_array_equal(one.reward, other.reward)
        for name in one.observation:
            np.testing.assert_array_equal(one.observation[name], other.observation[name])
    environment = ArmEnvironment(reach, num_envs=2)
    environment.reset([8, HELD_OUT + 8])
    columns = environment.columns
    for lane, seed in enumerate([8, HELD_OUT + 8]):
        start = reach.initial(seed)
        np.testing.assert_array_equal(columns[TARGET][lane], start.target)
        np.testing.assert_array_equal(columns['joint_states.position'][lane], start.joint_position)


def test_a_resolved_rate_controller_succeeds_and_standing_still_does_not(reach):
    environment = ArmEnvironment(reach, num_envs=16)
    rows = {}
    for moving in (True, False):
        environment.reset([HELD_OUT + i for i in range(16)])
        rows[moving] = [environment.columns]
        for _ in range(reach.max_steps):
            columns = environment.columns
            error = columns[TARGET] - reach.chain.position(columns['command.position'])
            action = [
                np.linalg.lstsq(reach.chain.jacobian(q)[:3], e, rcond=None)[0]
                for q, e in zip(columns['command.position'], error, strict=True)
            ]
            largest = np.abs(action).max(axis=1, keepdims=True)
            scale = 0.08 / np.maximum(largest, 0.08)
            environment.step(moving * scale * np.array(action))
            rows[moving].append(environment.columns)
    stacked = {
        moving: {key: np.stack([row[key] for row in rows[moving]]) for key in (TOOL, TARGET)}
        for moving in rows
    }
    assert reach.success(stacked[True]).all()
    assert not reach.success(stacked[False]).any()


def test_servos_follow_with_a_small_lag_and_without_overshoot(reach):
    twin = Twin(reach)
    twin.reset(0)
    home = reach.robot.home_position
    for direction in (1.0, -1.0):
        goal, command = home + direction * np.array([0.8, 0.4, -0.4, 0.6, 0.6, 0.6]), home.copy()
        twin.data.qpos[:], twin.data.qvel[:] = home, 0
        lag, past = 0.0, 0.0
        for _ in range(150):
            command = command + np.clip(goal - command, -0.016, 0.016)  # 1.6 rad/s
            twin.set_command(command)
            twin.advance(0.01)
            lag = max(lag, np.abs(command - twin.joint_position).max())
            past = max(past, ((twin.joint_position - goal) * np.sign(goal - home)).max())
        assert lag < 0.06 * 1.6  # under 60 ms behind
        assert past < 0.002
        np.testing.assert_allclose(twin.joint_position, goal, atol=1e-4)


def test_the_arm_holds_a_pose_against_gravity(reach):
    twin = Twin(reach)
    twin.reset(3)
    start = twin.joint_position
    twin.advance(5.0)
    np.testing.assert_allclose(twin.joint_position, start, atol=1e-9)
    assert twin.time == pytest.approx(5.0)


def test_the_pedestal_stops_the_arm(reach):
    twin = Twin(reach)
    twin.reset(0)
    down = np.array([0, 0.05, 0.05, 0, 0, 0])
    for _ in range(60):
        twin.set_command(np.minimum(twin.command + down, 3.1))
        twin.advance(0.05)
    assert twin.data.ncon > 0 and np.isfinite(twin.joint_position).all()
    depth = min(contact.dist for contact in twin.data.contact)
    assert depth > -0.02


def test_a_contract_with_history_and_its_own_fields_is_served(reach):
    fields = (
        ObservationField(name='tool', source=TOOL, shape=(3,), history=3),
        ObservationField(name='way', source='tool.orientation', shape=(4,)),
        ObservationField(
            name='some',
            source='joint_states.position',
            names=('elbow_joint', 'shoulder_pan_joint'),
            shape=(2,),
        ),
    )
    contract = reach.contract().model_copy(update={'observation': fields})
    environment = ArmEnvironment(reach, num_envs=2, contract=contract)
    seen = [environment.reset([1, 2]).observation]
    actions = np.random.default_rng(0).uniform(-0.08, 0.08, (61, 2, 6))
    tools = [environment.columns[TOOL]]
    for action in actions:
        seen.append(environment.step(action).observation)
        tools.append(environment.columns[TOOL])
    np.testing.assert_allclose(seen[0]['tool'], np.stack([tools[0]] * 3, 1), rtol=1e-6)
    np.testing.assert_allclose(seen[9]['tool'], np.stack(tools[7:10], 1), rtol=1e-6)
    # After LAST the history starts anew: nothing of the old episode is seen.
    np.testing.assert_allclose(seen[61]['tool'], np.stack([tools[61]] * 3, 1), rtol=1e-6)
    position = environment.columns['joint_states.position']
    np.testing.assert_allclose(seen[-1]['some'], position[:, [2, 0]], rtol=1e-6)


def test_bad_input_is_one_clear_line(reach, environment):
    with pytest.raises(RobotRLError, match='call reset'):
        environment.step(np.zeros((3, 6)))
    environment.reset()
    with pytest.raises(ContractMismatch, match=r'shape \[3, 5\], right is \[3, 6\]'):
        environment.step(np.zeros((3, 5)))
    before = environment.columns
    with pytest.raises(ContractMismatch, match='not finite'):
        environment.step(np.full((3, 6), np.nan))
    for key, column in environment.columns.items():
        np.testing.assert_array_equal(column, before[key])
    with pytest.raises(ValueError, match='2 seeds for 3'):
        environment.reset([1, 2])
    with pytest.raises(ContractMismatch, match="no stream 'camera'"):
        field = ObservationField(
            name='picture',
            source='camera.image',
            shape=(8, 8, 3),
            dtype='uint8',
            encoding='rgb8',
        )
        contract = reach.contract()
        fields = (*contract.observation, field)
        ArmEnvironment(reach, contract=contract.model_copy(update={'observation': fields}))
    with pytest.raises(ContractMismatch, match=r'20\.0 Hz, the contract at 10\.0 Hz'):
        ArmEnvironment(reach, contract=reach.contract().replace(rate_hz=10.0))


def test_the_twin_refuses_commands_that_are_not_positions(reach):
    twin = Twin(reach)
    held = twin.command
    for bad in ([0.0] * 5, [np.nan] * 6, [[0.0] * 6]):
        with pytest.raises(ContractMismatch, match='takes 6 finite joint positions'):
            twin.set_command(bad)
    np.testing.assert_array_equal(twin.command, held)


def test_the_twin_keeps_what_is_left_of_a_step(reach):
    twin = Twin(reach)
    twin.reset(0)
    for _ in range(100):
        twin.advance(0.0013)
    assert twin.time == pytest.approx(0.13, abs=0.002)
    twin.reset(0)
    assert twin.time == 0
    twin.advance(0.002)
    assert twin.time == pytest.approx(0.002)


def test_warm_starts_are_off_so_that_a_step_depends_on_the_state_alone(reach):
    assert reach.model().opt.disableflags & mujoco.mjtDisableBit.mjDSBL_WARMSTART.value
