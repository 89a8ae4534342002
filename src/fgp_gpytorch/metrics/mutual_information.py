"""Mutual information of discretized variables, and the gap that measures disentanglement by it."""

import torch
from torch import Tensor

from fgp_gpytorch._shapes import check_finite
from fgp_gpytorch.errors import DataError, ShapeError


def discretize(values: Tensor, num_bins: int = 20) -> Tensor:  # shape: (N, L) -> (N, L)
    """Bin of each value, 0 to `num_bins` - 1, with bins of equal width from the least to the greatest of its column.

    Args:
        values: Real numbers.
        num_bins: Bins; 20 is what Locatello et al. 2019 ("Challenging common assumptions in the unsupervised learning
            of disentangled representations") use.

    Returns:
        Bins, int64; 0 throughout a constant column.

    Raises:
        DataError: If `num_bins` is below 2, or a value is not finite.
        ShapeError: If the values are not (N, L).
    """
    if num_bins < 2:
        raise DataError(f"num_bins: expected at least 2, got {num_bins}. Try 20.")
    if values.dim() != 2:
        raise ShapeError(f"values: expected (N, L), got {tuple(values.shape)}. Try values.unsqueeze(-1).")
    check_finite(values, "values")
    values = values.double()
    least, greatest = values.amin(0), values.amax(0)
    width = torch.where(greatest > least, greatest - least, 1.0)
    return ((values - least) / width * num_bins).long().clamp_max(num_bins - 1)


def mutual_information(first: Tensor, second: Tensor) -> Tensor:  # shape: (N, L), (N,) -> (L,)
    r"""Mutual information of each column with one more variable, from counts.

        I(a; b) = sum_ab p(a, b) log p(a, b) / (p(a) p(b))

    The plug-in estimate: too high, by about (values of a - 1)(values of b - 1) / 2N nats where the two are independent
    (Miller 1955). With 20 bins, 360 groups and 4000 rows that is most of a nat.

    Args:
        first: Discrete values, int64, not negative.
        second: Discrete values, int64, not negative. I(b; b) is the entropy of b.

    Returns:
        Nats, at least 0 up to rounding.

    Raises:
        ShapeError: If the rows do not match.
    """
    if first.dim() != 2 or second.shape != first.shape[:1] or len(second) == 0:
        raise ShapeError(
            f"expected (N, L) and (N,) with the same N of at least 1, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Try first.unsqueeze(-1) for a single column."
        )
    values, others = int(first.max()) + 1, int(second.max()) + 1
    information = []
    for column in first.unbind(-1):
        joint = torch.bincount(column * others + second, minlength=values * others).double() / len(second)
        joint = joint.reshape(values, others)
        independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        information.append(torch.special.xlogy(joint, joint / independent.clamp_min(1e-300)).sum())
    return torch.stack(information)


def mutual_information_gap(
    latents: Tensor,  # shape: (N, L)
    factor: Tensor,  # shape: (N,)
    num_bins: int = 20,
) -> float:
    r"""How far the most informative channel is ahead of the next one. Higher is better: the factor has its own channel.

        (I(z_j; v) - max_{i != j} I(z_i; v)) / H(v),   j = argmax I(z_j; v)

    One factor's term of the mutual information gap (Chen et al. 2018, "Isolating sources of disentanglement in
    variational autoencoders", eq. 6); the gap of a model is the mean over factors. It asks for *one* channel for each
    factor: a model that gives a factor a block of channels scores low here, whatever its probes say. With B bins it
    cannot exceed log B / H(v): 0.51 for 20 bins and 360 equally frequent groups. The excess of the plug-in estimates
    cancels in the difference but for its noise; the gap of a permuted factor shows how much is left.

    Args:
        latents: Representation, discretized here into bins of equal width.
        factor: Values of the factor, int64, not negative.
        num_bins: Bins of each channel.

    Returns:
        The gap as a fraction of the factor's entropy, 0 to 1.

    Raises:
        ShapeError: If there are fewer than two channels, or the rows do not match.
        DataError: If the factor is constant, or `num_bins` is below 2.
    """
    if latents.dim() != 2 or latents.shape[-1] < 2:
        raise ShapeError(f"latents: expected (N, L) with L of at least 2, got {tuple(latents.shape)}. A gap needs two.")
    information = mutual_information(discretize(latents, num_bins), factor)
    entropy = float(mutual_information(factor.unsqueeze(-1), factor))
    if entropy <= 0:
        raise DataError("factor: expected values that vary, got a constant. Try data with more of them.")
    best, second = information.topk(2).values.tolist()
    return (best - second) / entropy
