"""What a difference of two scores on the same dates says: for the one, for the other, for neither, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

Verdict = Literal["better", "worse", "other", "open"]
Interval = Sequence[float] | None
BEST = {"one": 1.0, "zero": 0.0}  # of scores that have a best value between others


def verdict(difference: dict[str, Any], own: Interval, rival: Interval, better: str) -> Verdict:
    """``open`` if the difference cannot be told from none, ``other`` if it can, but not which of the two is better.

    Arguments:
        difference: own score minus the rival's: ``value``, and whether it is ``significant``.
        own, rival: 95 % intervals of the two scores, as far as there are any.
        better: ``low``, a name of `BEST`, or empty where no value is best.
    """
    if not difference["significant"]:
        return "open"
    if better == "low":
        return "better" if difference["value"] < 0 else "worse"
    if better not in BEST or own is None or rival is None:
        return "other"
    return _nearer(difference["value"], own, rival, BEST[better])


def _nearer(gap: float, own: Sequence[float], rival: Sequence[float], best: float) -> Verdict:
    """Whose score lies nearer to the best value, where that is sure.

    On one side of it the paired difference tells; else only distances that do not overlap do: 0.94 beside 1.06 differ
    beyond doubt, but neither is better.
    """
    ends = [end - best for pair in (own, rival) for end in pair]
    if min(ends) >= 0 or max(ends) <= 0:
        return "better" if (gap < 0) == (min(ends) >= 0) else "worse"
    (near, far), (rival_near, rival_far) = _distances(*ends[:2]), _distances(*ends[2:])
    if far < rival_near:
        return "better"
    return "worse" if rival_far < near else "other"


def _distances(low: float, high: float) -> tuple[float, float]:
    """Least and greatest distance from 0 in an interval."""
    return max(low, -high, 0.0), max(abs(low), abs(high))
