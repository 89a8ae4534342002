"""Simple classifiers and regressions of a representation. Pure functions of tensors, in float64."""

from typing import Any

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError, GroupError, ShapeError

_DISTANCES = 2**21  # at a time


def ridge_r2(
    features: Tensor,  # shape: (N, L)
    targets: Tensor,  # shape: (N, T)
    group: Tensor,  # shape: (N,)
    num_folds: int = 5,
    penalty: float = 1e-3,
    seed: int = 0,
) -> float:
    r"""Coefficient of determination of a linear ridge probe, on groups that it was not fitted on. Higher is better.

        W = (Z'Z + n penalty I)^-1 Z'(T - mean T)     standardized features Z of the n rows of the other folds
        R^2 = 1 - sum (T - prediction)^2 / sum (T - mean T)^2   over all rows, when each was held out

    Every group is held out once. The means are those of the fitted rows. So predicting their mean gives 0, and a worse
    prediction is negative.

    Args:
        features: The representation.
        targets: The columns to predict, in one unit: their errors are summed.
        group: Group of each row, any integers.
        num_folds: Parts that the groups are divided into, at most one for each group.
        penalty: Weight of the ridge, for standardized features, per row.
        seed: Of the division into folds.

    Returns:
        R^2, at most 1.

    Raises:
        ArgumentError: If there are fewer than two folds.
        ShapeError: If the numbers of rows differ.
        GroupError: If there are fewer than two groups.
        DataError: If the targets are constant.

    Examples:
        >>> x, group = torch.linspace(-1, 1, 20).unsqueeze(-1), torch.arange(20) // 4
        >>> round(ridge_r2(features=3 * x + 1, targets=x, group=group, penalty=1e-9), 6)
        1.0
        >>> ridge_r2(features=x.square(), targets=x, group=group) < 0.1  # x squared has lost the sign
        True
    """
    group = _groups(group, "group")
    features, targets = _rows(features, "features", group), _rows(targets, "targets", group)
    num_folds = check.count(num_folds, "num_folds", least=2, hint="Try 5.")
    penalty = check.positive(penalty, "penalty", zero=True, hint="Try 1e-3.")
    seed = check.count(seed, "seed", least=0)
    labels, code = group.unique(return_inverse=True)
    if len(labels) < 2:
        raise GroupError("group: expected at least two groups, one to fit and one to test on, got 1. Try more data.")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fold = (order % num_folds).to(code.device)[code]
    residual, total = 0.0, 0.0
    for held_out in range(min(num_folds, len(labels))):
        fitted, tested = fold != held_out, fold == held_out
        mean, scale = _standard(features[fitted])
        z, offset = (features[fitted] - mean) / scale, targets[fitted].mean(0)
        gram = z.mT @ z + len(z) * penalty * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        weight = torch.linalg.solve(gram, z.mT @ (targets[fitted] - offset))
        prediction = (features[tested] - mean) / scale @ weight + offset
        residual += float((targets[tested] - prediction).square().sum())
        total += float((targets[tested] - offset).square().sum())
    if total == 0:
        raise DataError("targets: expected values that vary, got constant ones. Try another feature.")
    return 1 - residual / total


