"""The ament side of the package; names, versions and scripts are in pyproject.toml.

Config, launch files and trained policies are installed as data files under share/robot_rl, where
colcon, `ros2 launch` and robot_rl.resources look for them; a wheel puts them at the same place
below its environment.
"""

from pathlib import Path

from setuptools import find_packages, setup

SHARE = 'share/robot_rl'


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """Every folder below `folder` as a data_files row."""
    rows = {}
    for path in sorted(Path(folder).rglob('*')):
        if path.is_file() and '__pycache__' not in path.parts:
            rows.setdefault(f'{SHARE}/{path.parent.as_posix()}', []).append(path.as_posix())
    return list(rows.items())


setup(
    name='robot_rl',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['robot_rl', 'robot_rl.*']),
    package_data={'robot_rl': ['nodes/page/*', 'robots/models/**/*', 'py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/robot_rl']),
        (SHARE, ['package.xml']),
        *tree('config'),
        *tree('launch'),
        *tree('pretrained'),
    ],
    zip_safe=False,
)
