from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robot_rl.control.runtime import OnnxPolicy, identify
from robot_rl.control.runtime import policy_file as find
from robot_rl.control.shelf import ROOT_VARIABLE, PolicyShelf
from robot_rl.errors import PolicyFileError, SpecError, UnknownName


def written(folder, text):
    file = folder / f'{text}.onnx'
    file.write_text(text)
    return file


def test_a_name_stands_for_what_was_promoted_last(tmp_path):
    shelf = PolicyShelf(tmp_path / 'shelf')
    assert shelf.names() == []
    for text in ('one', 'two', 'one'):
        shelf.promote(written(tmp_path, text), 'reach', f'id-{text}')
        assert shelf.current('reach').read_text() == text
    assert shelf.names() == ['reach']
    assert [entry.policy for entry in shelf.history('reach')] == ['id-one', 'id-two', 'id-one']
    (tmp_path / 'one.onnx').unlink()  # a copy was kept
    assert shelf.current('reach').read_text() == 'one'
    assert len(list(shelf.root.glob('reach/*.onnx'))) == 2


@settings(deadline=None)
@given(st.lists(st.integers(0, 9) | st.just('back'), max_size=20))
def test_rolling_back_is_a_stack_and_nothing_is_lost(tmp_path_factory, deeds):
    folder = tmp_path_factory.mktemp('shelf')
    shelf, stack, count = PolicyShelf(folder / 'shelf'), [], 0
    for deed in deeds:
        if deed != 'back':
            shelf.promote(written(folder, str(deed)), 'n', str(deed))
            stack.append(str(deed))
            count += 1
        elif len(stack) > 1:
            stack.pop()
            shelf.rollback('n')
            count += 1
        elif stack:
            with pytest.raises(PolicyFileError, match='nothing was promoted before'):
                shelf.rollback('n')
        if stack:
            assert shelf.current('n').read_text() == stack[-1]
            assert shelf.history('n')[-1].policy == stack[-1]
            assert len(shelf.history('n')) == count


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    shelf = PolicyShelf(tmp_path)
    for name in ('../x', '7dof', 'constant', ''):
        with pytest.raises(SpecError, match='a letter first, and none of random, constant'):
            shelf.promote(written(tmp_path, 'one'), name, 'one')
    with pytest.raises(PolicyFileError, match='cannot be read'):
        shelf.promote(tmp_path / 'none.onnx', 'reach', 'none')
    with pytest.raises(UnknownName, match="unknown promoted policy 'reach'"):
        shelf.current('reach')
    shelf.promote(written(tmp_path, 'one'), 'reach', 'one')
    with pytest.raises(UnknownName, match="did you mean 'reach'"):
        shelf.rollback('reech')
    shelf.current('reach').unlink()
    with pytest.raises(PolicyFileError, match='reach stands for one, and its file is gone'):
        shelf.current('reach')
    (tmp_path / 'reach' / 'history.json').write_text('{"entries": 3}')
    with pytest.raises(SpecError, match=r'history\.json: entries'):
        shelf.history('reach')


def test_policies_are_found_by_their_promoted_name(tmp_path, monkeypatch, policy_file, contract):
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / 'shelf'))
    with pytest.raises(UnknownName, match="unknown policy 'reach'"):
        find('reach')
    path = policy_file(contract, seed=1)
    entry = PolicyShelf().promote(path, 'reach', 'random-1')
    found = find('reach')
    assert found.parent == tmp_path / 'shelf' / 'reach'
    assert OnnxPolicy(found).card.id == 'random-1'
    assert identify('reach') == (str(found), entry.sha256) == (str(found), identify(path)[1])
    assert identify('constant') == ('constant', '')
    # It comes before one that is shipped under the same name.
    PolicyShelf().promote(path, 'ur5e_reach', 'random-1')
    assert find('ur5e_reach').parent.name == 'ur5e_reach'
    with pytest.raises(PolicyFileError, match='cannot be read'):
        identify(tmp_path / 'none.onnx')


def test_promotions_at_the_same_time_are_all_kept(tmp_path):
    shelf = PolicyShelf(tmp_path / 'shelf')
    files = [written(tmp_path, str(i)) for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda file: shelf.promote(file, 'n', file.stem), files))
    assert sorted(entry.policy for entry in shelf.history('n')) == sorted(f.stem for f in files)
    assert all(file.stat().st_mode & 0o044 for file in shelf.root.glob('n/*.onnx'))
