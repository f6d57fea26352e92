"""Randomised worlds, against models that are changed by hand and what chance should give."""

from __future__ import annotations

import json

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl import registry, resources
from robot_rl.cli.main import main
from robot_rl.control.actions import joint_target
from robot_rl.control.limiter import Limits, limit
from robot_rl.control.motion import Line, at_rest
from robot_rl.errors import RobotRLError, SpecError
from robot_rl.imitation.collect import collect_episodes
from robot_rl.sim import rendering
from robot_rl.sim.arm import ArmEnvironment
from robot_rl.sim.imperfections import Imperfections
from robot_rl.sim.randomisation import Randomisation
from robot_rl.sim.simulated_arm import SimulatedArm
from robot_rl.sim.twin import Twin
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.store import Store

PHYSICS = {
    'mass': {'*_link': [0.5, 2.0], 'cube': [0.3, 3.0], 'tool/tool': [2.0, 4.0]},
    'contact_friction': {'cube': [0.4, 1.6], 'world': [0.5, 1.5]},
    'friction': [0.0, 8.0],
    'gain': [0.5, 1.5],
}
MEASURED = {
    'command_delay': [0, 4],
    'sensor_delay': [0, 7],
    'position_noise': [0.001, 0.01],
    'velocity_noise': [0.01, 0.1],
}
VISUAL = {
    'colour': {'cube': [0.5, 1.0], 'world': 0.5, 'tool/*': [0.0, 1.0]},
    'light_brightness': [0.3, 1.2],
    'light_turn': [0.1, 0.6],
    'camera_shift': [0.02, 0.05],
    'camera_turn': [0.05, 0.2],
}
ALL = PHYSICS | MEASURED | VISUAL
SEEDS = [7, 2**31, 9]


def randomised(name='ur5e/lift', **ranges):
    task = registry.make_task(name)
    return type(task)(task.config.replace(randomisation=ranges))


def many(count=2000, **ranges):
    """Worlds of as many seeds."""
    task = randomised(**ranges)
    model = task.model()
    return [task.randomisation.drawn(seed, model, task.robot) for seed in range(count)]


def actions_for(environment, steps, seed=0):
    """Random actions, each held for some steps."""
    contract, rng = environment.contract, np.random.default_rng(seed)
    shape = (steps // 5 + 1, environment.num_envs, contract.action_size)
    drawn = rng.uniform(contract.action_lower, contract.action_upper, shape)
    return np.repeat(drawn, 5, axis=0)[:steps].astype(np.float32)


@pytest.mark.parametrize('name', registry.arm_task_names())
def test_it_is_off_where_no_file_says_otherwise_and_then_one_model_serves_all(name):
    task = registry.make_task(name)
    assert task.randomisation == Randomisation() and not task.randomisation.is_on
    environment = ArmEnvironment(task, 2)
    environment.reset([1, 2])
    assert environment.scene(0)[0] is environment.scene(1)[0]


def test_every_quantity_says_what_it_is():
    assert all(field.description for field in Randomisation.model_fields.values())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    ranges=st.fixed_dictionaries(
        {
            key: st.tuples(st.floats(0.01, 5), st.floats(0.01, 5)).map(sorted)
            for key in ('gain', 'friction', 'position_noise', 'light_brightness', 'camera_shift')
        }
    ),
    delay=st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted),
)
def test_a_draw_is_in_its_range_the_same_again_and_on_its_own(seed, ranges, delay):
    task = randomised(**ranges, sensor_delay=delay, mass={'cube': ranges['gain']})
    model = task.model()
    domain = task.randomisation.drawn(seed, model, task.robot)
    faults = domain.imperfections

    def within(values, key):
        low, high = ranges[key]
        assert (low - 1e-9 <= np.asarray(values)).all() and (
            np.asarray(values) <= high + 1e-9
        ).all()

    within(faults.gain, 'gain')
    within(faults.friction, 'friction')
    within(faults.position_noise, 'position_noise')
    within(domain.light_brightness, 'light_brightness')
    within(np.linalg.norm(domain.camera_shift, axis=1), 'camera_shift')
    within(domain.mass['cube'], 'gain')
    steps = faults.sensor_delay_s * task.robot.controller.rate_hz
    assert steps == pytest.approx(round(steps)) and delay[0] <= round(steps) <= delay[1]
    assert task.randomisation.drawn(seed, model, task.robot) == domain
    alone = randomised(gain=ranges['gain']).randomisation.drawn(seed, model, task.robot)
    assert alone.imperfections.gain == faults.gain
    assert alone.imperfections.friction == (0.0,) * 6


