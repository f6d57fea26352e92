"""Ranges and choices of parameters, as rclpy is told them, against what the models take."""

from __future__ import annotations

import importlib
import math
import re
import sys

import hypothesis.strategies as st
import pydantic
import pytest
import rclpy
from hypothesis import HealthCheck, given, settings
from rclpy.node import Node
from rclpy.parameter import Parameter

from robot_rl.errors import SpecError
from robot_rl.nodes import support
from robot_rl.nodes.main import NODES
from robot_rl.specs import Spec


class Model(Spec):
    """One field of every kind."""

    positive: pydantic.PositiveFloat = 1.0
    not_negative: pydantic.NonNegativeFloat = 1.0
    between: float = pydantic.Field(1.0, gt=-2, lt=3)
    within: float = pydantic.Field(1.0, ge=0.01, le=100)
    above: pydantic.PositiveInt = 1
    count: pydantic.NonNegativeInt = 1
    seed: int = pydantic.Field(0, ge=-1, lt=10)
    free: float = 0.0


@pytest.fixture(scope='module')
def make_node():
    """Return `make(*overrides)`, a node that has declared all fields of Model as changeable."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=101)
    nodes = []

    def make(*overrides: Parameter) -> Node:
        node = Node('any', context=context, parameter_overrides=list(overrides))
        nodes.append(node)
        support.declare_parameters(node, Model, changeable=Model.model_fields)
        return node

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture(scope='module')
def node(make_node):
    return make_node()


EDGES = [-2, -1, 0, 1, 3, 10, 100, 0.01, -0.0, 5e-324, -5e-324, 1e308, -1e308, 2.9, 9]
NUMBERS = st.one_of(
    st.sampled_from(EDGES),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-5, 12),
    st.integers(-5, 12),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(Model.model_fields)), NUMBERS)
def test_what_may_be_set_is_what_the_model_takes(node, name, value):
    try:
        Model.parse({name: value})
        fits = True
    except SpecError:
        fits = False
    (result,) = node.set_parameters([Parameter(name, value=value)])
    assert result.successful is fits, result.reason
    if fits:
        assert node.get_parameter(name).value == value


def test_the_ranges_are_those_of_the_model(node):
    def floats(name):
        (found,) = node.describe_parameter(name).floating_point_range
        return found.from_value, found.to_value

    def ints(name):
        (found,) = node.describe_parameter(name).integer_range
        return found.from_value, found.to_value

    greatest = 1.7976931348623157e308
    assert floats('positive') == (5e-324, greatest)
    assert floats('not_negative') == (0.0, greatest)
    assert floats('between') == (math.nextafter(-2, 0), math.nextafter(3, 0))
    assert floats('within') == (0.01, 100.0)
    assert ints('above') == (1, 2**63 - 1) and ints('count') == (0, 2**63 - 1)
    assert ints('seed') == (-1, 9)
    free = node.describe_parameter('free')
    assert not free.floating_point_range and not free.integer_range
    assert node.describe_parameter('positive').additional_constraints == 'above 0'


def test_a_wrong_override_is_one_line_that_says_what_is_right(make_node):
    with pytest.raises(SpecError) as error:
        make_node(Parameter('within', value=0.0))
    assert str(error.value) == (
        'parameters of any: within: must be greater than or equal to 0.01, found 0.0'
    )


# Numbers of which none is too great: of things to do, of draws, of what a disk may hold.
ANY_NUMBER = {'seed', 'first_seed', 'episodes', 'max_steps', 'min_free_gb'}
# And positions of a joint in whatever unit its driver has.
ANY_NUMBER |= {'leader_gripper_range'}


def parameters(executable: str) -> type[Spec]:
    """Return the parameters of a node: those beside its class, or beside what it is made of."""
    module, name = NODES[executable].split(':')
    classes = getattr(importlib.import_module(module), name).__mro__
    modules = (sys.modules[c.__module__] for c in classes)
    return next(m.Parameters for m in modules if hasattr(m, 'Parameters'))


@pytest.mark.parametrize('executable', NODES)
def test_numbers_of_a_node_have_two_ends(executable):
    for name, field in parameters(executable).model_fields.items():
        limits, _ = support._limits(field.metadata)
        if field.annotation in (int, float) and name not in ANY_NUMBER:
            assert {'ge', 'gt'} & limits.keys() and {'le', 'lt'} & limits.keys(), name


@pytest.mark.parametrize('executable', NODES)
def test_what_is_far_beyond_both_ends_is_refused(executable):
    """Also of the parameters that are several numbers, which have no range in ROS."""
    model = parameters(executable)
    for name, field in model.model_fields.items():
        if name in ANY_NUMBER or not re.search(r'\b(int|float)\b', str(field.annotation)):
            continue
        for beyond in (-(10**12), 10**12):
            value = beyond if field.annotation in (int, float) else [beyond] * len(field.default)
            with pytest.raises(SpecError, match=rf'{name}\S*: must be (less|greater) than'):
                model.parse({name: value})


@pytest.mark.parametrize('executable', NODES)
def test_no_number_of_a_node_with_a_bound_lacks_its_range(executable):
    for name, field in parameters(executable).model_fields.items():
        descriptor = support._descriptor(field, read_only=True)
        bounded = any(
            hasattr(item, sign) for item in field.metadata for sign in ('ge', 'gt', 'le', 'lt')
        )
        if bounded and field.annotation in (int, float):
            assert descriptor.floating_point_range or descriptor.integer_range, name
        if 'Literal' in str(field.annotation):
            assert descriptor.additional_constraints.startswith('one of'), name
