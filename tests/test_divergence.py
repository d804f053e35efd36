"""A member that has left the world is named, and nothing of its unit is written."""

import numpy as np
import pytest
import torch

from sample.assimilate import LARGEST_DEPARTURE, refuse_diverged
from sample.plan import Unit

UNIT = Unit(np.arange("1991-01-08", "1991-01-10", dtype="datetime64[D]"), halo=2, members=np.array([4, 5, 6]))


def state(value):
    x_MLCHW = torch.zeros(3, 6, 10, 4, 8)
    x_MLCHW[1, 5, 9, 3, 7] = value
    return x_MLCHW


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, LARGEST_DEPARTURE + 1, -LARGEST_DEPARTURE - 1])
def test_a_diverged_member_is_named_with_its_days(value):
    with pytest.raises(FloatingPointError, match="member 5 of 1991-01-08 to 1991-01-09 diverged"):
        refuse_diverged(UNIT, state(value))


@pytest.mark.parametrize("value", [0.0, LARGEST_DEPARTURE - 1, 1 - LARGEST_DEPARTURE])
def test_weather_is_not_divergence(value):
    refuse_diverged(UNIT, state(value))


@pytest.mark.parametrize("member", [4, 6])
def test_the_other_members_are_looked_at_too(member):
    x_MLCHW = state(0.0)
    x_MLCHW[member - 4] = torch.nan
    with pytest.raises(FloatingPointError, match=f"member {member} "):
        refuse_diverged(UNIT, x_MLCHW)