def test_draws_are_uniform_and_independent():
    domains = many(gain=[0.5, 1.5], mass={'*_link': [0.5, 1.5]}, light_turn=[0.5, 1.5],
                   colour={'cube': 1.0})  # fmt: skip
    values = np.array(
        [
            [*d.imperfections.gain, *d.mass.values(), np.linalg.norm(d.light_turn[0])]
            for d in domains
        ]
    )
    assert values.shape == (2000, 14)
    # Kolmogorov-Smirnov: the largest distance from a uniform distribution, 1.95 / sqrt(n) at 0.1 %
    ranks = (np.arange(2000) + 0.5) / 2000
    assert np.abs(np.sort(values - 0.5, axis=0) - ranks[:, None]).max() < 1.95 / np.sqrt(2000)
    assert np.abs(np.corrcoef(values.T) - np.eye(14)).max() < 0.1
    ways = np.array([d.light_turn[0] for d in domains])
    np.testing.assert_allclose(ways.mean(axis=0), 0, atol=0.06)
    colours = np.array([d.colour['cube'] for d in domains])
    np.testing.assert_allclose(colours.mean(axis=0), [0.5, 0.5, 0.5, 1.0], atol=0.03)
    np.testing.assert_allclose(colours.var(axis=0), [1 / 12, 1 / 12, 1 / 12, 0], atol=0.01)


def test_delays_are_whole_periods_and_each_is_as_likely():
    delays = [d.imperfections.command_delay_s for d in many(command_delay=[1, 4])]
    values, counts = np.unique(np.round(delays, 9), return_counts=True)
    np.testing.assert_allclose(values, [0.01, 0.02, 0.03, 0.04])
    assert counts.min() > 430


def test_of_two_patterns_the_last_holds():
    (domain,) = many(1, mass={'*': 2.0, 'wrist_*': 3.0, 'wrist_2_link': 5.0})
    assert (domain.mass['cube'], domain.mass['wrist_1_link'], domain.mass['wrist_2_link']) == (
        2,
        3,
        5,
    )


