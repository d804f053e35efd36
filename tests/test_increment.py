"""The single-observation test against the textbook's formula, and through the command on a trained model."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import autoregressive

from sample.__main__ import main
from sample.drawn import Drawn
from sample.single_observation import Single, described, half_width_km, increment
from slams.denoise import GaussianDenoiser
from slams.guidance import guided
from slams.likelihood import Physical, physical_likelihood
from slams.posterior import GuidanceConfig, SamplerConfig
from slams.rng import normal
from slams.samplers import sample
from slams.sde import CosineSDE
from slams.spec import Grid, Modality, StateSpec
from slams.statistics import Statistics

LEVELS = (300, 850)
GRID = Grid(4, 8)
SPEC = StateSpec(GRID, (Modality("temperature", "state", "K", "air_temperature", LEVELS),))
L, C = 5, len(LEVELS)
SHAPE = (L, C, *GRID.shape)
DAYS = np.datetime64("2001-01-01") + np.arange(L)
STD, MEAN = np.array([2.0, 3.0]), np.array([230.0, 280.0])
UNRESOLVED = np.array([0.5, 1.5])
AT = Single(float(GRID.latitude[1]), float(GRID.longitude[2]), 850, "2001-01-03")
CENTRE = np.ravel_multi_index((2, 1, 1, 2), SHAPE)
SDE = CosineSDE()
SAMPLER = SamplerConfig("multistep", steps=64, start_alpha=1e-3)


def covariance():
    """Of standardised states: AR(1) in time, two levels that agree by 0.6, smooth in space."""
    apart = np.abs(np.arange(8)[:, None] - np.arange(8))
    rows = 0.6 ** np.abs(np.arange(4)[:, None] - np.arange(4))
    space = np.kron(rows, 0.7 ** np.minimum(apart, 8 - apart))
    return np.kron(np.kron(autoregressive(L, 0.7).numpy(), [[1.0, 0.6], [0.6, 1.0]]), space)


SCALE = np.broadcast_to(STD[:, None, None], SHAPE).reshape(-1)
B = covariance() * SCALE * SCALE[:, None]  # K^2


class Oracle:
    """Exact denoiser and exact guidance behind the same door as a trained model."""

    spec, unresolved_C = SPEC, torch.from_numpy(UNRESOLVED)
    prior = GaussianDenoiser(torch.zeros(len(B)).double(), torch.from_numpy(covariance()), SDE)
    inflation = 1.0

    def draw(self, seen, days, members, z_b):
        harmonics = np.broadcast_to(MEAN[None, :, None, None], (1, C, *GRID.shape))
        statistics = Statistics(harmonics, STD[:, None, None], np.zeros(C, bool), np.ones((C, *GRID.shape), bool))
        physical, denoise = Physical(statistics, days), self.prior
        if seen:
            inflation = {"temperature": self.inflation}
            likelihood = physical_likelihood(seen, SPEC, lambda z, needed: z, physical, self.unresolved_C, inflation)
            likelihood = replace(likelihood, y_N=likelihood.y_N.double())
            denoise = guided(self.prior, likelihood, GuidanceConfig("mmps", iterations=1), SDE)

        def noise(step):
            return torch.from_numpy(np.array([normal(0, "sampler", m, step, shape=SHAPE) for m in members])).double()

        with torch.no_grad():
            return Drawn(physical(sample(denoise, SAMPLER, SDE, noise)).numpy(), {})


def drawn(single=AT, members=2, method=None, **others):
    return increment(method or Oracle(), single, DAYS, np.arange(members), **others)


def textbook(h_D, error_std, departure=1.0):
    """B h (h' B h + R)^-1 d."""
    return (B @ h_D / (h_D @ B @ h_D + error_std**2) * departure).reshape(SHAPE)


def close(found, expected):
    """To what 64 steps leave: a hundredth of the largest increment, in every cell, level and day."""
    np.testing.assert_allclose(found.x_LCHW, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("members", [1, 3])
def test_the_increment_of_a_gaussian_prior_is_the_textbooks_with_any_number_of_members(members):
    """Over all days, levels and cells; R is the error given and what the decoder cannot represent at that level."""
    found = drawn(members=members)
    h = np.eye(len(B))[CENTRE]
    expected = textbook(h, math.hypot(1.0, 1.5))
    assert np.abs(expected).max() == expected.flat[CENTRE]
    close(found, expected)
    assert found.at_place == pytest.approx(expected.flat[CENTRE], rel=0.01)
    assert found.error_std == pytest.approx(math.hypot(1.0, 1.5))


def test_between_cells_and_levels_the_neighbours_share_it():
    """Midway between four cells and, in the logarithm of pressure, between both levels: eight weights of an eighth."""
    longitude = (GRID.longitude[2] + GRID.longitude[3]) / 2
    single = Single(0.0, float(longitude), math.sqrt(300 * 850), "2001-01-03", departure_k=2.0, error_k=0.5)
    h = np.zeros(SHAPE)
    h[2, :, 1:3, 2:4] = 1 / 8
    found = drawn(single)
    expected = textbook(h.reshape(-1), math.hypot(0.5, UNRESOLVED.mean()), 2.0)
    close(found, expected)
    assert found.at_place == pytest.approx((h * expected).sum(), rel=0.01)
    assert described(found)["by_day_k"]["2001-01-04"] == pytest.approx(
        expected[3, found.channel, 1:3, 2:4].mean(), abs=0.01
    )


def test_minus_the_prior_itself_it_would_keep_the_members_noise():
    """What is refused: three members' shrunken noise is a good part of the increment."""
    method, members = Oracle(), np.arange(3)
    prior = method.draw([], DAYS, members, None).x_MLCHW
    value = prior[:, 2, 1, 1, 2].mean() + 1
    given = method.draw([AT.stations(DAYS, value)], DAYS, members, None).x_MLCHW
    expected = textbook(np.eye(len(B))[CENTRE], math.hypot(1.0, 1.5))
    error = np.abs((given - prior).mean(axis=0) - expected).max()
    assert error > 0.1 * np.abs(expected).max()


def test_no_departure_is_no_increment_and_the_opposite_one_is_its_mirror():
    one, other, none = (drawn(replace(AT, departure_k=d)).x_LCHW for d in (1.5, -1.5, 0.0))
    assert not none.any() and np.abs(one).max() > 0.5
    np.testing.assert_allclose(other, -one, atol=1e-4)


def test_an_inflated_error_is_counted_as_the_assimilation_counts_it():
    method = Oracle()
    method.inflation = 2.0
    found = drawn(members=64, method=method, inflation=2.0)
    error = 2 * math.hypot(1.0, 1.5)
    close(found, textbook(np.eye(len(B))[CENTRE], error))
    # the members' variance is known to within sqrt(2 / 63), three times; 9 K^2 beside 13 K^2 leave three fifths of it
    assert described(found)["gaussian"]["ratio"] == pytest.approx(1, abs=3 * math.sqrt(2 / 63) * 0.6)


def test_a_member_that_could_not_be_drawn_is_left_out_and_none_at_all_is_said():
    class Losing(Oracle):
        def draw(self, seen, days, members, z_b):
            found = super().draw(seen, days, members, z_b)
            found.x_MLCHW[0 if len(seen) else lost] = np.nan
            return found

    lost = 1
    found = drawn(members=3, method=Losing())
    assert found.n_members == 1
    close(found, textbook(np.eye(len(B))[CENTRE], math.hypot(1.0, 1.5)))
    with pytest.raises(FloatingPointError, match="none of 2 could be drawn"):
        drawn(members=2, method=Losing())


def test_a_member_that_was_drawn_again_from_another_noise_is_left_out():
    """What it differs by is another member's noise, not an increment."""

    class Redrawing(Oracle):
        again = False

        def draw(self, seen, days, members, z_b):
            found = super().draw(seen, days, members, z_b)
            if seen and self.again:
                found.x_MLCHW[1] += float(seen[0].value[0])
                return Drawn(found.x_MLCHW, {1: ["member 1 diverged"]})
            return found

    method = Redrawing()
    for again, n in ((False, 3), (True, 2)):
        method.again = again
        found = drawn(members=3, method=method)
        assert found.n_members == n
        close(found, textbook(np.eye(len(B))[CENTRE], math.hypot(1.0, 1.5)))


# ---- how far it reaches


@pytest.mark.parametrize("place", [(50.0, 179.0), (0.0, 0.0), (-87.0, 45.0)])
@pytest.mark.parametrize("h_km", [600, 1500])
def test_the_half_width_of_a_bell_on_the_sphere_is_found_also_across_date_line_and_pole(place, h_km):
    """Distances by angles between vectors."""
    grid = Grid(60, 120)
    rows, columns = np.meshgrid(np.deg2rad(grid.latitude), np.deg2rad(grid.longitude), indexing="ij")
    vectors = np.stack([np.cos(rows) * np.cos(columns), np.cos(rows) * np.sin(columns), np.sin(rows)], axis=-1)
    up, east = np.deg2rad(place)
    here = np.array([np.cos(up) * np.cos(east), np.cos(up) * np.sin(east), np.sin(up)])
    distance = 6371 * np.arccos((vectors @ here).clip(-1, 1))
    field = -0.7 * 0.5 ** ((distance / h_km) ** 2)
    assert half_width_km(field, *place, grid) == pytest.approx(h_km, rel=0.01)


# ---- the words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["latitude=95"], "latitude: 95.0 is not allowed; -90 to 90"),
        (["longitude=400"], "longitude: 400.0 is not allowed; -180 to 360"),
        (["level_hpa=nan"], "level_hpa: nan is not allowed; a number above 0"),
        (["level_hpa=high"], "level_hpa: 'high' is not a number"),
        (["error_k=0"], "error_k: 0.0 is not allowed; a number above 0"),
        (["departure_k=inf"], "departure_k: inf is not allowed; -100 to 100"),
        (["day=20030115"], "day: '20030115' is not a date of the form 1989-01-31"),
        (["membres=3"], "membres"),
        (["method=enoi", "enoi.half_width_km=[6000]", "enoi.inflation=[1]"], "method: enoi is not allowed"),
        (["folder=memory://x"], "folder: memory://x is a URL"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, capsys):
    given = ["latitude=50", "longitude=20", "level_hpa=500", "day=2003-01-15"]
    assert main(["increment", "configs/sample/tiny.yaml", *given, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sample increment: ") and sentence in error and error.count("\n") == 1


def test_a_missing_word_is_named(capsys):
    assert main(["increment", "configs/sample/tiny.yaml", "latitude=50", "longitude=20", "day=2003-01-15"]) == 2
    assert "level_hpa: is missing" in capsys.readouterr().err


# ---- a trained model


@pytest.fixture(scope="module")
def command(chain, tmp_path_factory):
    """The command on the chain's model, in a folder of its own: its status, and what it wrote."""
    folder = tmp_path_factory.mktemp("increment")
    base = [word for word in chain.sample()[1:] if not word.startswith("folder=")]

    def called(*words, run="run"):
        place = ["latitude=50", "longitude=20", "level_hpa=500", "day=2003-01-15", f"folder={folder / run}"]
        return main(["increment", *base, *place, *words]), folder / run

    return called


def test_the_response_of_a_trained_model_is_local_mirrored_and_smaller_than_the_departure(command):
    found = {}
    for run, departure in (("up", 1), ("down", -1)):
        status, folder = command(f"departure_k={departure}", run=run)
        assert status == 0
        found[run] = json.loads((folder / "increment" / "increment.json").read_text())
    up, down = found["up"], found["down"]
    assert 0.05 < up["at_place_k"] < 1
    assert down["at_place_k"] == pytest.approx(-up["at_place_k"], rel=0.1)
    largest = up["largest"]
    assert largest["day"] == "2003-01-15" and 0 < largest["value_k"] < 1
    assert abs(largest["latitude"] - 50) < 25 and abs((largest["longitude"] - 20 + 180) % 360 - 180) < 35
    assert up["by_day_k"]["2003-01-15"] == max(up["by_day_k"].values())


def test_a_page_of_panels_is_drawn_and_a_dry_run_draws_nothing(command, capsys):
    status, folder = command("--dry-run", run="dry")
    assert status == 0 and not folder.exists()
    assert "three times" in capsys.readouterr().out
    folder = command(run="up")[1] / "increment"
    assert (folder / "increment.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (folder / "increment.svg").read_bytes()


def test_beyond_the_models_levels_is_refused(command, capsys):
    assert command("level_hpa=1")[0] == 2
    assert "level_hpa: 1 is not allowed; 10 to 1000" in capsys.readouterr().err
