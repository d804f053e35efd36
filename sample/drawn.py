"""Members as a method of analysis gives them, and what is said of one that has left the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from slams.samplers import DivergenceError

LARGEST_DEPARTURE = 20  # standard deviations of the state; the sample world's train years reach 12


@dataclass(frozen=True)
class Drawn:
    """Members and what went wrong with them.

    Arguments:
        x_MLCHW: physical units; NaN in a member that diverged at every attempt.
        diverged: member -> why, once for each attempt that diverged.
    """

    x_MLCHW: np.ndarray
    diverged: dict[int, list[str]]


class DivergedMemberError(FloatingPointError):
    """A member has left the world."""

    def __init__(self, member: int, message: str) -> None:
        super().__init__(message)
        self.member = member


def refuse_diverged(members: np.ndarray, days: np.ndarray, state_MLCHW: Tensor) -> None:
    """Refuse members whose standardised state has left the world.

    Raises:
        DivergedMemberError: naming the member, its day and how far it went.
    """
    farthest_ML = state_MLCHW.abs().amax(dim=(2, 3, 4)).cpu().numpy()
    wrong = ~(farthest_ML < LARGEST_DEPARTURE)  # also where it is not a number
    if wrong.any():
        member, frame = np.argwhere(wrong)[0]
        far = f"{farthest_ML[member, frame]:.3g} std from the climatology, {LARGEST_DEPARTURE} at most"
        raise diverged(members[member], days[frame], far)


def diverged(member: int, day: np.datetime64, how: object) -> DivergedMemberError:
    where = f"at step {how.step}: {how.departure:.3g} std" if isinstance(how, DivergenceError) else how
    message = f"member {member} diverged on {day}, {where}; take more sampler.steps or a larger sampler.start_alpha"
    return DivergedMemberError(int(member), message)