def by_hand(task, domain):
    """The model of a world: the task's, changed here, by what its record says."""
    model, faults = task.model(), domain.imperfections
    for body, factor in domain.mass.items():
        model.body(body).mass *= factor
        model.body(body).inertia *= factor
        model.body_gravcomp[model.body(body).id] /= factor
    for body, factor in domain.contact_friction.items():
        for geom in range(model.ngeom):
            if model.body(model.geom_bodyid[geom]).name == body:
                model.geom(geom).friction *= factor
    for joint, gain, friction in zip(task.robot.joints, faults.gain, faults.friction, strict=True):
        dof = model.joint(joint).dofadr[0]
        model.dof_frictionloss[dof] += friction
        model.dof_solimp[dof, :2] = 0.9999
        servo = model.actuator(joint).id
        model.actuator_gainprm[servo, 0] *= gain
        model.actuator_biasprm[servo, :2] *= gain
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def test_each_environment_steps_a_model_of_its_own_as_plain_mujoco_does():
    task = randomised(**PHYSICS)
    environment = ArmEnvironment(task, 3, threads=2)
    environment.reset(SEEDS)
    lanes, scene = [], [environment.scene(lane) for lane in range(3)]
    for lane, (seed, domain) in enumerate(zip(SEEDS, environment.domains, strict=True)):
        model = by_hand(task, domain)
        for field in ('body_mass', 'body_inertia', 'body_subtreemass', 'body_gravcomp',
                      'dof_invweight0', 'body_invweight0', 'geom_friction', 'dof_frictionloss',
                      'actuator_gainprm', 'actuator_biasprm'):  # fmt: skip
            np.testing.assert_array_equal(getattr(scene[lane][0], field), getattr(model, field))
        start, data = task.initial(seed), mujoco.MjData(model)
        motion = at_rest(start.joint_position, Limits.from_spec(task.robot))
        lanes.append((model, data, motion))
        twin = Twin(task)
        twin.reset(seed)
        data.qpos[:] = twin.data.qpos
    limits = Limits.from_spec(task.robot)
    command = np.array([task.initial(seed).joint_position for seed in SEEDS])
    for action in actions_for(environment, 25):
        environment.step(action)
        wanted = joint_target(task.contract(), action, command, task.robot, task.chain)
        target = limit(wanted, command, 0.05, limits)
        for lane, (model, data, motion) in enumerate(lanes):
            line = Line(command[lane], target[lane], 0.0, 0.05)
            data.ctrl[6] = task.robot.gripper.position(action[lane, 4])
            for tick in range(5):
                motion = motion.follow(line, (tick + 1) * 0.01, 0.01, limits)
                data.ctrl[:6] = motion.position
                mujoco.mj_step(model, data, 5)
            lanes[lane] = (model, data, motion)
            np.testing.assert_allclose(
                environment.columns['joint_states.position'][lane], data.qpos[:6], atol=1e-9
            )
            np.testing.assert_allclose(
                environment.columns['cube_pose.position'][lane], data.body('cube').xpos, atol=1e-4
            )
        command = target
    positions = environment.columns['joint_states.position']
    assert np.ptp(positions - command, axis=0).max() > 1e-3  # the worlds differ


def test_masses_are_those_of_a_scene_that_was_compiled_with_them():
    """What the compiler computes of a mass is computed again."""
    task = randomised(mass={'cube': 2.5})
    environment = ArmEnvironment(task, 1)
    environment.reset([0])
    spec = mujoco.MjSpec.from_file(str(resources.model(task.config.scene).absolute()))
    spec.geom('cube').mass *= 2.5
    compiled, model = spec.compile(), environment.scene(0)[0]
    for field in ('body_mass', 'body_inertia', 'body_subtreemass', 'dof_invweight0',
                  'body_invweight0'):  # fmt: skip
        np.testing.assert_allclose(getattr(model, field), getattr(compiled, field), rtol=1e-12)


def test_what_compensates_gravity_does_not_know_of_a_load():
    loaded, nominal = Twin(randomised(mass={'tool/tool': 4.0})), Twin(randomised())
    for twin in (loaded, nominal):
        twin.reset(3)
        mujoco.mj_forward(twin.model, twin.data)
    np.testing.assert_allclose(
        loaded.data.qfrc_gravcomp, nominal.data.qfrc_gravcomp, rtol=1e-9, atol=1e-9
    )
    more = nominal.data.qfrc_bias[1] + 3 * weight_at(nominal, 'tool/tool', 'shoulder_lift_joint')
    assert loaded.data.qfrc_bias[1] == pytest.approx(more, rel=1e-6)


def weight_at(twin, body, joint):
    """The torque about a joint that the weight of one body asks for."""
    model, data = twin.model, twin.data
    jacobian = np.zeros((3, model.nv))
    index = model.body(body).id
    mujoco.mj_jacBodyCom(model, data, jacobian, None, index)
    force = -model.body_mass[index] * model.opt.gravity
    return float(force @ jacobian[:, model.joint(joint).dofadr[0]])