def centroid_accuracy(
    features: Tensor,  # shape: (N, L)
    group: Tensor,  # shape: (N,)
    test_features: Tensor,  # shape: (M, L)
    test_group: Tensor,  # shape: (M,)
    shrinkage: float = 1e-3,
) -> float:
    r"""Accuracy of a linear classifier of the group, on test rows. Higher is better; chance is 1 / groups.

    It takes the group of the nearest centroid, in the metric of the scatter within groups (linear discriminant
    analysis with equal group probabilities; Hastie, Tibshirani and Friedman 2009, Section 4.3):

        argmin_g (z - c_g)' (S + shrinkage I)^-1 (z - c_g)

    with features standardized first. The metric reduces the weight of channels that vary widely within every group.

    Args:
        features: Rows to fit on.
        group: Their groups, any integers.
        test_features: Rows to classify.
        test_group: Their groups.
        shrinkage: Added to the scatter S, which is singular where a channel is constant within groups.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        ShapeError: If the numbers of rows differ.
        GroupError: If a test row's group has no row to fit on.

    Examples:
        >>> features = torch.tensor([[0.0, 5.0], [0.1, -5.0], [1.0, 5.0], [1.1, -5.0]])
        >>> test_features = torch.tensor([[0.05, 9.0], [0.9, -9.0]])  # of group 0, the second one like group 1
        >>> centroid_accuracy(features, torch.tensor([0, 0, 1, 1]), test_features, torch.tensor([0, 0]))
        0.5
    """
    group, test_group = _groups(group, "group"), _groups(test_group, "test_group")
    features = _rows(features, "features", group)
    test_features = _rows(test_features, "test_features", test_group)
    shrinkage = check.positive(shrinkage, "shrinkage", zero=True, hint="Try 1e-3.")
    check.shape(test_features, "test_features", ("M", features.shape[-1]), "Try the columns that were fitted on.")
    labels, code = group.unique(return_inverse=True)
    unknown = ~torch.isin(test_group, labels)
    if bool(unknown.any()):
        raise GroupError(
            f"test_group: expected groups that were fitted on, got group {int(test_group[unknown][0])}. Try to split "
            "the members of each group, not the groups."
        )
    mean, scale = _standard(features)
    z, tested = (features - mean) / scale, (test_features - mean) / scale
    centroids = z.new_zeros(len(labels), z.shape[-1]).index_add_(0, code, z)
    centroids /= torch.bincount(code).unsqueeze(-1)
    deviation = z - centroids[code]
    scatter = deviation.mT @ deviation / len(z) + shrinkage * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    root = torch.linalg.cholesky(scatter)
    whitened = [torch.linalg.solve_triangular(root, part.mT, upper=False).mT for part in (tested, centroids)]
    rows = max(1, _DISTANCES // len(labels))
    nearest = torch.cat([torch.cdist(part, whitened[1]).argmin(-1) for part in whitened[0].split(rows)])
    return float((labels[nearest] == test_group).double().mean())


def nearest_path_accuracy(
    paths: Tensor,  # shape: (G, U, L)
    features: Tensor,  # shape: (M, L)
    at: Tensor,  # shape: (M,)
    group: Tensor,  # shape: (M,)
) -> float:
    r"""Accuracy of a classifier of the group that takes the place of each row on its path. Higher is better.

        argmin_g  sum_l (z_l - path_gl(u))^2 / s_l^2     s_l^2 = mean over u of the variance of path_gl(u) over groups

    It distinguishes paths that differ in shape about the same centre, which `centroid_accuracy` cannot. A tie, such as
    of equal paths, counts as an error. Chance is 1 / groups only if all paths come from members at the same places:
    the places of its members distinguish a group, too.

    Args:
        paths: Values of every group at U places.
        features: Rows to classify.
        at: Position of each row's place among the U.
        group: Position of each row's group among the G.

    Returns:
        Accuracy, 0 to 1.

    Raises:
        ShapeError: If paths and rows do not match.
        GroupError: If there are fewer than two groups, or a row's group or place is outside the paths.

    Examples:
        >>> paths = torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]])  # of two groups, rising and falling
        >>> rows, at = torch.tensor([[0.1], [0.9], [0.9], [0.4]]), torch.tensor([0, 1, 0, 0])
        >>> nearest_path_accuracy(paths, rows, at, group=torch.tensor([0, 0, 1, 1]))  # not the last row
        0.75
    """
    group, at, paths = _groups(group, "group"), _groups(at, "at"), check.as_tensor(paths, "paths")
    features = _rows(features, "features", group)
    if paths.dim() != 3 or paths.shape[-1] != features.shape[-1] or at.shape != group.shape:
        raise ShapeError(
            f"paths: expected (groups, places, {features.shape[-1]}) and a place for each of the {len(group)} rows, "
            f"got {tuple(paths.shape)} and {tuple(at.shape)}. Try one column for each channel."
        )
    if len(paths) < 2:
        raise GroupError("paths: expected two groups or more, got one. Try more data.")
    for name, index, count in (("group", group, len(paths)), ("at", at, paths.shape[1])):
        if not 0 <= int(index.min()) <= int(index.max()) < count:
            raise GroupError(
                f"{name}: expected positions from 0 to {count - 1} in paths, got {int(index.min())} to "
                f"{int(index.max())}. Try unique(return_inverse=True)."
            )
    paths = paths.double()
    scale = paths.var(0, correction=0).mean(0).sqrt()
    scale = torch.where(scale <= 1e-12 * paths.abs().amax((0, 1)), 1.0, scale)
    named, rows = 0, max(1, _DISTANCES // len(paths))
    for place in at.unique():
        exact = "donot_use_mm_for_euclid_dist"  # equal paths then have equal distances
        for here in (at == place).nonzero()[:, 0].split(rows):
            distance = torch.cdist(features[here] / scale, paths[:, place] / scale, compute_mode=exact)
            nearest = distance.topk(2, largest=False)
            sure = nearest.values[:, 0] < nearest.values[:, 1]
            named += int((sure & (nearest.indices[:, 0] == group[here])).sum())
    return named / len(group)


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel. The latter is 1 where a channel is constant."""
    deviation = features.std(0, correction=0)
    constant = deviation <= 1e-12 * features.abs().amax(0)
    return features.mean(0), torch.where(constant, 1.0, deviation)


def _groups(values: Any, name: str) -> Tensor:  # shape: (N,)
    values = check.as_tensor(values, name)
    check.shape(values, name, ("N",), "Try one integer for each row.")
    if values.is_floating_point() and bool((values == values.round()).all()):
        values = values.long()  # exact integers
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"{name}: expected integers, got {values.dtype}. Try unique(return_inverse=True)[1].")
    return values


def _rows(values: Any, name: str, group: Tensor) -> Tensor:
    values = check.as_tensor(values, name)
    if values.is_complex():
        raise DataError(f"{name}: expected real numbers, got {values.dtype}. Try {name}.real.")
    if values.dim() != 2 or len(values) != len(group) or len(group) == 0:
        raise ShapeError(
            f"{name}: expected (N, columns) with a row for each of the {len(group)} entries of group, got "
            f"{tuple(values.shape)}. Try values.flatten(0, -2)."
        )
    return check.finite(values, name).double()
