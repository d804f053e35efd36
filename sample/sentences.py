"""What the scores of a verification say, in sentences."""

from __future__ import annotations

from typing import Any

from sample import figures
from sample.figures import label

# A ratio this near 1 is called reliable; with tens of dates it is not known better than that.
RELIABLE_WITHIN = 0.1
FEW_BLOCKS = 10
PACES = {"day_change": "From one day to the next within a segment", "day_change_at_joins": "Where two segments join"}
ONE_MEMBER = "One member has no spread, and all that needs one is left out: ratios of spread to error, and ranks."
LAST_MEMBER = "On no date two members could be drawn: there is no spread, and all that needs one is left out."


def sentences(scores: dict[str, Any]) -> list[str]:
    """What the numbers say, in words: the analysis and its rivals, its spread, how sure all this is."""
    told = (_skill(scores), _spread(scores), _certainty(scores), _not_verified(scores))
    return [sentence for sentence in told if sentence]


def costs(scores: dict[str, Any]) -> list[str]:
    """What withholding each modality cost, in words."""
    return [_cost(scores, name, pair["rmse"]) for name, pair in scores["withholding"].items()]


def _skill(scores: dict[str, Any]) -> str:
    """The RMSE beside that of the hardest baseline."""
    systems, units = scores["systems"], scores["units"]
    own = systems["analysis"]["rmse"]["mean"]
    baselines = rivals(scores)
    rival = min(baselines, key=lambda name: baselines[name])
    difference = scores["confidence"]["analysis_minus"][rival]["rmse"]
    text = f"The analysis has a {scores['variable']} RMSE of {own:.2f} {units}{_between(scores, 'analysis')}"
    if difference["value"] >= 0:
        return f"{text}; it does not beat {label(rival)} ({baselines[rival]:.2f} {units})."
    percent = round(100 * (1 - own / baselines[rival]))
    doubt = "" if excludes_zero(difference) else ", a difference that these dates cannot tell from none"
    return (
        f"{text}, {percent} % below {label(rival)} ({baselines[rival]:.2f} {units}), the best of the baselines{doubt}."
    )


def rivals(scores: dict[str, Any]) -> dict[str, float]:
    """RMSE of the baselines that may compete, those that are there."""
    names = [name for name in figures.BASELINES if name in scores["systems"] and name != "autoencoder"]
    return {name: scores["systems"][name]["rmse"]["mean"] for name in names}


def _between(scores: dict[str, Any], system: str) -> str:
    interval = scores["confidence"]["systems"][system]["rmse"].get("interval")
    return f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""


def excludes_zero(pair: dict[str, Any]) -> bool:
    """Whether the interval of a difference shows one."""
    return "interval" in pair and (pair["interval"][0] > 0 or pair["interval"][1] < 0)


def _spread(scores: dict[str, Any]) -> str:
    if scores["members"] == 1:
        return ONE_MEMBER
    if "spread_skill" not in scores["systems"]["analysis"]:
        return LAST_MEMBER
    ratio = scores["systems"]["analysis"]["spread_skill"]["mean"]
    if abs(ratio - 1) <= RELIABLE_WITHIN:
        verdict = "its members are about as far apart as they are from the truth, as they should be"
    else:
        verdict = "it is over-confident" if ratio < 1 else "it is less sure than it could be"
    return f"Its spread-skill ratio is {ratio:.2f}: {verdict}."


def _cost(scores: dict[str, Any], name: str, pair: dict[str, Any]) -> str:
    """What a withheld modality was worth."""
    text = f"Withholding {name} changes the RMSE by {pair['value']:+.3f} {scores['units']}"
    if "interval" not in pair:
        return f"{text}; these dates are too few to say how surely."
    low, high = pair["interval"]
    verdict = "excludes 0" if excludes_zero(pair) else "includes 0, so no effect is shown"
    return f"{text} (95 % interval {low:+.3f} to {high:+.3f}, which {verdict})."


def _certainty(scores: dict[str, Any]) -> str:
    n_blocks, n_dates = scores["confidence"]["blocks"], len(scores["dates"])
    if n_blocks >= FEW_BLOCKS:
        return ""
    dates, blocks = counted(n_dates, "date"), counted(n_blocks, "independent block")
    what = "intervals are rough" if n_blocks > 1 else "no interval can be given"
    return f"The {dates} make {blocks} of at most five days: {what}."


def _not_verified(scores: dict[str, Any]) -> str:
    names = ", ".join(scores["not_verified"])
    return f"Not verified: {names}, of which the analysis lacks values where the truth has them." if names else ""


def counted(n: int, noun: str) -> str:
    """ "1 date" or "2 dates"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def structure(scores: dict[str, Any]) -> list[str]:
    """What the members look like as fields: layers that would overturn, and the pace from day to day."""
    own = scores["systems"]["analysis"]
    told = []
    if "unstable" in own and "unstable" in scores["truth"]:
        share, true = 100 * own["unstable"]["mean"], 100 * scores["truth"]["unstable"]["mean"]
        told.append(f"Layers steeper than the dry adiabat: {share:.3f} % of the members', {true:.3f} % of the truth's.")
    for score, words in PACES.items():
        if score in own:
            ratio, between = own[score]["mean"], scores["intervals"]["analysis"].get(score, {}).get("mean")
            sure = f" (95 % interval {between[0]:.2f} to {between[1]:.2f})" if between else ""
            told.append(f"{words} the members change {ratio:.2f} times as much as the truth{sure}.")
    return told
