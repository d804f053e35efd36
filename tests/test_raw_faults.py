"""A raw file that is wrong as a whole goes through no stage: status 2, one sentence, and nothing half-written."""

import numpy as np
import pytest
from test_errors import raw, refused, spoil  # noqa: F401 - fixtures

from data_prep.__main__ import main as prepare
from slams.contracts.archive import open_archive


def of_a_fraction(share):
    return lambda dataset: dataset.assign(precip=(dataset.precip * share).assign_attrs(units="mm"))


@pytest.mark.parametrize("share", [1 / 1000, 1 / 24])
def test_metres_and_totals_of_an_hour_that_are_called_millimetres_a_day(raw, refused, share):  # noqa: F811
    path = spoil(raw, "precipitation", of_a_fraction(share))
    said = refused(prepare, "archive", raw.parent / "prep.yaml")
    assert f"{path}: precipitation: 0." in said and "if it is in 'mm'; at least 0.3 mm/day falls" in said
    assert not (raw.parent / "archive").exists()
    spoil(raw, "precipitation", of_a_fraction(1 / share))  # and what was done of the others is no hindrance
    assert prepare(["archive", str(raw.parent / "prep.yaml")]) == 0
    x = open_archive(raw.parent / "archive").read(slice(365, 730))
    assert 1 < np.nanmean(x[:, 10]) < 5
