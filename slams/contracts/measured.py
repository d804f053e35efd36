"""What a measured value has to be, on a grid or at a station, before it is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slams.contracts.envelope import ContractError
from slams.spec import Modality

KELVIN = (100.0, 400.0)  # no air on Earth is colder or warmer; degrees Celsius all lie below
ERRORS = 6  # standard deviations by which noise may carry a value beyond: one in 10^9 goes farther


def check_values(path: Path, modality: Modality, value_N: np.ndarray, error_std_N: np.ndarray) -> None:
    """Refuse errors that are no standard deviation, and temperatures that cannot be in kelvin.

    Arguments:
        value_N, error_std_N: those that are used, in the modality's units.

    Raises:
        ContractError: naming the file, the variable and the value.
    """
    wrong = ~(np.isfinite(error_std_N) & (error_std_N > 0))
    if wrong.any():
        found = error_std_N[wrong][0]
        raise ContractError(f"{path}: error_std of {modality.name} is {found}; a finite number, more than 0 is needed")
    if modality.standard_name != "air_temperature" or modality.units != "K":
        return
    low, high = KELVIN
    wrong = (value_N < low - ERRORS * error_std_N) | (value_N > high + ERRORS * error_std_N)
    if wrong.any():
        raise ContractError(
            f"{path}: {modality.name} is {value_N[wrong][0]}, which cannot be kelvin; {low:g} to {high:g} K, give or "
            f"take {ERRORS} standard deviations of its error, are allowed"
        )
