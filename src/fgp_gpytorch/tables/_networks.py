"""The default model of a table: kernels, means, networks and likelihood."""

from collections.abc import Sequence

import torch
from gpytorch.kernels import ConstantKernel, Kernel, MaternKernel, PeriodicKernel, ScaleKernel
from gpytorch.means import ConstantMean, Mean
from torch import Tensor

from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.kernels import PrincipalFunctionKernel, WithinKernel
from fgp_gpytorch.likelihoods import ColumnLikelihood
from fgp_gpytorch.means import AdditiveMean, FourierMean, PiecewiseLinearMean
from fgp_gpytorch.models import FGPVAE, padded_features, thinned
from fgp_gpytorch.models.linear_start import descend
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder
from fgp_gpytorch.prior import FactorizedGPPrior, LocalChannels
from fgp_gpytorch.tables._features import Covariate, Feature
from fgp_gpytorch.tables.columns import Column

_HARMONICS = 4
_ROWS_PER_KNOT = 4
_EVIDENCE_STEPS = 40  # of L-BFGS
MOST_KNOTS = 12
MANY_GROUPS = 100  # more learn their mean and their curves without help
_LONG_GROUP = 300  # members; a curve that groups scale has no state space, and dense inference would be slow
_CURVE_KNOTS, _CURVE_SCALE = 8, 0.3


def may_scale_a_curve(data: GroupedDataset) -> bool:
    """Whether groups may scale a common curve: they are few, and none is long."""
    return len(data) <= MANY_GROUPS and int(data.group_sizes.max()) <= _LONG_GROUP


def kernel_of(
    features: Sequence[Feature], num_levels: int, num_channels: int, first_level: int, curves: Sequence[Mean] = ()
) -> Kernel:
    """The default kernel of each channel: a level of the group, a Matern 3/2 process, curves, terms for other columns.

    Every term has a variance of its own. With inner groups, each of them has a level and a process too.

    Args:
        features: The columns of x, in order.
        num_levels: Inner levels of groups, whose codes are the last columns of x.
        num_channels: J, the batch shape.
        first_level: The column of x of the first code.
        curves: Functions of which each group has a multiple.
    """
    shape = torch.Size([num_channels])
    numbers = [place for place, feature in enumerate(features) if feature.is_number]
    categories = [place for place, feature in enumerate(features) if feature.kind == "category"]
    codes = range(first_level, first_level + num_levels)

    def level() -> Kernel:
        kernel = ConstantKernel(batch_shape=shape)
        kernel.constant = torch.full(shape, 0.5)
        return kernel

    def process() -> Kernel:
        base = MaternKernel(nu=1.5, batch_shape=shape, active_dims=tuple(numbers), ard_num_dims=len(numbers))
        return _scaled(base, shape)

    terms = [level()]
    if numbers:
        terms.append(process())
    for place, feature in enumerate(features):
        if feature.period is not None:
            periodic = PeriodicKernel(batch_shape=shape, active_dims=(place,))
            periodic.period_length = feature.period
            periodic.raw_period_length.requires_grad_(False)
            terms.append(_scaled(periodic, shape))
    for place in categories:  # each category of a group has a level and a process
        terms.append(_within(level(), place, codes))
        if numbers:
            terms.append(_within(process(), place, codes, numbers))
    for place in codes:
        terms.append(_within(level(), place, [code for code in codes if code != place]))
        if numbers:
            terms.append(_within(process(), place, [code for code in codes if code != place], numbers))
    terms += [PrincipalFunctionKernel(curve) for curve in curves]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _within(base: Kernel, place: int, hidden: Sequence[int], numbers: Sequence[int] = ()) -> Kernel:
    """A kernel within equal codes. Its columns are counted without the code and the hidden ones."""
    removed = {place, *hidden}
    for module in base.modules():
        if isinstance(module, MaternKernel | ScaleKernel):  # a ScaleKernel copies the dims of its base
            own = [number - sum(column < number for column in removed) for number in numbers]
            module.register_buffer("active_dims", torch.tensor(own))
    return WithinKernel(base, place, tuple(code for code in hidden if code != place))


def _scaled(base: Kernel, shape: torch.Size) -> Kernel:
    kernel = ScaleKernel(base, batch_shape=shape)
    kernel.outputscale = 0.5
    return kernel


