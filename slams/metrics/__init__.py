"""Scores of an ensemble of fields against a truth, one number a channel, as `torchmetrics` metrics.

With members x_i (i = 1..M), truth y, area weights w (sum 1 over the sphere, `spec.Grid.area_weights`) and
<.> the w-weighted mean over every cell and date where y is known,

* ``Bias``           <mean_i x_i - y>,
* ``EnsembleRMSE``   sqrt <(mean_i x_i - y)^2>,
* ``FairCRPS``       < mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1)) >,
* ``Spread``         sqrt <var_i x_i>,
* ``SpreadSkill``    sqrt((M + 1) / M <var_i x_i>) / sqrt <(mean_i x_i - y)^2>,
* ``RankHistogram``  <[exactly r members lie below y]>, r = 0..M,
* ``Wasserstein``    integral |F_x - F_y|, F the distributions of all values, cells counted alike,
* ``ZonalSpectrum``  <|x_k|^2> by zonal wavenumber k,
* ``UnstableLayers`` <mean_i [theta(x_i) falls with height]>,
* ``DayChange``      sqrt <mean_i (x_i(t + 1) - x_i(t))^2> / sqrt <(y(t + 1) - y(t))^2>.

Every metric takes ``update(x_MCHW, truth_CHW)`` date by date and keeps float64 sums alone, so that shares of
the work merge (by `merge_state`, or across processes) into what one pass would have given. What a date adds is
``sums(x_MCHW, truth_CHW)``, and the score a pure function of sums and weights, ``value(total, weight)``.

Missing values: a cell whose truth is NaN is left out with its weight. A member that is NaN where the truth is
known is not excused: the score of that channel is NaN. A channel whose truth was never known scores NaN.

Two habits of torchmetrics to know: `compute` gives a scalar in place of one channel, and remembers its answer
until the next `update` or `reset`, so merge before computing.
"""

from slams.metrics.distribution import Wasserstein
from slams.metrics.ensemble import Bias, EnsembleRMSE, FairCRPS, RankHistogram, Spread, SpreadSkill, fair_crps
from slams.metrics.structure import DayChange, UnstableLayers, ZonalSpectrum
from slams.uncertainty import date_blocks, resampled_dates

__all__ = [
    "Bias",
    "DayChange",
    "EnsembleRMSE",
    "FairCRPS",
    "RankHistogram",
    "Spread",
    "SpreadSkill",
    "UnstableLayers",
    "Wasserstein",
    "ZonalSpectrum",
    "date_blocks",
    "fair_crps",
    "resampled_dates",
]
