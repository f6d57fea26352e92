"""What is said of trials, against counts by hand and another library's statistics."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.errors import StorageError
from robot_rl.evaluation.interval import wilson
from robot_rl.evaluation.pictures import EpisodePictures
from robot_rl.evaluation.report import rows, write_report
from robot_rl.evaluation.trials import (
    TAG,
    Interventions,
    Trial,
    done_after_s,
    interventions,
    read_trial,
    summary,
    teleoperators,
)
from robot_rl.imitation.collect import collect_episodes
from robot_rl.registry import make_environment, make_policy, make_task
from robot_rl.storage import column_file
from robot_rl.storage.episode import EpisodeHeader
from robot_rl.storage.foreign import ForeignEpisode, write
from robot_rl.storage.sources import ESTOP, HOLD, PERSON, POLICY
from robot_rl.storage.store import Store


@settings(deadline=None)  # the first call imports
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilson_s(counts):
    stats = pytest.importorskip('scipy.stats')
    expected = stats.binomtest(*counts).proportion_ci(0.95, method='wilson')
    np.testing.assert_allclose(wilson(*counts), expected, atol=1e-9)


def test_of_no_trial_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ('distances', 'after'),
    [
        ([0.3, 0.1, 0.01, 0.01], 0.2),
        ([0.3, 0.01, 0.1, 0.01], 0.3),  # it left again
        ([0.01, 0.01, 0.0, 0.01], 0.0),
        ([0.01, 0.01, 0.01, 0.5], None),
    ],
)
def test_a_task_is_done_once_it_stays_done(distances, after):
    task, places = make_task('ur5e/reach'), np.zeros((4, 3))
    places[:, 0] = distances
    columns = {'time': 100 + 0.1 * np.arange(4), 'tool.position': places}
    columns['target_pose.position'] = np.zeros((4, 3))
    found = done_after_s(task, columns)
    assert found is None if after is None else found == pytest.approx(after)


@pytest.mark.parametrize(
    ('steps', 'counted', 'count', 'seconds'),
    [
        ('pppp', None, 0, 0.0),
        ('hppttphh', None, 1, 0.2),
        ('ppthhtpp', None, 1, 0.2),  # a pause of who intervenes is no second intervention
        ('ppttppttt', None, 2, 0.5),
        ('pphhppee', None, 0, 0.0),  # nobody's commands
        ('ppttpp', 2, 2, 0.2),  # the recorder saw a change within a step
    ],
)
def test_interventions_are_counted_and_timed(steps, counted, count, seconds):
    numbers = {'p': POLICY, 't': PERSON, 'h': HOLD, 'e': ESTOP}
    columns = {'source': np.array([numbers[letter] for letter in steps], np.int8)}
    columns['time'] = 100 + 0.1 * np.arange(len(steps) + 1)
    found = interventions(EpisodeHeader(source='policy', interventions=counted), columns)
    assert found.count == count and found.seconds == pytest.approx(seconds)
    assert interventions(EpisodeHeader(source='teleop'), columns) == Interventions(0, 0.0)


def trial(success, length=3.0, after=None, count=0, episode='e'):
    return Trial(episode, 1, 'truncated', 'done', success, length, after, 0.1,
                 Interventions(count, 0.5 * count))  # fmt: skip


def test_a_summary_counts_what_was_judged():
    trials = [
        trial(True, 3.0, 1.0, 1), trial(True, 5.0, 2.0), trial(True, 7.0, 3.0, 2),
        trial(False, 9.0, episode='bad'), trial(None, 6.0, episode='open'),
        Trial('cut', None, 'estop', 'no columns', None),
    ]  # fmt: skip
    found = summary(trials)
    assert (found['trials'], found['successes'], found['success_rate']) == (6, 3, 0.75)
    assert found['success_interval'] == list(wilson(3, 4))
    assert found['failures'] == ['bad'] and found['not_judged'] == ['open', 'cut']
    assert found['length_s'] == {'lower_quartile': 4, 'median': 5, 'upper_quartile': 6}
    assert found['done_after_s']['median'] == 2
    assert (found['interventions'], found['intervened_s']) == (3, 1.5)
    assert found['interventions_per_hour'] == pytest.approx(3 / (30 / 3600))
    nothing = summary([Trial('cut', None, 'estop', 'no columns', None)])
    assert nothing['success_rate'] is nothing['length_s'] is None
    assert nothing['interventions_per_hour'] is None
    json.dumps(nothing, allow_nan=False)


@pytest.fixture
def store(tmp_path):
    """Return a store with two demonstrations, one trial of the demonstrator, and a failure."""
    store, name = Store(tmp_path / 'store'), 'ur5e/reach'
    environment = make_environment(name, num_envs=2)
    for policy, seeds, about in (
        ('scripted', [1, 2], {'source': 'teleop'}),
        ('scripted', [3], {'source': 'teleop', 'tags': [TAG]}),
        ('constant', [4], {'source': 'policy', 'tags': [TAG]}),
    ):
        made = make_policy(policy, name, environment.contract)
        collect_episodes(store, environment, made, seeds, about | {'policy': policy})
    environment.close()
    return store


def test_demonstrations_are_compared_with_and_trials_are_not(store):
    task = make_task('ur5e/reach')
    shown = teleoperators(store, task)
    assert shown['episodes'] == 2
    assert shown['length_s']['median'] == pytest.approx(3.0)
    times = []
    for seed in (1, 2):
        found, columns = read_trial(store, task, *store.episodes(seed=seed).ids)
        distance = np.linalg.norm(
            columns['tool.position'] - columns['target_pose.position'], axis=1
        )
        far = np.flatnonzero(distance > 0.02)[-1] + 1
        times.append(columns['time'][far] - columns['time'][0])
        assert found.success and found.done_after_s == pytest.approx(times[-1])
        assert found.final_distance == pytest.approx(distance[-1])
    assert shown['done_after_s']['median'] == pytest.approx(np.mean(times))
    assert teleoperators(store, make_task('ur5e/lift'))['episodes'] == 0
    for name in ('ur5e/reach_sparse', 'ur5e/reach_vision', 'ur5e/reach_sparse_vision'):
        assert teleoperators(store, make_task(name)) == shown, name


def test_a_trial_is_judged_by_the_task_or_left_to_a_person(store):
    task, (id,) = make_task('ur5e/reach'), store.episodes(seed=4).ids
    store.label(id, None)
    assert read_trial(store, task, id, 'human')[0].success is None
    assert store.open(id).header.success is None
    found, _ = read_trial(store, task, id)
    assert found.success is False and found.done_after_s is None and found.result == 'truncated'
    assert store.open(id).header.success is False
    store.label(id, True)
    assert read_trial(store, task, id)[0].success is True  # a person's label stays


def test_what_a_trial_without_poses_does_not_tell_is_left_open(store, tmp_path):
    """As of an arm that sees by cameras: a person judges, and nothing is made up."""
    (id,) = store.episodes(seed=4).ids
    source, task = store.open(id), make_task('ur5e/reach')
    columns = column_file.read_whole(source.steps_path)
    columns = {name: c for name, c in columns.items() if not name.startswith('target_pose')}
    fields = [f for f in source.header.contract.observation if f.stream != 'target_pose']
    contract = source.header.contract.replace(observation=[f.to_dict() for f in fields])
    header = source.header.replace(id='blind', success=None, contract=contract, files=())
    blind = Store(tmp_path / 'blind')
    write(blind.root, ForeignEpisode(header, columns))
    task.contract = lambda: contract
    found, columns = read_trial(blind, task, 'blind')
    assert found.success is found.done_after_s is found.final_distance is None
    assert found.reason.endswith('not recorded: target_pose')
    assert found.length_s == pytest.approx(3.0)
    assert set(EpisodePictures(task, (32, 24)).of(columns)) == {'start', 'after 1 s', 'end'}
    blind.label('blind', True)
    assert read_trial(blind, task, 'blind', 'human')[0].success is True


def test_a_trial_that_cannot_be_read_is_told(store):
    (id,) = store.episodes(seed=4).ids
    (store.path(id) / 'steps.npz').write_bytes(b'')
    found, columns = read_trial(store, make_task('ur5e/reach'), id)
    assert columns is None and 'steps.npz' in found.reason and found.length_s is None


def test_a_trial_that_cannot_be_labelled_is_judged_all_the_same(store, monkeypatch):
    """A disk that was full by then lost the report of all trials."""

    def full(*_):
        raise StorageError('index.sqlite: disk full')

    (id,) = store.episodes(seed=3).ids
    store.label(id, None)
    monkeypatch.setattr(store, 'label', full)
    found, _ = read_trial(store, make_task('ur5e/reach'), id)
    assert found.success is True and found.done_after_s is not None
    assert found.reason.endswith('; not labelled: index.sqlite: disk full')


def test_the_page_has_every_trial_with_its_pictures_and_escapes_words(tmp_path):
    good, bad = trial(True, 3.0, 1.25, episode='good'), trial(False, episode='bad')
    each = [t._asdict() | {'interventions': t.interventions._asdict()} for t in (good, bad)]
    each[1]['reason'] = 'a <b>bold</b> word'
    each[0]['event'] = {'at_s': 0.75, 'moved': {'target_pose': [0.1, -0.25, 0]}, 'knocked': {}}
    column = {'perturbation': 'none'} | summary([good, bad]) | {'each': each}
    data = dict.fromkeys(('policy_sha256', 'robot', 'world', 'judge', 'run', 'store'), 'x')
    data |= {'policy': '<p>', 'task': 'ur5e/reach', 'columns': [column]}
    data['teleoperators'] = {'episodes': 0, 'length_s': None, 'done_after_s': None}
    pictures = {'good': {'end': np.zeros((8, 9, 3), np.uint8)}}
    write_report(tmp_path / 'r.html', data, pictures, {'good': '../st/good'})
    page = (tmp_path / 'r.html').read_text()
    assert '&lt;p&gt;' in page and '<b>' not in page and 'href="../st/good"' in page
    assert page.count('<img') == 1 and page.count('data:image/jpeg;base64,') == 1
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert page.index('>success<') < page.index('>good<') < page.index('>failure<')
    assert 'target_pose moved by (0.10, -0.25, 0.00) m after 0.75 s' in page
    assert 'done after 1.2 s' in page or 'done after 1.3 s' in page


def test_the_table_has_a_line_for_each_perturbation_and_the_teleoperators():
    columns = [{'perturbation': name} | summary([trial(True, 3.0, 1.0)]) for name in ('none', 'x')]
    shown = {'episodes': 4, 'length_s': summary([trial(True)])['length_s'], 'done_after_s': None}
    first, second, third = rows(columns, shown)
    assert first[:2] == ['none', '1 of 1'] and second[0] == 'x'
    assert first[2] == '{:.0%} to {:.0%}'.format(*wilson(1, 1))
    assert third[0] == '(teleoperators, 4 good)' and third[4] == '3.0 s (3.0 to 3.0)'
