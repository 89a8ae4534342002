"""Mutual information of discretized variables, and the disentanglement gap made of it."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, ShapeError


def discretize(values: Tensor, num_bins: int = 20) -> Tensor:  # shape: (N, L) -> (N, L)
    """Bin of each value, 0 to `num_bins` - 1, int64. Bins divide the range of each column into equal widths.

    Args:
        values: Real numbers. A constant column gives 0.
        num_bins: Bins. Locatello et al. 2019 ("Challenging common assumptions in the unsupervised learning of
            disentangled representations") use 20.

    Raises:
        ArgumentError: If `num_bins` is below 2.
        ShapeError: If the values are not (N, L).
        DataError: If a value is not finite.

    Examples:
        >>> discretize(torch.tensor([[0.0, 5.0], [0.4, 5.0], [1.0, 5.0]]), num_bins=2)
        tensor([[0, 0],
                [0, 0],
                [1, 0]])
    """
    num_bins = check.count(num_bins, "num_bins", least=2, hint="Try 20.")
    values = real_rows(values, "values")
    least, greatest = values.amin(0), values.amax(0)
    width = torch.where(greatest > least, greatest - least, 1.0)
    return ((values - least) / width * num_bins).long().clamp_max(num_bins - 1)


def mutual_information(first: Tensor, second: Tensor) -> Tensor:  # shape: (N, L), (N,) -> (L,)
    r"""Mutual information of each column with one more variable, from counts, in nats.

        I(a; b) = sum_ab p(a, b) log p(a, b) / (p(a) p(b))

    The plug-in estimate is too high, by about (values of a - 1)(values of b - 1) / 2N nats where the two are
    independent (Miller 1955). With 20 bins, 360 groups and 4000 rows that is most of a nat.

    Args:
        first: Discrete values, int64, not negative.
        second: Discrete values, int64, not negative. I(b; b) is the entropy of b.

    Raises:
        ShapeError: If the numbers of rows differ.

    Examples:
        >>> coin = torch.tensor([0, 0, 1, 1])
        >>> mutual_information(torch.stack([coin, torch.tensor([0, 1, 0, 1])], -1), coin)  # log 2, and 0
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    first, second = indices(first, "first"), indices(second, "second")
    if first.dim() != 2 or second.shape != first.shape[:1] or len(second) == 0:
        raise ShapeError(
            f"expected (N, L) and (N,) with the same N of at least 1, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}. Try first.unsqueeze(-1) for a single column."
        )
    others, probability = int(second.max()) + 1, torch.bincount(second).double() / len(second)
    information = []
    for column in first.unbind(-1):
        own = torch.bincount(column).double() / len(column)
        pairs, counts = (column * others + second).unique(return_counts=True)  # the others have probability 0
        joint = counts.double() / len(second)
        information.append((joint * (joint / (own[pairs // others] * probability[pairs % others])).log()).sum())
    return torch.stack(information)


def mutual_information_gap(
    latents: Tensor,  # shape: (N, L)
    factor: Tensor,  # shape: (N,)
    num_bins: int = 20,
) -> float:
    r"""Gap between the most informative channel and the next one, as a fraction of the factor's entropy.

        (I(z_j; v) - max_{i != j} I(z_i; v)) / H(v),   j = argmax I(z_j; v)

    Higher is better, from 0 to 1: the factor has a channel of its own. This is one factor's term of the mutual
    information gap (Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders", eq. 6). The
    gap of a model is the mean over factors.

    - A factor that is spread over a block of channels scores low, whatever probes find.
    - With B bins the gap is at most log B / H(v): 0.51 for 20 bins and 360 equally frequent groups.
    - The bias of the plug-in estimates cancels in the difference, but not its noise. The gap of a permuted factor
      measures the noise.

    Args:
        latents: Representation, discretized here into bins of equal width.
        factor: Values of the factor, int64, not negative.
        num_bins: Bins of each channel.

    Raises:
        ArgumentError: If `num_bins` is below 2.
        ShapeError: If there are fewer than two channels, or the numbers of rows differ.
        DataError: If the factor is constant.

    Examples:
        >>> factor = torch.tensor([0, 0, 1, 1])
        >>> other = torch.tensor([0, 1, 0, 1])
        >>> mutual_information_gap(torch.stack([factor, other], -1).float(), factor)
        1.0
        >>> mutual_information_gap(torch.stack([factor, -factor], -1).float(), factor)  # two channels carry it
        0.0
    """
    latents, factor = real_rows(latents, "latents"), indices(factor, "factor")
    if latents.shape[-1] < 2:
        raise ShapeError(
            f"latents: expected (N, L) with L of at least 2, got {tuple(latents.shape)}. Try a model of two channels."
        )
    information = mutual_information(discretize(latents, num_bins), factor)
    entropy = float(mutual_information(factor.unsqueeze(-1), factor))
    if entropy <= 0:
        raise DataError("factor: expected values that vary, got a constant. Try data with more of them.")
    best, second = information.topk(2).values.tolist()
    return (best - second) / entropy


def real_rows(values: Any, name: str) -> Tensor:  # shape: (N, L)
    """Return finite real numbers (N, L), N at least 1, in float64.

    Raises:
        ArgumentError: If the values are not numeric.
        ShapeError: If they are not (N, L).
        DataError: If there is no row, or a value is complex or not finite.
    """
    values = check.as_tensor(values, name)
    if values.is_complex():
        raise DataError(f"{name}: expected real numbers, got {values.dtype}. Try {name}.real.")
    check.shape(values, name, ("N", "L"), f"Try {name}.unsqueeze(-1) for one column.")
    if not len(values):
        raise DataError(f"{name}: expected at least one row, got {tuple(values.shape)}. Try more data.")
    return check.finite(values, name).double()


def indices(values: Any, name: str) -> Tensor:
    """Return whole numbers of at least 0.

    Raises:
        ArgumentError: If the values are not numeric.
        DataError: If they are not integers, or one is negative.
    """
    values = check.as_tensor(values, name)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"{name}: expected integers, got {values.dtype}. Try unique(return_inverse=True)[1].")
    if values.numel() and int(values.min()) < 0:
        raise DataError(f"{name}: expected integers >= 0, got {int(values.min())}. Try unique(return_inverse=True)[1].")
    return values.long()
