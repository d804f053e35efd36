"""A member that has left the world is named, by the sampler and by the job, and nothing of its unit is written."""

import pickle

import numpy as np
import pytest
import torch
from gaussian import COVARIANCE as PRIOR
from gaussian import N, Problem, from_pure_noise, keyed_noise, sparse

from sample.drawn import LARGEST_DEPARTURE, refuse_diverged
from slams.posterior import GuidanceConfig, SamplerConfig
from slams.samplers import LARGEST_STATE, DivergenceError, sample
from slams.sde import CosineSDE

DAYS, MEMBERS = np.arange("1991-01-06", "1991-01-12", dtype="datetime64[D]"), np.array([4, 5, 6])


def state(value):
    x_MLCHW = torch.zeros(3, 6, 10, 4, 8)
    x_MLCHW[1, 5, 9, 3, 7] = value
    return x_MLCHW


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, LARGEST_DEPARTURE + 1, -LARGEST_DEPARTURE - 1])
def test_a_diverged_member_is_named_with_its_day(value):
    with pytest.raises(FloatingPointError, match="member 5 diverged on 1991-01-11"):
        refuse_diverged(MEMBERS, DAYS, state(value))


@pytest.mark.parametrize("value", [0.0, LARGEST_DEPARTURE - 1, 1 - LARGEST_DEPARTURE])
def test_weather_is_not_divergence(value):
    refuse_diverged(MEMBERS, DAYS, state(value))


@pytest.mark.parametrize("member", [4, 6])
def test_the_other_members_are_looked_at_too(member):
    x_MLCHW = state(0.0)
    x_MLCHW[member - 4] = torch.nan
    with pytest.raises(FloatingPointError, match=f"member {member} "):
        refuse_diverged(MEMBERS, DAYS, x_MLCHW)


def noise(step):
    return torch.zeros(3, 6, 2, 4, 8)


def wrong_at(step, value, sampler):
    """A denoiser that gives one wrong value to frame 5 of member 1, in the last evaluation of a step."""
    evaluations = {"heun": 2, "predictor_corrector": 2}.get(sampler, 1)
    calls = 0

    def denoise(z_t, t):
        nonlocal calls
        calls += 1
        d = torch.zeros_like(z_t)
        d[1, 5, 1, 3, 7] = value if calls == (step + 1) * evaluations else 0.0
        return d

    return denoise


@pytest.mark.parametrize("sampler", ["predictor_corrector", "ddim", "heun", "multistep"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6, -1e6])
def test_the_sampler_stops_at_a_diverged_member_and_names_it_with_frame_and_step(sampler, value):
    with pytest.raises(DivergenceError, match="member 1 of the batch diverged at step 2: its frame 5") as found:
        sample(wrong_at(2, value, sampler), SamplerConfig(sampler, steps=4), CosineSDE(), noise)
    error = found.value
    assert (error.member, error.frame, error.step) == (1, 5, 2)
    assert error.departure == pytest.approx(abs(value), nan_ok=True)


def test_the_farthest_state_of_weather_is_not_divergence():
    sample(wrong_at(3, LARGEST_STATE - 1, "ddim"), SamplerConfig("ddim", steps=4), CosineSDE(), noise)


def test_a_noise_network_may_err_by_several_standard_deviations_where_all_is_noise():
    """Its error is multiplied by sigma / alpha = 1000 there, and forgotten: the step heeds alpha d."""
    sde = CosineSDE()
    z = sample(
        lambda z, t: (z - sde.sigma(t) * (z + 5)) / sde.alpha(t) * (t > 0.9), from_pure_noise("ddim"), sde, noise
    )
    assert z.abs().max() < LARGEST_STATE


def test_guidance_that_overshoots_is_stopped_before_it_overflows():
    """A diagonal J V J', far too small for these exact observations, with too few steps."""
    problem = Problem(PRIOR, sparse, torch.full((N,), 1e-3).double())
    with pytest.raises(DivergenceError) as found:
        problem.draw(GuidanceConfig("sda", gamma=1e-4), from_pure_noise("ddim", steps=16), keyed_noise(range(3)))
    assert np.isfinite(found.value.departure) and 0 < found.value.step < 16


def test_divergence_is_told_across_processes():
    error = DivergenceError(3, 5, 7, 1e4)
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error) and str(again) == str(error)