@pytest.mark.parametrize('name', ['ur5e/reach', 'ur5e/lift'])
def test_the_twin_of_an_episode_is_in_the_same_world(name):
    ranges = {key: values for key, values in (ALL | {'mass': {'*_link': [0.5, 2]}}).items()
              if key not in ('contact_friction', 'colour')}  # fmt: skip
    task = randomised(name, **ranges, colour={'*_link': [0, 1]})
    environment, twin = ArmEnvironment(task, 3), Twin(task)
    environment.reset(SEEDS)
    for lane, seed in enumerate(SEEDS):
        twin.reset(seed)
        assert twin.domain == environment.domains[lane]
        own, model = twin.model, environment.scene(lane)[0]
        arrays = [key for key in dir(own) if isinstance(getattr(own, key), np.ndarray)]
        assert len(arrays) > 200
        for key in arrays:
            np.testing.assert_array_equal(getattr(own, key), getattr(model, key), err_msg=key)


def test_delays_and_noise_are_those_of_the_arm_behind_its_driver():
    """SimulatedArm gets the commands one by one and measures what the environment tells."""
    ranges = {key: MEASURED[key] for key in ('command_delay', 'sensor_delay')}
    task = randomised('ur5e/reach', **ranges, gain=[0.3, 1.0], friction=[0, 5])
    environment, limits = ArmEnvironment(task, 3), Limits.from_spec(task.robot)
    environment.reset(SEEDS)
    delays = [d.imperfections for d in environment.domains]
    assert len({d.command_delay_s for d in delays} | {d.sensor_delay_s for d in delays}) > 2
    arms = [SimulatedArm(task, Imperfections(), seed) for seed in SEEDS]
    motions = [at_rest(arm.twin.joint_position, limits) for arm in arms]
    command = np.array([arm.twin.joint_position for arm in arms])
    for action in actions_for(environment, 30):
        environment.step(action)
        target = limit(command + action, command, 0.05, limits)
        for lane, arm in enumerate(arms):
            line = Line(command[lane], target[lane], 0.0, 0.05)
            for tick in range(5):
                motions[lane] = motions[lane].follow(line, (tick + 1) * 0.01, 0.01, limits)
                arm.command(motions[lane].position)
                arm.advance(0.01)
            measured, columns = arm.measure(), environment.columns
            np.testing.assert_allclose(
                columns['joint_states.position'][lane], measured.position, atol=1e-8
            )
            np.testing.assert_allclose(
                columns['joint_states.velocity'][lane], measured.velocity, atol=1e-6
            )
        command = target


def test_noise_has_the_deviation_that_was_drawn_and_the_tool_is_where_it_is_measured():
    task = randomised(**{key: MEASURED[key] for key in ('position_noise', 'velocity_noise')})
    environment = ArmEnvironment(task, 40)
    environment.reset(range(40))
    errors = []
    for _ in range(50):
        columns = environment.columns
        true = np.array([environment.scene(lane)[1].qpos[:6].copy() for lane in range(40)])
        errors.append(columns['joint_states.position'] - true)
        tool = task.chain.position(columns['joint_states.position'])
        np.testing.assert_allclose(columns['tool.position'], tool, atol=1e-12)
        environment.step(np.zeros((40, environment.contract.action_size)))
    errors = np.array(errors)  # [steps, lanes, joints]
    drawn = np.array([d.imperfections.position_noise[0] for d in environment.domains])
    scaled = errors / drawn[:, None]
    np.testing.assert_allclose(scaled.std(axis=(0, 2)), 1.0, atol=0.2)
    assert abs(scaled.mean()) < 0.05
    assert abs(np.corrcoef(scaled[1:].ravel(), scaled[:-1].ravel())[0, 1]) < 0.05
    for lane in range(40):  # which has no noise
        finger = environment.scene(lane)[1].joint('tool/left_finger').qpos
        width = task.robot.gripper.width(finger)
        np.testing.assert_array_equal(environment.columns['gripper.width'][lane], width)


