"""The page of a verification: differences carry their verdict, and what was not observed or scored is left out."""

import re

import numpy as np
import pytest

from sample.observation_report import observed
from sample.report import verdict
from sample.sentences import structure
from sample.structure_figures import rank_levels, shown_levels, spectra


def scored(score, value, significant, own=1.0, rival=1.0):
    """Each score known to 0.1."""
    found = {"mean": {"value": value, "interval": [value - 1, value + 1], "significant": significant}}
    means = {"analysis": own, "climatology": rival}
    intervals = {name: {score: {"mean": [mean - 0.05, mean + 0.05]}} for name, mean in means.items()}
    return {"differences": {"climatology": {score: found}}, "intervals": intervals}


@pytest.mark.parametrize(
    ("score", "value", "significant", "own", "rival", "kind"),
    [
        ("rmse", -0.2, True, 1, 1, "better"),
        ("rmse", 0.2, True, 1, 1, "worse"),
        ("rmse", -0.2, False, 1, 1, "open"),
        ("spread_skill", 0.3, True, 0.9, 0.6, "better"),
        ("spread_skill", -0.7, True, 0.8, 1.5, "better"),
        ("spread_skill", -0.9, True, 0.4, 1.3, "worse"),
        ("spread_skill", -0.9, True, 0.6, 1.5, "other"),
        ("spread_skill", -0.111, True, 0.945, 1.056, "other"),
        ("bias", -0.2, True, 0.2, 0.4, "better"),
    ],
)
def test_a_difference_is_one_only_where_its_interval_says_so(score, value, significant, own, rival, kind):
    assert verdict(scored(score, value, significant, own, rival), "climatology", score) == kind


def test_layers_that_overturn_are_told_beside_the_truths_and_only_if_scored():
    analysis = {"unstable": {"mean": 0.0123}, "day_change": {"mean": 1.07}}
    scores = {"systems": {"analysis": analysis}, "truth": {"unstable": {"mean": 0.001}}, "intervals": {"analysis": {}}}
    layers, pace = structure(scores)
    assert "1.230 % of the members'" in layers and "0.100 % of the truth's" in layers
    assert "1.07 times" in pace and "interval" not in pace
    assert structure({"systems": {"analysis": {}}, "truth": {}, "intervals": {}}) == []


def test_a_spectrum_shows_each_wavenumber_but_the_mean():
    power = [9.0, 4.0, 2.0, 0.0]
    found = {"wavenumber": [0, 1, 2, 3]} | dict.fromkeys(("members", "mean", "truth", "increment"), power)
    drawn = spectra(found, "500", "K").axes[0].get_lines()
    assert len(drawn) == 4
    np.testing.assert_array_equal(drawn[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(drawn[0].get_ydata(), [4, 2, np.nan])
    assert spectra({name: [0.0, 0.0] for name in found}, "500", "K") is None


def test_levels_near_50_500_and_850_are_shown():
    assert shown_levels(["10", "70", "300", "450", "925"]) == ["70", "450", "925"]
    assert shown_levels(["mean"]) == ["mean"]


def test_ranks_by_level_stand_in_order_of_pressure():
    """At 850 hPa, given first, the truth is always above the members."""
    axes = rank_levels(np.array([[0.0, 0, 1], [1 / 3, 1 / 3, 1 / 3]]), [850, 100]).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["100", "850"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[1, 1, 1], [0, 0, 3]])


def row(assimilated):
    place = {"modality": "rain", "units": "mm/day", "assimilated": assimilated, "level_hpa": None, "band": "all"}
    numbers = ("o_minus_b_mean", "o_minus_b_std", "o_minus_a_mean", "o_minus_a_std", "chi_square")
    others = ("chi_square_with_spread", "spread_error_ratio", "crps")
    values = dict.fromkeys((*numbers, *others), 0.25) | {"chi_square": None}
    return place | {"season": "all", "known": 7, "rank_shares": [None, None]} | values


def test_observations_are_told_by_what_may_be_believed_of_them(tmp_path):
    """Withheld ones are judged by spread and error; a number that is not known is a dash; no ranks, no figure."""
    sure = [{"modality": "rain", "assimilated": True, "o_minus_a_std": [0.125, 0.375]}]
    bands = [row(True) | {"band": "30S-30N"}]
    counts = {"rain": {"rows": 9, "assimilated": 5, "withheld": 4, "unknown": 2, "rejected": 3}}
    counts["snow"] = {name: number for name, number in counts["rain"].items() if name != "rejected"}
    given = {"groups": [row(True), row(False), *bands], "confidence": {"of": sure}, "counts": counts, "members": 8}
    told = {"departures": given, "background": {"rain": "climatology of the day"}}
    text = observed(tmp_path, {"analysis": told, "analysis-without-olr": {"product": "latent", "background": {}}})
    first, second, third = re.findall(r"<table>.*?</table>", text)
    assert "<td>-</td>" in first and "0.12 to 0.38" in first and "spread-error" not in first
    assert "<th>rain</th><td>5</td><td>4</td><td>2</td><td>3</td>" in third
    assert "<th>snow</th><td>5</td><td>4</td><td>2</td><td>-</td>" in third, "of a grid nobody knows"
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        f"analysis-departures-bands.{kind}" for kind in ("png", "svg")
    ]
    assert "spread-error ratio" in second and "O - B" not in second
    assert "Rank of the observations" not in text and "climatology of the day" in text
    assert "without" not in text, "it has no observation in physical units"
    both = observed(tmp_path, {"analysis": told, "analysis-without-rain": told})
    assert [name for name in re.findall("<h3>(.*?)</h3>", both)] == ["analysis", "analysis without rain"]
    assert observed(tmp_path, {"analysis": {"product": "analysis.zarr", "background": {}}}) == ""


def test_withheld_observations_say_nothing_of_the_spread_of_one_member(tmp_path):
    given = {"groups": [row(False), row(False) | {"band": "30S-30N"}], "confidence": {"of": []}, "counts": {}}
    for members, absent in ((8, False), (1, True)):
        told = {"departures": given | {"members": members}, "background": {}}
        text = observed(tmp_path, {"analysis": told}).lower()
        assert all((words not in text) is absent for words in ("chi-square with spread", "spread-error", "reliable"))
        assert "crps" in text and "o - a, std" in text