def curves_of(features: Sequence[Feature], data: GroupedDataset) -> list[Mean]:
    """A function of each number, of which each group has a multiple. Each element of y has a channel.

    It starts as a part of the element's mean at x above its smallest value, as if groups differed by a factor.
    """
    members, curves = data.members, []
    y = members.y.double()
    seen = torch.ones_like(y, dtype=torch.bool) if members.y_mask is None else members.y_mask
    least = torch.where(seen, y, torch.inf).amin(0)
    for place, feature in enumerate(features):
        own = members.x[:, place].double()
        if not feature.is_number or len(own.unique()) < 2:
            continue
        knots = PiecewiseLinearMean.knots_of(own, min(_CURVE_KNOTS, max(2, len(own) // _ROWS_PER_KNOT)))
        curve = PiecewiseLinearMean(knots, torch.Size(data.y_shape), place)
        basis = curve.basis(members.x.double())
        weighted = seen.double().mT.unsqueeze(-1) * basis  # (K, N, M)
        ridge = 1e-3 * torch.eye(len(knots), dtype=y.dtype, device=y.device)
        at_knots = torch.linalg.solve(
            weighted.mT @ basis + ridge, weighted.mT @ torch.where(seen, y - least, 0.0).mT.unsqueeze(-1)
        )
        curve.values.data = _CURVE_SCALE * at_knots.squeeze(-1)
        curves.append(curve)
    return curves


def mean_of(features: Sequence[Feature], x: Tensor, num_channels: int, num_knots: int) -> Mean:
    """What all groups share at x: a piecewise-linear function of each number, waves, and a value for each category."""
    shape = torch.Size([num_channels])
    means: list[Mean] = []
    for place, feature in enumerate(features):
        own = x[:, place]
        if feature.period is not None:
            means.append(FourierMean(_HARMONICS, feature.period, shape, place))
        elif feature.kind == "category":
            means.append(PiecewiseLinearMean(torch.arange(float(len(feature.levels))), shape, place))
        elif len(own.unique()) > 1:
            knots = PiecewiseLinearMean.knots_of(own, min(num_knots, max(2, len(own) // _ROWS_PER_KNOT)))
            means.append(PiecewiseLinearMean(knots, shape, place))
    if not means:
        return ConstantMean(batch_shape=shape)
    return means[0] if len(means) == 1 else AdditiveMean(means)


def model_of(
    columns: Sequence[Column],
    features: Sequence[Feature],
    data: GroupedDataset,
    num_channels: int,
    num_knots: int,
    hidden: Sequence[int],
    kernel: Kernel | None = None,
    covariates: Sequence[Covariate] = (),
    curve: bool = False,
) -> FGPVAE:
    """The default model, in float64, before its linear start. With `curve`, groups scale a common curve."""
    parts = [column.elements() for column in columns]
    likelihood = ColumnLikelihood(parts)
    sizes = [column.num_elements for column in columns]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    logged = [start for start, column in zip(starts, columns, strict=True) if column.logged]
    x = data.features().x
    front = len(features) + 2 * len(covariates)
    num_levels = x.shape[-1] - front
    if kernel is None:
        curves = curves_of(features, data) if curve else ()
        kernel = kernel_of(features, num_levels, num_channels, front, curves)
    block = LocalChannels(num_channels, kernel, mean_of(features, x, num_channels, num_knots))
    encoder = LinearEncoder(data.y_shape, num_channels, hidden, logged)
    decoder = LinearDecoder(num_channels, likelihood.output_shape(), hidden)
    effects = [covariate.feature_map(len(features) + 2 * place) for place, covariate in enumerate(covariates)]
    prior = FactorizedGPPrior([block], effects=effects) if effects else FactorizedGPPrior([block])
    return FGPVAE(encoder, decoder, prior, likelihood).double()


def column_evidence(
    data: GroupedDataset, features: Sequence[Feature], first_level: int, num_knots: int, curve: bool
) -> Tensor:
    """Log evidence of one Gaussian process for each column, (K,), its hyperparameters fitted by L-BFGS.

    The columns are the channels of one prior, and their noise is that of its pseudo-observations.

    Args:
        data: Real columns; gaps are masked.
        features: The columns of x.
        first_level: The column of x of the first code of inner groups.
        num_knots: Of the mean over each number, at most.
        curve: Whether groups scale a common curve.
    """
    size = data.y_shape[0]
    members = data.features().x
    shape = torch.Size([size])
    curves = curves_of(features, data) if curve else ()
    kernel = kernel_of(features, members.shape[-1] - first_level, size, first_level, curves)
    block = LocalChannels(size, kernel, mean_of(features, members, size, num_knots))
    prior = FactorizedGPPrior([block])
    noise = torch.nn.Parameter(torch.full(shape, -2.3, dtype=torch.float64, device=members.device))
    batch = thinned(data, size, 15_000)
    x, y, seen = padded_features(batch), batch.y.double(), batch.observed
    parameters = [*(p for p in prior.parameters() if p.requires_grad), noise]

    def evidence() -> Tensor:
        variance = torch.where(seen, noise.exp(), 1e12)  # a gap: the same constant for every transform
        (posterior,) = prior.condition(x, y, variance).blocks
        return posterior.log_evidence().sum(0)

    units = [torch.ones_like(p) for p in parameters]
    descend(lambda: -evidence().sum() / seen.sum(), parameters, _EVIDENCE_STEPS, units)
    with torch.no_grad():
        return evidence()