def test_a_world_looks_as_its_record_says():
    task = randomised(**VISUAL)
    environment, nominal = ArmEnvironment(task, 1), task.model()
    for seed in (4, 5):  # the second is no change of the first
        environment.reset([seed])
        (domain,), (model, _) = environment.domains, environment.scene(0)
        red, green, blue, opacity = domain.colour['cube']
        own = nominal.material('blue').rgba  # the cube's geom has no colour but its material's
        mixed = (1 - opacity) * own[:3] + opacity * np.array([red, green, blue])
        np.testing.assert_allclose(model.geom('cube').rgba, [*mixed, 1.0], rtol=1e-6)
        *over, opacity = domain.colour['world']
        mixed = 0.5 * nominal.material('table').rgba[:3] + 0.5 * np.array(over)
        np.testing.assert_allclose(model.geom('table').rgba[:3], mixed, rtol=1e-6)
        factor = domain.light_brightness
        np.testing.assert_allclose(model.light_diffuse, nominal.light_diffuse * factor, rtol=1e-6)
        np.testing.assert_allclose(
            model.vis.headlight.ambient, nominal.vis.headlight.ambient * factor, rtol=1e-6
        )
        cosines = (model.light_dir * nominal.light_dir).sum(axis=1)
        turns = np.linalg.norm(domain.light_turn, axis=1)
        assert (np.arccos(cosines) <= turns + 1e-6).all() and (cosines < 1).all()
        np.testing.assert_allclose(
            model.cam_pos - nominal.cam_pos, domain.camera_shift, atol=1e-12
        )
        difference = np.zeros(3)
        mujoco.mju_subQuat(difference, model.cam_quat[0], nominal.cam_quat[0])
        local = np.zeros(3)  # mju_subQuat tells it in the camera's own frame
        mujoco.mju_rotVecQuat(local, difference, nominal.cam_quat[0])
        np.testing.assert_allclose(local, domain.camera_turn[0], atol=1e-9)


def test_pictures_show_it_and_show_it_again():
    try:
        renderer = rendering.Renderer(80, 60)
    except RobotRLError as error:
        pytest.skip(str(error))
    environment = ArmEnvironment(randomised(**VISUAL), 1)
    pictures = []
    for seed in (4, 5, 4):
        environment.reset([seed])
        pictures.append(renderer.frame(*environment.scene(0)).astype(int))
    renderer.close()
    assert np.abs(pictures[0] - pictures[1]).mean() > 5
    assert np.abs(pictures[0] - pictures[2]).max() < 20


class Watched:
    """A policy of random actions that keeps what it saw."""

    def __init__(self, contract):
        self._contract, self._rng, self.seen = contract, np.random.default_rng(1), []

    def initial_state(self, batch):
        return None

    def select(self, observation, state):
        self.seen.append(observation)
        lower, upper = self._contract.action_lower, self._contract.action_upper
        size = (len(next(iter(observation.values()))), len(lower))
        return self._rng.uniform(lower, upper, size), state


