"""Does the predictive distribution of held-out members know what it does not know?"""

from typing import NamedTuple

import torch

from fgp_gpytorch.data.held_out import HeldOut
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.metrics._evaluation import batches, evaluation
from fgp_gpytorch.metrics.scores import _crps_of_sorted, _interval_of_sorted, log_mean_exp
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE

_LEAST = 19  # draws for an interval of 90 %


class Calibration(NamedTuple):
    """Quality of a predictive distribution, averaged over held-out members and their elements.

    Attributes:
        negative_log_likelihood: -log p(y*) of whole members, nats per element (per pixel). Lower is better; may be
            negative.
        crps: Continuous ranked probability score of each element, units of y (ink 1, paper 0). Lower is better.
        coverage_50: Fraction of elements inside their central 50 % interval. Best at 0.5.
        coverage_90: Fraction of elements inside their central 90 % interval. Best at 0.9.
    """

    negative_log_likelihood: float
    crps: float
    coverage_50: float
    coverage_90: float


def held_out_calibration(
    model: GroupedVAE | ConditionedVAE, held_out: HeldOut, num_samples: int = 199, seed: int = 0, batch_size: int = 16
) -> Calibration:
    r"""Judge the predictive distribution of held-out members, which a squared error cannot.

        z* ~ q(z* | context)                    S joint draws (paper, Section 3: posterior, at x*)
        y* ~ likelihood(decoder(z*))            with observation noise (paper, Section 3: p_psi(Y | Z))

        log p(y*) ~ log 1/S sum_s p(y* | z*_s)  of a whole member: one draw must explain all of its pixels
        CRPS, intervals                         of each element, from one noisy draw y*_s for each z*_s

    CRPS is unbiased, and for S = 199 (19, 39, ...) so are the coverages; see `crps_of_samples` and `central_interval`.
    The estimate of the log likelihood is too low on average (Jensen) and rises with S, so compare at equal S. The noise
    counts: a likelihood of fixed variance, such as the one that GECO is run with, is judged with that variance.

    Args:
        model: A trained model, or what its `given` made; it is used in evaluation mode and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape), and `y_new_mask` if some
            was not observed.
        num_samples: S, at least 19.
        seed: Of the draws; the global random numbers are left alone.
        batch_size: Groups at a time; S times as many members are decoded at once.

    Returns:
        The averages.

    Raises:
        DataError: If there are too few draws, nothing of `y_new` was observed, or what was is not finite.
        ShapeError: If `x_new`, `y_new` or `y_new_mask` are not of the context's groups.
    """
    if not isinstance(num_samples, int) or num_samples < _LEAST:
        raise DataError(
            f"num_samples: expected an integer >= {_LEAST}, for intervals of 90 %, got {num_samples!r}. Try 199."
        )
    totals, elements = torch.zeros(4, dtype=torch.float64), 0
    with evaluation(model, seed) as device:
        for batch in batches(held_out, batch_size, device):
            y_new = batch.y_new
            z = model.predict(batch.x_new, batch.context).rsample((num_samples,))
            output = model.decode(z, batch.x_new)
            log_likelihood = log_mean_exp(model.likelihood.log_prob(output, y_new, batch.observed).double())
            ordered = model.likelihood.distribution(output).sample().sort(0).values
            sums = [-log_likelihood.sum(), batch.masked(_crps_of_sorted(ordered, y_new).double()).sum()]
            for level in (0.5, 0.9):
                low, high = _interval_of_sorted(ordered, level)
                sums.append(batch.masked(((low <= y_new) & (y_new <= high)).double()).sum())
            totals += torch.stack([value.cpu().double() for value in sums])
            elements += batch.num_elements
    return Calibration(*(totals / elements).tolist())
