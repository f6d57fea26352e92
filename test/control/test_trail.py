"""Trail against a list that is searched anew each time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from robot_rl.control.trail import Trail


@given(
    st.floats(0.0, 5.0),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.1, 1.0, 7.0]), st.floats(-9, 9)), max_size=150
    ),
)
def test_it_holds_the_last_seconds_and_the_row_before_them(seconds, steps):
    trail, rows, time = Trail(seconds, joints=2), [], 0.0
    for elapsed, place in steps:
        time += elapsed
        rows.append((time, [place, -place], [place + 1, 0.0]))
        trail.append(*rows[-1])
        over = [index for index, row in enumerate(rows) if row[0] <= time - seconds]
        kept = rows[over[-1] if over else 0 :]
        for found, right in zip(
            (trail.times, trail.told, trail.measured), zip(*kept, strict=True), strict=True
        ):
            np.testing.assert_array_equal(found, right)
    assert len(trail.times) == len(trail.told) == len(trail.measured)
