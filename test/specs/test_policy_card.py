from __future__ import annotations

import pytest

from robot_rl.errors import PolicyFileError, SpecError
from robot_rl.specs import Contract, PolicyCard, StateField
from robot_rl.specs.policy_card import METADATA_KEY


def test_the_initial_state_fills_its_shape():
    assert StateField(name='h', shape=(2, 2), initial=(0, 1, 2, 3)).initial[3] == 3.0
    with pytest.raises(SpecError, match=r'initial: 3 values for shape \[2, 2\]'):
        StateField.parse({'name': 'h', 'shape': [2, 2], 'initial': [0, 1, 2]})


@pytest.mark.parametrize(
    ('metadata', 'told'),
    [
        ({}, 'reach.onnx: an ONNX file without a policy card'),
        ({'author': 'x'}, "(metadata 'robot_rl.policy_card'); export it with robot-rl export"),
        (
            {METADATA_KEY: 'not json'},
            'reach.onnx: its policy card cannot be read: PolicyCard: not',
        ),
        ({METADATA_KEY: '[]'}, 'cannot be read: PolicyCard: expected a mapping of fields'),
        ({METADATA_KEY: '{"id": "x"}'}, 'contract: this field is required and missing'),
        ({METADATA_KEY: '{"schema_version": 9}'}, 'schema_version: 9 is newer than 1'),
    ],
)
def test_a_file_without_a_readable_card_is_told_with_its_name(metadata, told):
    with pytest.raises(PolicyFileError) as error:
        PolicyCard.from_metadata(metadata, origin='reach.onnx')
    assert told in str(error.value)


def test_the_metadata_is_one_key_with_the_contract_inside(contract_data):
    contract = Contract.parse(contract_data)
    (key,) = PolicyCard(id='x', contract=contract).to_metadata()
    assert key == METADATA_KEY