def test_a_stored_episode_is_simulated_again_from_its_seed_bit_by_bit(tmp_path):
    task = randomised(**ALL)
    environment = ArmEnvironment(task, 2)
    policy, store = Watched(environment.contract), Store(tmp_path)
    headers = collect_episodes(store, environment, policy, SEEDS)
    for number, header in enumerate(headers):
        stored = store.open(header.id)
        header, columns = stored.header, aligned_columns(stored)
        again = registry.make_task(header.task)
        again = type(again)(again.config.replace(randomisation=header.extra['randomisation']))
        alone = ArmEnvironment(again, 1)
        timestep = alone.reset([header.seed])
        assert alone.domains[0].to_dict() == header.extra['domain']
        seen = policy.seen[task.max_steps * (number // 2) :]
        for step, action in enumerate(columns['action/requested']):
            for name, values in timestep.observation.items():
                np.testing.assert_array_equal(values[0], seen[step][name][number % 2], name)
            for name, values in alone.columns.items():
                if name in columns:
                    np.testing.assert_array_equal(values[0], columns[name][step], name)
            timestep = alone.step(action[None])
    assert headers[0].extra['domain'] != headers[1].extra['domain']


def test_the_header_of_an_episode_in_the_model_s_own_world_says_nothing(tmp_path):
    environment = ArmEnvironment(registry.make_task('ur5e/reach'), 1)
    (header,) = collect_episodes(Store(tmp_path), environment, Watched(environment.contract), [1])
    assert header.extra == {}


def test_what_is_given_and_what_is_drawn_come_together(reach):
    task = randomised('ur5e/reach', gain=0.5, friction=2.0, sensor_delay=1)
    arm = SimulatedArm(task, Imperfections(gain=(0.8,), friction=(1.0,), position_noise=(0.3,)))
    nominal = reach.model()
    for seed in (0, 1):  # and not more with every episode
        arm.reset(seed)
        servo = nominal.actuator_gainprm[:6, 0]
        np.testing.assert_allclose(arm.twin.model.actuator_gainprm[:6, 0], 0.4 * servo)
        np.testing.assert_allclose(arm.twin.model.dof_frictionloss[:6], 3.0)
    one, other = Imperfections(position_noise=(3.0,)), Imperfections(position_noise=(4.0,))
    assert one.beside(other, task.robot).position_noise == (5.0,) * 6  # variances add


def test_a_file_of_a_task_and_flags_over_it(tmp_path, capsys):
    text = (resources.share() / 'config/tasks/ur5e_reach.yaml').read_text()
    path = tmp_path / 'mine.yaml'
    path.write_text(text + 'randomisation: {gain: [0.5, 1.0], mass: {forearm_link: 2}}\n')
    task = registry.make_task(str(path), ['randomisation.friction=[1, 2]'])
    assert task.randomisation == Randomisation(
        gain=(0.5, 1.0), friction=(1.0, 2.0), mass={'forearm_link': (2.0, 2.0)}
    )
    store = tmp_path / 'episodes'
    words = ['--task', str(path), '--policy', 'random', '--episodes', '1', '--store', str(store)]
    assert main(['collect', *words, '--set', 'randomisation.gain=0.25', '--json']) == 0
    (id,) = json.loads(capsys.readouterr().out)['episodes']
    told = Store(store).open(id).header.extra
    assert told['domain']['imperfections']['gain'] == [0.25] * 6
    assert told['domain']['mass'] == {'forearm_link': 2.0}


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        ('randomisation.gain=[2, 1]', 'gain: lower 2 must not be above upper 1'),
        ('randomisation.mass={wrist_1_link: -1}', 'mass.wrist_1_link.0: must be greater than 0'),
        (
            'randomisation.mass={wrist_1_lnk: 2}',
            "randomisation.mass: the scene has no body 'wrist_1_lnk'; did you mean 'wrist_1_link'",
        ),
        ('randomisation.gian=2', "randomisation.gian: unknown key; did you mean 'gain'"),
        ('randomisation.sensor_delay=0.5', 'sensor_delay.0: a whole number is needed'),
        ('randomisation.colour={world: 2}', 'colour.world.0: must be less than or equal to 1'),
        ('randomisation.friction=[1, 2, 3]', 'friction: '),
        ('randomisation.friction=low', 'friction: a list is needed'),
    ],
)
def test_what_cannot_be_drawn_is_one_line(change, told, capsys):
    words = ['--task', 'ur5e/reach', '--policy', 'random', '--episodes', '1']
    assert main(['evaluate', *words, '--set', change]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and told in error
    assert f'--set {change}: ' in error or 'no body' in error


def test_tasks_of_other_packages_are_not_randomised(capsys):
    with pytest.raises(SpecError, match='gym/Pendulum-v1 has no file that says such things'):
        registry.make_environment('gym/Pendulum-v1', changes=['randomisation.gain=2'])
