"""Writes episodes as a robomimic data set: one HDF5 file, uncompressed.

The layout is that of robomimic.github.io/docs/datasets/overview.html: data/demo_<i> with actions,
rewards, dones, obs/<key> and next_obs/<key>, and mask/<filter key>. `states`, which only
a simulator of robomimic could set again, are not there.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from robot_rl.errors import ContractMismatch, StorageError
from robot_rl.specs import Contract
from robot_rl.storage.checksums import check
from robot_rl.storage.columns import aligned_columns
from robot_rl.storage.commanded import Kinematics
from robot_rl.storage.episode import PARTIAL, EpisodeHeader, EpisodeReader
from robot_rl.storage.extras import need

# robomimic.envs.env_base.EnvType: 2 is Gym, which it makes by name, and only for rollouts.
_ENV_TYPE = 2


def export(
    paths: Iterable[Path],
    file: Path,
    refused: Callable[[str], None],
    kinematics: Kinematics | None = None,
) -> list[str]:
    """Write the episodes in `paths` into a new HDF5 file and return the ids of those in it.

    `refused` hears in one line why an episode is not. Raises StorageError where the file exists
    or cannot be written.
    """
    h5py = need('h5py', 'robomimic')
    if file.exists():
        raise StorageError(f'{file}: exists already; choose another name')
    new = file.with_name(f'{file.name}.{secrets.token_hex(4)}{PARTIAL}')
    headers: list[EpisodeHeader] = []
    try:
        with h5py.File(new, 'x') as hdf5:
            data = hdf5.create_group('data')
            for path in paths:
                try:
                    episode, columns = _read(path, headers[0] if headers else None, kinematics)
                except (StorageError, ContractMismatch) as error:
                    refused(str(error))
                    continue
                _write(data.create_group(f'demo_{len(headers)}'), episode, columns)
                headers.append(episode.header)
            if headers:
                _write_about(hdf5, headers)
        if headers:
            new.rename(file)
    except OSError as error:
        raise StorageError(f'{file}: cannot be written ({error.strerror or error})') from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return [header.id for header in headers]


def scaled(contract: Contract, actions: np.ndarray) -> np.ndarray:
    """Return actions [T, A] with the contract's bounds at -1 and 1, and none beyond them."""
    lower, upper = contract.action_lower, contract.action_upper
    return np.clip(2 * (actions - lower) / (upper - lower) - 1, -1, 1)


def _read(
    path: Path, first: EpisodeHeader | None, kinematics: Kinematics | None
) -> tuple[EpisodeReader, dict[str, Any]]:
    """Return an episode and its columns. Raises StorageError or ContractMismatch."""
    for damage in check(path).damaged:
        raise StorageError(str(damage))
    episode = EpisodeReader(path)
    if episode.header.contract is None:
        raise StorageError(f'{path}: no contract says what its actions are bounded by')
    if first is not None and episode.header.contract.action != first.contract.action:
        raise StorageError(f'{path}: has other actions than the first episode')
    return episode, aligned_columns(episode, kinematics=kinematics)


def _write(demo: Any, episode: EpisodeReader, columns: dict[str, Any]) -> None:
    header = episode.header
    actions = scaled(header.contract, np.asarray(columns['action/applied']))
    steps = len(actions)
    ends = np.arange(steps) == steps - 1
    demo.attrs['num_samples'] = steps
    demo.attrs['episode'] = header.to_json()
    demo['actions'] = actions
    demo['dones'] = ends.astype(np.int64)
    demo.attrs['rewards'], demo['rewards'] = _rewards(episode, steps)
    demo['time_ns'] = np.round(columns['time'][:steps] * 1e9).astype(np.int64)
    for name, column in columns.items():
        # Stamps are no observation; what a column holds is decoded here, one at a time.
        if '.' in name and not name.endswith('.time'):
            values = np.asarray(column)
            key = name.replace('.', '_')
            demo[f'obs/{key}'], demo[f'next_obs/{key}'] = values[:-1], values[1:]


def _rewards(episode: EpisodeReader, steps: int) -> tuple[str, np.ndarray]:
    """Return what an episode's rewards [T] are, '<kind>:<author>' or 'success', and they.

    The newest sequence for the episode's own task that has a value for each step; where there is
    none, as in robomimic's own sets, 1 at the end where the task was done. Raises StorageError
    for a damaged one.
    """
    task = episode.header.task
    for info in reversed(episode.rewards()):
        if info.task == task and info.times_ns is None and info.length == steps:
            return f'{info.kind}:{info.author}', episode.reward(info.id).astype(np.float64)
    rewards = np.zeros(steps)
    rewards[-1] = bool(episode.header.success)
    return 'success', rewards


def _write_about(hdf5: Any, headers: list[EpisodeHeader]) -> None:
    data, contract = hdf5['data'], headers[0].contract
    demos = [f'demo_{number}' for number in range(len(headers))]
    data.attrs['total'] = sum(int(data[demo].attrs['num_samples']) for demo in demos)
    data.attrs['env_args'] = json.dumps(
        {
            'env_name': headers[0].task,
            'type': _ENV_TYPE,
            'env_kwargs': {'control_freq': contract.rate_hz},
        }
    )
    # By which the actions were scaled.
    data.attrs['action_names'] = json.dumps(contract.action_names)
    data.attrs['action_lower'], data.attrs['action_upper'] = (
        contract.action_lower,
        contract.action_upper,
    )
    masks: dict[str, list[str]] = defaultdict(list)
    for demo, header in zip(demos, headers, strict=True):
        for name in (*header.tags, *(['success'] if header.success else [])):
            masks[name.replace('/', '_')].append(demo)
    for name, found in masks.items():
        hdf5[f'mask/{name}'] = np.array(list(dict.fromkeys(found)), dtype='S')
