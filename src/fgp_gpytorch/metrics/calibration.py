"""Calibration of the predictive distribution of held-out members."""

from typing import NamedTuple

import torch

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import HeldOut
from fgp_gpytorch.metrics._evaluation import batches, checked_model
from fgp_gpytorch.metrics.scores import crps_of_sorted, interval_of_sorted, log_mean_exp
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


class Calibration(NamedTuple):
    """Quality of a predictive distribution, averaged over held-out members and their elements.

    Attributes:
        negative_log_likelihood: -log p(y*) of whole members, nats per element (per pixel). Lower is better. It may be
            negative.
        crps: Continuous ranked probability score of each element, units of y (ink 1, paper 0). Lower is better.
        coverage_50: Fraction of elements inside their central 50 % interval. Best at 0.5.
        coverage_90: Fraction of elements inside their central 90 % interval. Best at 0.9.

    Examples:
        >>> calibration = Calibration(negative_log_likelihood=-1.2, crps=0.04, coverage_50=0.38, coverage_90=0.81)
        >>> calibration.coverage_90 < 0.9  # intervals are too narrow
        True
    """

    negative_log_likelihood: float
    crps: float
    coverage_50: float
    coverage_90: float


def held_out_calibration(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    num_samples: int = 199,
    seed: int = 0,
    batch_size: int | None = 16,
    progress: bool = False,
) -> Calibration:
    r"""Measure the predictive distribution of held-out members.

        z* ~ q(z* | context)                    S joint draws (paper, Section 3: posterior, at x*)
        y* ~ likelihood(decoder(z*))            with observation noise (paper, Section 3: p_psi(Y | Z))

        log p(y*) ~ log 1/S sum_s p(y* | z*_s)  of a whole member: one draw must explain all of its pixels
        CRPS, intervals                         of each element, from one noisy draw y*_s for each z*_s

    - CRPS is unbiased, and for S = 19, 39, ... 199 so are the coverages (`crps_of_samples`, `central_interval`).
    - The estimate of the log likelihood is too low on average (Jensen) and rises with S. Compare at equal S.
    - The observation noise counts. A fixed variance, such as the one used with GECO, is part of the result.

    Args:
        model: A trained model, or one conditioned on data. It is used in evaluation mode, then restored.
        held_out: The members to predict.
        num_samples: S, at least 19, which an interval of 90 % needs.
        seed: Of the draws. The global random numbers are left alone.
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows. Another size
            has other draws.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: If there are too few draws, or `held_out` is no `HeldOut`.

    Examples:
        >>> data = GroupedDataset(torch.rand(9, 2), torch.arange(9.0), group=[0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> calibration = held_out_calibration(model, HeldOut.last(data), num_samples=39)
        >>> calibration.coverage_50 <= calibration.coverage_90
        True
    """
    checked_model(model)
    num_samples = check.count(num_samples, "num_samples", least=19, hint="An interval of 90 % needs so many. Try 199.")
    seed = check.count(seed, "seed", least=0)
    totals, elements = torch.zeros(4, dtype=torch.float64), 0
    with evaluation(model, seed) as device:
        for batch in batches(model, held_out, batch_size, progress, device, num_samples):
            y_new = batch.y_new
            z = model.predict(batch.x_new, batch.context).rsample((num_samples,))
            output = model.decode(z, batch.x_new, y_new.shape[2:])
            pair = model.likelihood.without_gaps(output, y_new, batch.observed)
            log_likelihood = log_mean_exp(model.likelihood.log_prob(*pair, batch.observed).double())
            ordered = model.likelihood.distribution(output).sample().sort(0).values
            sums = [-log_likelihood.sum(), batch.masked(crps_of_sorted(ordered, y_new).double()).sum()]
            for level in (0.5, 0.9):
                low, high = interval_of_sorted(ordered, level)
                sums.append(batch.masked(((low <= y_new) & (y_new <= high)).double()).sum())
            totals += torch.stack([value.cpu().double() for value in sums])
            elements += batch.num_elements
    return Calibration(*(totals / elements).tolist())
