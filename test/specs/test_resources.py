from __future__ import annotations

import sys
import types

import pytest

from robot_rl import resources
from robot_rl.errors import RobotRLError, SpecError, UnknownName, did_you_mean


def test_names_are_sorted_and_found(tmp_path):
    assert 'ur5e' in resources.names('config/robots')
    assert resources.names('config/robots') == sorted(resources.names('config/robots'))
    assert resources.names('config/nowhere') == []
    for name in resources.names('config/tasks'):
        assert resources.find('config/tasks', name).is_file()


def test_a_path_of_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('a: 1')
    assert resources.find('config/robots', str(path)) == path
    with pytest.raises(UnknownName, match='unknown robot'):
        resources.find('config/robots', str(tmp_path / 'gone.yaml'))


def test_unknown_names_come_with_the_nearest_known():
    with pytest.raises(UnknownName, match=r"unknown robot 'ur5ee'; did you mean 'ur5e'\?"):
        resources.find('config/robots', 'ur5ee')
    with pytest.raises(UnknownName, match=r"unknown model 'ur5e/ur5\.xml'; did you mean"):
        resources.model('ur5e/ur5.xml')
    assert resources.model('ur5e/ur5e.xml').is_file()


def folder(tmp_path, monkeypatch, package: str, config: str):
    package = tmp_path / package
    package.mkdir(parents=True)
    (tmp_path / config).mkdir(parents=True)
    monkeypatch.setattr(resources, '_PACKAGE', package)
    resources.share.cache_clear()
    return tmp_path


@pytest.fixture(autouse=True)
def _forget_share():
    yield
    resources.share.cache_clear()


@pytest.mark.parametrize(
    ('package', 'share'),
    [
        ('venv/lib/python3.11/site-packages/robot_rl', 'venv/share/robot_rl'),  # a wheel
        ('target/robot_rl', 'target/share/robot_rl'),  # pip install --target
        (  # colcon
            'install/robot_rl/lib/python3.12/site-packages/robot_rl',
            'install/robot_rl/share/robot_rl',
        ),
    ],
)
def test_share_is_found_in_every_layout(tmp_path, monkeypatch, package, share):
    root = folder(tmp_path, monkeypatch, package, f'{share}/config')
    assert resources.share() == root / share


def test_a_checkout_is_its_own_share(tmp_path, monkeypatch):
    root = folder(tmp_path, monkeypatch, 'robot_rl', 'config')
    (root / 'package.xml').touch()
    assert resources.share() == root


def test_an_installation_without_its_data_files_is_told(tmp_path, monkeypatch):
    folder(tmp_path, monkeypatch, 'site-packages/robot_rl', 'elsewhere')
    with pytest.raises(RobotRLError, match='no share/robot_rl with a config folder above'):
        resources.share()


def test_a_near_miss_is_suggested_and_otherwise_the_known_are_listed():
    assert did_you_mean('mpo', ['dmpo', 'd4pg']) == "; did you mean 'dmpo'?"
    assert did_you_mean('zzz', ['dmpo', 'd4pg']) == '; known: dmpo, d4pg'
    assert did_you_mean('zzz', []) == ''
    assert did_you_mean('zzz', map(str, range(20))).endswith('6, 7, ...')


def test_a_menagerie_model_comes_from_the_named_checkout(tmp_path, monkeypatch):
    (tmp_path / 'arm').mkdir()
    (tmp_path / 'arm' / 'scene.xml').write_text('<mujoco/>')
    monkeypatch.setenv('ROBOT_RL_MENAGERIE', str(tmp_path))
    assert resources.model('menagerie:arm/scene.xml') == tmp_path / 'arm' / 'scene.xml'
    for absent in ('arm/arm.xml', 'arm', ''):
        with pytest.raises(
            SpecError, match=rf"model 'menagerie:{absent}': no such file: {tmp_path}"
        ):
            resources.model(f'menagerie:{absent}')


@pytest.fixture
def _no_checkout(monkeypatch):
    monkeypatch.delenv('ROBOT_RL_MENAGERIE', raising=False)


@pytest.mark.usefixtures('_no_checkout')
def test_without_a_checkout_the_package_provides_the_model(tmp_path, monkeypatch):
    class MenagerieError(Exception):
        pass

    class Robot:
        def path(self):
            return tmp_path

    def get(name):
        if name != 'arm':
            raise MenagerieError(f'Unknown robot {name!r}.\n  Did you mean this?')
        return Robot()

    package = types.SimpleNamespace(get=get, MenagerieError=MenagerieError)
    monkeypatch.setitem(sys.modules, 'mujoco_menagerie', package)
    (tmp_path / 'scene.xml').write_text('<mujoco/>')
    assert resources.model('menagerie:arm/scene.xml') == tmp_path / 'scene.xml'
    for name in ('menagerie:am/scene.xml', 'menagerie:arm/x.xml'):
        with pytest.raises(SpecError, match=f"model '{name}': ") as caught:
            resources.model(name)
        assert '\n' not in str(caught.value)


@pytest.mark.usefixtures('_no_checkout')
def test_without_checkout_and_package_both_ways_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mujoco_menagerie', None)
    with pytest.raises(SpecError, match=r'set ROBOT_RL_MENAGERIE .*pip install mujoco-') as caught:
        resources.model('menagerie:arm/arm.xml')
    assert '\n' not in str(caught.value)


def test_a_model_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / 'some_arms').mkdir()
    (tmp_path / 'some_arms' / '__init__.py').write_text('raise RuntimeError')
    (tmp_path / 'some_arms' / 'arm.xml').write_text('<mujoco/>')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resources.model('some_arms:arm.xml') == tmp_path / 'some_arms' / 'arm.xml'
    with pytest.raises(SpecError, match=r"model 'some_arms:leg\.xml': no such file"):
        resources.model('some_arms:leg.xml')
    for name in ('no_arms', 'no.arms', 'types', ''):
        with pytest.raises(SpecError, match=f"no Python package '{name}' is installed"):
            resources.model(f'{name}:arm.xml')
