"""A study as its results have it, made up but likely: missing cases, published values, differences that are and are
not."""

from copy import deepcopy

LEVELS = [50, 200, 500, 850]
SYSTEMS = {
    "score": "score model, all modalities",
    "alone": "score model, temperature alone",
    "optimal": "ensemble optimal interpolation",
    "interpolation": "interpolation of anomalies",
}
REFERENCE = "optimal"
SETTINGS = [
    ("coarse-4", "cells a block", 4.0, "block means of 4 x 4 cells", ""),
    ("coarse-8", "cells a block", 8.0, "block means of 8 x 8 cells", ""),
    ("coarse-16", "cells a block", 16.0, "block means of 16 x 16 cells", "the grid has no 15 x 15 blocks"),
    ("noise-1", "noise (std)", 1.0, "one point in 4, noise of 1 std", ""),
    ("noise-2", "noise (std)", 2.0, "one point in 4, noise of 2 std", ""),
]
SCORES = {
    "crps": {"label": "CRPS", "units": "K", "better": "low"},
    "spread_skill": {"label": "spread-skill", "units": "1", "better": "one"},
    "w1": {"label": "W1 of pooled values", "units": "std", "better": "low"},
    "spread": {"label": "spread", "units": "K", "better": ""},
}
CRPS = {
    "coarse-4": (0.5, 0.52, 0.55, 0.9),
    "coarse-8": (0.81, 0.97, 0.95, 1.4),
    "coarse-16": (1.3, 1.35, None, 1.9),
    "noise-1": (0.93, 1.11, 1.04, 4.1),
}
# of the mean, beside the reference: half the width of the interval
SURE = 0.03


def _values(score, crps):
    """A score of a system, roughly as it goes with the CRPS."""
    return {"crps": crps, "spread_skill": 1.15 - 0.2 * crps, "w1": 0.012 + 0.01 * crps, "spread": 1.6 * crps}[score]


def _table(score, crps):
    found = {}
    for number, level in enumerate(map(str, LEVELS)):
        value = _values(score, crps * (1.3 - 0.2 * number))
        found[level] = {"value": value, "interval": [0.95 * value, 1.06 * value]}
    mean = sum(each["value"] for each in found.values()) / len(LEVELS)
    return found | {"mean": {"value": mean, "interval": [0.97 * mean, 1.03 * mean]}}


def _difference(own, rival):
    gap = own["value"] - rival["value"]
    width = SURE * abs(rival["value"])
    return {"value": gap, "interval": [gap - width, gap + width], "significant": bool(abs(gap) > width)}


def _setting(name, group, value, label, note):
    """The factor of a block is its value, else 4."""
    factor = int(value) if group == "cells a block" else 4
    told = {"name": name, "group": group, "value": value, "asked": factor, "label": label, "factor": factor}
    return told | {"at": value, "same_as": "", "note": note}


def made():
    """The study; ``noise-2`` has not run, and the optimal interpolation not in ``coarse-16``."""
    results, differences = {}, {}
    for setting, row in CRPS.items():
        known = {system: crps for system, crps in zip(SYSTEMS, row, strict=True) if crps is not None}
        results[setting] = {
            system: {
                score: _table(score, crps) for score in SCORES if system != "interpolation" or score in ("crps", "w1")
            }
            for system, crps in known.items()
        }
        rival = results[setting].get(REFERENCE, {})
        differences[setting] = {
            system: {
                score: {level: _difference(each, rival[score][level]) for level, each in table.items()}
                for score, table in tables.items()
                if score in rival
            }
            for system, tables in results[setting].items()
            if system != REFERENCE
        }
    published = {
        "coarse-4": {"score": {"w1": {"mean": {"value": 0.014, "lowest": 0.012, "highest": 0.02}}}},
        "coarse-8": {"score": {"w1": {"mean": {"value": 0.03, "lowest": 0.025, "highest": 0.034}}}},
    }
    return {
        "title": "Is a learned prior worth its price?",
        "question": "Who is nearest to the truth, the more the observations are coarsened or disturbed?",
        "units": "K",
        "levels_hpa": list(LEVELS),
        "systems": {name: {"label": label} for name, label in SYSTEMS.items()},
        "reference": REFERENCE,
        "settings": [_setting(*s) for s in SETTINGS],
        "scores": deepcopy(SCORES),
        "first_score": "crps",
        "results": results,
        "differences": differences,
        "published": published,
        "findings": [
            {"claim": "The score model beats optimal interpolation at 8 x 8", "holds": True, "evidence": "-0.140 <K>"},
            {"claim": "Other modalities help at 4 x 4", "holds": None, "evidence": "-0.020, not told from 0"},
            {"claim": "Interpolation is enough under noise", "holds": False, "evidence": "+3.060 (+2.9 to +3.2)"},
        ],
        "provenance": {"commit": "5c0e" * 10, "slams": "0.1.0"},
        "origins": {"coarse-4/score": {"products": {"analysis": {"commit": "abc1", "score_sha256": "0d1e<2>"}}}},
        "config": "folder: runs/fair\nreference: optimal\n",
        "cost": {"coarse-4": {"score": 5025.0, "optimal": 38.0}, "coarse-8": {"score": 5100.0, "optimal": 40.0}},
        "preparation": {
            "prepare-04-train": {"label": "train, paper_score, TPO", "seconds": 630.0, "processor_seconds": 1260.0}
        },
        "dates": ["2001-01-04", "2001-02-03", "2001-03-05"],
        "members": {"score": 16, "alone": 16, "optimal": 16},
        "rerun": "python -m sample study configs/studies/fair.yaml",
        "cases": {"coarse-4": {"score": "runs/fair/cases/coarse-4/score/verify/report.html", "optimal": ""}},
    }
