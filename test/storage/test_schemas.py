import sys
from pathlib import Path

import pytest
from mcap_ros2._dynamic import generate_dynamic

from robot_rl.errors import StorageError
from robot_rl.storage.schemas import message_definition


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / 'share' / 'my_msgs' / 'msg'
    folder.mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path}')
    message_definition.cache_clear()
    yield folder
    message_definition.cache_clear()


def test_dependencies_follow_once_after_separators(package):
    (package / 'Outer.msg').write_text(
        '# my_msgs/Comment c\n'
        'uint8 KIND=1\nstring NAME="my_msgs/Fake x"\n'
        'my_msgs/Inner[] many # and my_msgs/Other too\n'
        'Inner one\nInner[3] three\nLeaf[<=2] two\nstring<=10[<=3] names\nfloat64 x 1.5\n'
    )
    (package / 'Inner.msg').write_text('Leaf leaf\nbyte[] data')
    (package / 'Leaf.msg').write_text('wstring text\n\n')
    text = message_definition('my_msgs/msg/Outer')
    parts = text.split('=' * 80 + '\n')
    assert parts[0].startswith('# my_msgs/Comment')
    assert [part.splitlines()[0] for part in parts[1:]] == [
        'MSG: my_msgs/Inner',
        'MSG: my_msgs/Leaf',
    ]
    assert message_definition('my_msgs/Outer') == text
    assert set(generate_dynamic('my_msgs/msg/Outer', text)) >= {'my_msgs/msg/Outer'}


def test_every_installed_message_can_be_decoded():
    files = sorted(Path(sys.prefix, 'share').glob('*/msg/*.msg'))
    if not files:
        pytest.skip('no ROS message packages in this environment (extra `ros`)')
    for file in files:
        name = f'{file.parent.parent.name}/msg/{file.stem}'
        assert name in generate_dynamic(name, message_definition(name))


def test_a_missing_type_is_named_with_where_it_was_sought(package):
    with pytest.raises(StorageError, match=r'my_msgs/msg/Absent.*share/my_msgs/msg/Absent\.msg'):
        message_definition('my_msgs/msg/Absent')
    (package / 'Needs.msg').write_text('other_msgs/Thing thing\n')
    with pytest.raises(StorageError, match='source the ROS workspace that holds other_msgs'):
        message_definition('my_msgs/msg/Needs')


@pytest.mark.parametrize('name', ['String', 'std_msgs/srv/Trigger', 'a/b/c/d', '/msg/X', ''])
def test_a_name_that_is_no_message_type_is_refused(name):
    with pytest.raises(StorageError, match='expected'):
        message_definition(name)
