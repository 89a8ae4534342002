r"""A linear start: the model begins as an exact multi-output Gaussian process.

A VAE with random networks has to discover what a Gaussian process knows at once. With a `LinearEncoder` and a
`LinearDecoder` whose residual networks are zero, the model is the linear model of coregionalization

    y_k(x) = offset_k + sum_j W_kj z_j(x) + noise_k,   z_j ~ GP(m_j, k_j)

`linear_start` sets W by principal components, kernels and means by the scores, and the noise by what is left. Then
L-BFGS maximizes the ELBO of the whole data set over everything but the residual networks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, DataError, NonFiniteError
from fgp_gpytorch.models._effects_start import set_effects
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder
from fgp_gpytorch.nets.linear import zero_last_layer
from fgp_gpytorch.prior import ChannelBlock, LocalChannels

_IMPUTATIONS = 30  # sweeps of the principal components over missing entries
_SMALLEST_NOISE = 0.05  # of a column's variance, at the start of L-BFGS
_ROUNDING = 1e-6  # of a column's variance: the variance of an error in every value
_HARDLY = 0.1  # of an element's variance
_FEW, _MANY = 15_000, 45_000  # members times channels that L-BFGS sees
_STARTING = 4_000_000  # values of y that the start sees
_ALTERNATIONS = 2  # of L-BFGS and the effects
_ROUNDS, _WORTH = 10, 0.005  # of L-BFGS, each of which must gain so many nats an element, if y is not Gaussian
_MEMBERS_PER_CHANNEL = 50  # fewer of a thinned data set would overfit the loadings
_LARGEST_COST = 2e8  # of one evaluation of the ELBO: sum over groups of L Q^3
_LARGEST_GROUP = 200  # members of a group that L-BFGS sees
_SHORTEST = 0.05  # lengthscale, of the spacing
_TOO_FAR = 1e6  # nats an element, worse than the last point
_MOST_DRAWS = 32  # points of the expectation over z
_VALUES = 2**20  # elements of y that are read at a time from a data set beyond memory


def principal_components(y: Tensor, observed: Tensor | None, num_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilistic principal components of rows with missing entries.

    Missing entries are imputed by their conditional mean, in turn with the components, as in expectation maximization
    (Tipping and Bishop 1999, "Probabilistic principal component analysis").

    Args:
        y: Rows, (N, K).
        observed: True where an entry was observed, (N, K); None for everywhere.
        num_components: L.

    Returns:
        Loadings W (K, L) for scores of variance 1, the means (K,), and all eigenvalues of the covariance, (K,),
        descending. If L > K, the last loadings are 0.

    Examples:
        >>> y = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64)
        >>> loadings, mean, eigenvalues = principal_components(y, None, num_components=1)
        >>> loadings @ loadings.mT  # the covariance of the rows
        tensor([[0.6667, 1.3333],
                [1.3333, 2.6667]], dtype=torch.float64)
    """
    size = y.shape[-1]
    seen = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    number = seen.sum(0).clamp_min(1)
    filled = torch.where(seen, y, torch.where(seen, y, 0.0).sum(0) / number)
    rank = min(num_components, size)
    offset, eigenvalues, own = filled.mean(0), filled.new_zeros(size), filled.new_zeros(size, rank)
    for _ in range(1 if bool(seen.all()) else _IMPUTATIONS):
        offset = filled.mean(0)
        centred = filled - offset
        eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / len(y))
        eigenvalues, vectors = eigenvalues.flip(0).clamp_min(0), vectors.flip(1)
        noise = eigenvalues[rank:].mean() if rank < size else 0.0 * eigenvalues.sum()
        own = vectors[:, :rank]
        shrunk = (1 - noise / eigenvalues[:rank].clamp_min(1e-30)).clamp(0, 1)
        filled = torch.where(seen, y, offset + (centred @ own * shrunk) @ own.mT)
    loadings = y.new_zeros(size, num_components)
    loadings[:, :rank] = own * eigenvalues[:rank].sqrt()
    sign = loadings.sum(0).sign()  # the same on every machine
    return loadings * torch.where(sign == 0, 1.0, sign), offset, eigenvalues


def linear_start(model: Any, data: GroupedDataset, iterations: int, rotation: str) -> float:
    """Start a model as a linear Gaussian-process model of the data. `FGPVAE.initialize` documents it.

    Returns:
        The ELBO of the groups that L-BFGS saw, nats an observed element.
    """
    encoder, decoder = model.encoder, model.decoder
    if not isinstance(encoder, LinearEncoder) or not isinstance(decoder, LinearDecoder):
        raise ArgumentError(
            f"initialize: expected a LinearEncoder and a LinearDecoder, got {type(encoder).__name__} and "
            f"{type(decoder).__name__}. Try FGPVAE(LinearEncoder(data.y_shape, L), LinearDecoder(L, data.y_shape), ...)"
        )
    iterations = check.count(iterations, "iterations", least=0)
    check.choice(rotation, "rotation", ("components", "columns"))
    with in_float64(model):
        device, channels = encoder.loadings.device, model.prior.num_channels
        batch = thinned(data, channels, _MANY).to(device, torch.float64)
        set_start(model, most_of(data, channels)[:].to(device, torch.float64), rotation)
        return maximize(model, data, batch, iterations, in_two=True)


def refine(model: Any, data: GroupedDataset, iterations: int, thin: bool) -> float:
    """Further steps of L-BFGS from where the model stands. Returns the ELBO, nats an observed element."""
    with in_float64(model):
        batch = thinned(data, model.prior.num_channels, _FEW if thin else _MANY).to(
            next(model.parameters()).device, torch.float64
        )
        return maximize(model, data, batch, iterations)


@contextmanager
def in_float64(model: Any) -> Iterator[None]:
    """Networks and likelihood in float64, in which L-BFGS converges; afterwards in their own dtype."""
    parts = [model.encoder, model.decoder, model.likelihood]
    dtypes = [next((p.dtype for p in part.parameters()), torch.float64) for part in parts]
    try:
        for part in parts:
            part.double()
        yield
    finally:
        for part, dtype in zip(parts, dtypes, strict=True):
            part.to(dtype)


def thinned(data: GroupedDataset, channels: int, most: int) -> GroupedBatch:
    """The groups and members that L-BFGS sees.

    Examples:
        >>> data = GroupedDataset(y=torch.rand(3000), x=torch.rand(3000), group=torch.arange(3000) // 10)
        >>> len(data), thinned(data, channels=4, most=1000).num_groups  # 25 groups times 10 members times 4 channels
        (300, 25)
    """
    return thinned_data(data, channels, most)[:]


def thinned_data(data: GroupedDataset, channels: int, most: int, cost: float = _LARGEST_COST) -> GroupedDataset:
    """Evenly spaced groups. Half of what a large group keeps is evenly spaced members, half a run of neighbours.

    The former tell long lengthscales, the latter short ones.

    Args:
        data: The data set.
        channels: L.
        most: Members times channels.
        cost: Of one evaluation of the ELBO, at most: sum over groups of L Q^3.
    """
    if int(data.group_sizes.max()) > _LARGEST_GROUP:
        first = data.group_sizes.cumsum(0) - data.group_sizes
        group = data.features().group
        place = torch.arange(data.num_members, device=group.device) - first[group]
        half, size = _LARGEST_GROUP // 2, data.group_sizes[group]
        step = torch.where(size > _LARGEST_GROUP, (size.double() / half).ceil().long(), 1)
        start = (size - half) // 2
        data = data.select((place % step == 0) | ((place >= start) & (place < start + half)))
    size = int(data.group_sizes.max())
    groups = min(cost / (channels * size**3), len(data) * most / (channels * data.num_members), len(data))
    groups = max(2, int(groups))
    if len(data) > groups:
        data = data.subset(torch.linspace(0, len(data) - 1, groups).long().unique())
    return data


def most_of(data: GroupedDataset, channels: int) -> GroupedDataset:
    """The groups and members of which the start computes moments. They may be many more than L-BFGS sees."""
    return thinned_data(data, channels, max(_MANY, channels * _STARTING // data.y_shape.numel()), math.inf)


@torch.no_grad()
def set_start(model: Any, batch: GroupedBatch, rotation: str) -> None:
    """Set networks, prior and likelihood from principal components of the working values."""
    encoder, decoder, likelihood = model.encoder, model.decoder, model.likelihood
    assert isinstance(encoder, LinearEncoder)
    assert isinstance(decoder, LinearDecoder)
    for network in (encoder.residual, decoder.residual):
        if network is not None:
            zero_last_layer(network)
    mask = batch.mask
    y = batch.y[mask]
    observed = None if batch.y_mask is None else batch.y_mask[mask].flatten(1)
    rows = encoder.working_values(y)
    loadings, offset, _ = principal_components(rows, observed, encoder.num_channels)
    seen = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
    number = seen.sum(0).clamp_min(1)
    variance = torch.where(seen, (rows - offset).square(), 0.0).sum(0) / number
    if rotation == "columns":
        loadings = torch.zeros_like(loadings)
        for channel in range(encoder.num_channels):
            column = channel % len(offset)
            loadings[column, channel] = variance[column].sqrt() * (0.3 if channel >= len(offset) else 1.0)
    encoder.loadings.copy_(loadings)
    encoder.offset.copy_(offset)
    encoder.log_variance.copy_((0.1 * variance).clamp_min(1e-12).log())
    scores, _ = encoder(y, None if observed is None else observed.reshape(y.shape))
    left = torch.where(seen, (rows - offset - scores @ loadings.mT).square(), 0.0).sum(0) / number
    noise = torch.maximum(left, _SMALLEST_NOISE * variance)
    noise = torch.where(noise > 0, noise, noise.mean().clamp_min(1e-12))
    encoder.log_variance.copy_(noise.log())
    seen_y = None if observed is None else observed.reshape(y.shape)
    likelihood.initialize(y, seen_y, noise.reshape(y.shape[1:]))
    first, slope = link(likelihood, y, seen_y)
    places = likelihood.element_outputs(y.shape[1:]).to(y.device)
    decoder.offset.copy_(first)
    decoder.loadings.zero_()
    decoder.loadings[places] = loadings / slope.unsqueeze(-1)
    set_prior(model.prior.blocks, batch.x[mask], scores, batch)


def link(likelihood: Any, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output without latents, (O,), and the slope of each element's mean in its own output, (K,)."""
    first = likelihood.starting_output(y, observed)
    with torch.enable_grad():
        output = first.clone().requires_grad_()
        mean = likelihood.mean(output.unsqueeze(0))
        (slope,) = torch.autograd.grad(mean.sum(), output)
    places = likelihood.element_outputs(y.shape[1:]).to(y.device)
    return first.flatten(), slope.flatten()[places].abs().clamp_min(0.05)


@torch.no_grad()
def set_prior(blocks: Any, x: Tensor, scores: Tensor, batch: GroupedBatch) -> None:
    """Set means by least squares on the scores, lengthscales by the spread and spacing of x, and variances."""
    spacing, spread = spacing_of(batch)
    for block, z in zip(blocks, scores.split([block.num_channels for block in blocks], -1), strict=True):
        fit_mean(block, x, z)
        for kernel in _with_lengthscale(block):
            start = _own(kernel, torch.maximum(spread / 4, 2 * spacing))
            shape = kernel.lengthscale.shape
            kernel.lengthscale = (start if shape[-1] == len(start) else start.mean()).expand(shape).clone()
        if isinstance(block, LocalChannels):
            scale_kernel(block, x, z)


@torch.no_grad()
def limit_lengthscales(blocks: Any, batch: GroupedBatch) -> None:
    """Lengthscales of at least a twentieth of the spacing of x.

    Neighbours are independent there. Much shorter ones make a covariance inexact.
    """
    spacing, _ = spacing_of(batch)
    for block in blocks:
        for kernel in _with_lengthscale(block):
            least = _own(kernel, spacing) * _SHORTEST
            least = least if kernel.lengthscale.shape[-1] == len(least) else least.min()
            kernel.lengthscale = torch.maximum(kernel.lengthscale, least.to(kernel.lengthscale))


def _with_lengthscale(block: ChannelBlock) -> Iterator[Kernel]:
    """The kernels of a block with a lengthscale to learn in the units of x: periodic ones have none."""
    for kernel in block.modules():
        if not isinstance(kernel, Kernel) or not kernel.has_lengthscale or hasattr(kernel, "period_length"):
            continue
        if kernel.raw_lengthscale.requires_grad:
            yield kernel


def _own(kernel: Kernel, values: Tensor) -> Tensor:
    """The values (D,) of the features that a kernel takes."""
    dims = kernel.active_dims
    return values if dims is None else values[torch.as_tensor(dims).to(values.device)]


def spacing_of(batch: GroupedBatch) -> tuple[Tensor, Tensor]:
    """Median distance of neighbouring x inside groups, and the 5 to 95 % range of x, for each feature, (D,)."""
    ordered = torch.where(batch.mask.unsqueeze(-1), batch.x, torch.inf).sort(1).values
    steps = ordered.diff(dim=1)
    spacing, spread = [], []
    for column, own in zip(steps.unbind(-1), batch.x[batch.mask].unbind(-1), strict=True):
        positive = column[column.isfinite() & (column > 0)]
        low, high = own.quantile(0.05), own.quantile(0.95)
        width = high - low if high > low else own.max() - own.min()
        width = width if width > 0 else torch.ones_like(width)
        spread.append(width)
        spacing.append(positive.median() if len(positive) else width / 10)
    return torch.stack(spacing), torch.stack(spread)


def fit_mean(block: ChannelBlock, x: Tensor, z: Tensor, iterations: int = 50) -> None:
    """Least squares of the scores z (N, J) on the block's mean at x (N, D), with a slight ridge."""
    parameters = [p for p in block.mean_module.parameters() if p.requires_grad]
    if not parameters:
        return
    with torch.enable_grad():
        optimizer = torch.optim.LBFGS(parameters, max_iter=iterations, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            mean = block.prior_mean(x.to(parameters[0].dtype).unsqueeze(0)).mT  # (1, N, J or 1)
            loss = (mean - z).square().mean() + 1e-4 * sum(p.square().mean() for p in parameters)
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()


def scale_kernel(block: LocalChannels, x: Tensor, z: Tensor) -> None:
    """Scale the kernel so that its variance is that of the scores about their mean."""
    dtype = block.covariance(x[:1].unsqueeze(0), x[:1].unsqueeze(0)).dtype
    own = x.to(dtype)[:: max(1, len(x) // 200)]
    now = block.covariance(own.unsqueeze(0), own.unsqueeze(0)).diagonal(dim1=-2, dim2=-1).mean((0, -1))  # (J or 1,)
    target = (z - block.prior_mean(x.to(dtype).unsqueeze(0)).mT[0]).square().mean(0).clamp_min(1e-4)
    ratio = (target if len(now) > 1 else target.mean()) / now
    for module in block.kernel.modules():
        for name in ("outputscale", "constant", "variance"):
            raw = getattr(module, f"raw_{name}", None)
            if isinstance(module, Kernel) and raw is not None and raw.requires_grad:
                value = getattr(module, name)
                own_ratio = ratio if ratio.numel() == 1 or value.shape[:1] == ratio.shape else ratio.mean()
                own_ratio = own_ratio.reshape(-1, *[1] * (value.dim() - 1)) if value.dim() else own_ratio.mean()
                setattr(module, name, value * own_ratio)


def maximize(model: Any, data: GroupedDataset, batch: GroupedBatch, iterations: int, in_two: bool = False) -> float:
    """Maximize the ELBO by L-BFGS over everything but the residual networks. Returns it, nats an element.

    Args:
        model: The model.
        data: All groups.
        batch: The groups that L-BFGS sees.
        iterations: Of L-BFGS.
        in_two: Whether kernels and noise go first, with loadings and means as they are. Then all go together: in
            several rounds if an element is not Gaussian, because L-BFGS then takes longer.
    """
    draws, errors = design(model.prior.num_channels).to(batch.y.device), smallest_errors(data, batch)
    with linear_alone(model), evaluation_mode(model):
        offset = model.decoder.offset  # the means of the channels shift y already
        effects = model.prior.effects
        fixed = [offset, *(() if effects is None else effects.parameters())]
        if not may_move_loadings(model, data, batch):
            fixed.append(model.decoder.loadings)
        everything = [p for p in model.parameters() if p.requires_grad and all(p is not other for other in fixed)]
        late = [*model.decoder.parameters(), *(p for b in model.prior.blocks for p in b.mean_module.parameters())]
        early = [p for p in everything if all(p is not other for other in late)]
        some = None if effects is None else most_of(data, model.prior.num_channels)
        rounds = _ROUNDS if model.likelihood.constant_variance() is None else 1
        for parameters, most in ((early, 1), (everything, rounds)) if in_two else ((everything, 1),):
            for _ in range(1 if some is None else _ALTERNATIONS):
                if some is not None:
                    set_effects(model, some)
                climb(model, batch, draws, errors, parameters, iterations, most)
        limit_lengthscales(model.prior.blocks, batch)
        if some is not None:
            set_effects(model, some)
            model.effects_seen = data.labels_digest
        with torch.no_grad():
            return float(elbo(model, batch, draws))


def may_move_loadings(model: Any, data: GroupedDataset, batch: GroupedBatch) -> bool:
    """Whether L-BFGS may move the loadings: it sees all members, or enough of them for the channels.

    Else they stay principal components of many more members.
    """
    seen = int(batch.mask.sum())
    return seen == data.num_members or seen >= _MEMBERS_PER_CHANNEL * model.prior.num_channels


def climb(
    model: Any, batch: GroupedBatch, draws: Tensor, errors: Tensor, parameters: list[nn.Parameter], iterations: int,
    rounds: int = 1,
) -> None:  # fmt: skip
    """Maximize the ELBO over some parameters. Rounds end before their number if one gains little.

    L-BFGS moves a loading in units of the noise of its element, because a small noise makes the ELBO steep there.
    """
    last = math.inf
    for _ in range(rounds):
        units = [_units(model) if p is model.decoder.loadings else torch.ones_like(p) for p in parameters]
        found = descend(
            lambda: -elbo(model, batch, draws) + rounding(model.likelihood, batch, errors), parameters, iterations,
            units,
        )  # fmt: skip
        if not last - found >= _WORTH:  # without iterations neither is finite
            return
        last = found


def descend(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], iterations: int, units: Sequence[Tensor]
) -> float:
    """Minimize a loss by L-BFGS. The parameters end at the best point that it saw.

    A trial step of the line search may go where the loss is not finite, or a covariance is not positive definite. It
    counts as much worse, so that L-BFGS tries a shorter one.

    Args:
        loss: The loss of the parameters as they stand.
        parameters: What L-BFGS moves.
        iterations: At most; 0 leaves the parameters.
        units: Of the steps of each parameter, its shape.

    Returns:
        The loss there; infinity without iterations.

    Raises:
        DataError, NonFiniteError: If the loss raises them where the parameters are.
    """
    if not iterations:
        return math.inf
    kept = [p.detach().clone() for p in parameters]
    steps = [torch.zeros_like(p).requires_grad_() for p in parameters]
    optimizer = torch.optim.LBFGS(steps, max_iter=iterations, line_search_fn="strong_wolfe", history_size=20)
    best, seen = kept, torch.tensor(math.inf)

    def closure() -> Tensor:
        nonlocal best, seen
        for p, start, unit, step in zip(parameters, kept, units, steps, strict=True):
            p.data = start + unit * step.detach()
            p.grad = None
        try:
            found = loss()
            found.backward()
        except (DataError, NonFiniteError):  # DataError: a covariance of extreme lengthscales
            if not seen.isfinite():
                raise
            for step in steps:
                step.grad = torch.zeros_like(step)
            return seen + _TOO_FAR
        for p, unit, step in zip(parameters, units, steps, strict=True):
            step.grad = torch.zeros_like(step) if p.grad is None else unit * p.grad
        found = found.detach()
        if bool(found < seen):
            best, seen = [p.detach().clone() for p in parameters], found
        return found

    optimizer.step(closure)
    for p, own in zip(parameters, best, strict=True):
        p.data = own
    return float(seen)


def _units(model: Any) -> Tensor:
    """The standard deviation of the noise of each row of the loadings, (O, 1), at most 1."""
    noise = model.likelihood.constant_variance()
    if noise is None:
        return torch.ones_like(model.decoder.loadings)
    return noise.detach().reshape(-1, 1).sqrt().clamp(1e-4, 1.0).expand_as(model.decoder.loadings)


def elbo(model: Any, batch: GroupedBatch, draws: Tensor) -> Tensor:
    """ELBO of a linear model per observed element.

    The expectation over z is exact for Gaussian elements. Others take a fixed design of points z = mean +
    sqrt(variance) draw.
    """
    pseudo = model.encode(batch)
    posterior = condition(model, batch, pseudo)
    mean, variance = posterior.marginals
    observed = None if pseudo.mask is None else batch.observed
    noise = model.likelihood.constant_variance()
    z = mean if noise is not None else mean + variance.sqrt() * draws[:, None, None, :].to(mean.dtype)
    output = model.decode_observed(z, pseudo.x, batch.y.shape[2:], pseudo.mask)
    log_likelihood = model.likelihood.score(output, batch.y, observed).log_prob
    log_likelihood = log_likelihood.reshape(-1, batch.num_groups).mean(0).sum()
    if noise is not None:  # E (y - W z)^2 = (y - W mean)^2 + W^2 variance
        spread = variance.to(noise.dtype) @ model.decoder.loadings.square().mT / noise.reshape(-1)
        log_likelihood = log_likelihood - 0.5 * (spread * batch.observed.flatten(2)).sum()
    bound = log_likelihood - posterior.kl.sum() + model.prior.log_hyperprior()
    return bound / batch.observed.sum()


def smallest_errors(data: GroupedDataset, batch: GroupedBatch) -> Tensor:
    """The variance of an error that every value of an element has at least, (K,).

    It is that of rounding. Equal rows, or fewer groups than channels, would otherwise make the noise 0 and the ELBO
    infinite. An element that changes in some groups, but hardly in those of the batch, has its whole variance as noise.
    """
    whole = _whole_variance(data, batch)
    own = _variance(batch.y[batch.mask].flatten(1), batch.observed[batch.mask].flatten(1))
    return torch.where(own < _HARDLY * whole, whole, _ROUNDING * own)


def _whole_variance(data: GroupedDataset, batch: GroupedBatch) -> Tensor:
    """The variance of each element over all members, (K,), in the dtype of a batch of them."""
    members = data.members
    if not data.is_lazy:
        y = members.y.to(batch.y).flatten(1)
        seen = None if members.y_mask is None else members.y_mask.to(batch.y.device).flatten(1)
        return _variance(y, torch.ones_like(y, dtype=torch.bool) if seen is None else seen)
    shift = batch.y[batch.mask].flatten(1).mean(0)  # near the mean, which keeps the digits of the difference below
    at_once = max(1, _VALUES // (int(data.group_sizes.max()) * len(shift)))
    first, second = torch.zeros_like(shift), torch.zeros_like(shift)
    for start in range(0, len(data), at_once):
        part = data[start : start + at_once]
        y = part.y[part.mask].to(batch.y).flatten(1) - shift
        first, second = first + y.sum(0), second + y.square().sum(0)
    return (second / data.num_members - (first / data.num_members).square()).clamp_min(0.0)


def _variance(y: Tensor, seen: Tensor) -> Tensor:
    """The variance of the observed values of each column, (K,)."""
    number = seen.sum(0).clamp_min(1)
    mean = torch.where(seen, y, 0.0).sum(0) / number
    return torch.where(seen, (y - mean).square(), 0.0).sum(0) / number


def rounding(likelihood: Any, batch: GroupedBatch, errors: Tensor) -> Tensor:
    """Nats an element that the log likelihood loses if values have errors of these variances (K,)."""
    variances = likelihood.element_variances()
    if variances is None:
        return batch.y.new_zeros(())
    number = batch.observed.flatten(2).sum((0, 1))
    loss = 0.5 * number * errors / variances.reshape(-1).to(errors.dtype)
    return torch.where(loss.isnan(), 0.0, loss).sum() / number.sum()


def condition(model: Any, batch: GroupedBatch, pseudo: Any) -> Any:
    """The posterior. Shared effects have the mean of their weights."""
    effects = model.prior.effects
    if effects is None:
        return model.condition(batch, pseudo)
    return model.prior.condition(*pseudo, weights=effects.mean.detach())


def design(num_channels: int) -> Tensor:
    """Points (S, L) of -1 and 1 with mean 0 and covariance I, if L is at most `_MOST_DRAWS` / 2.

    They are the rows of a Hadamard matrix and their negatives. The expectation of a quadratic is then exact, so the
    expected log likelihood of a linear Gaussian model is.
    """
    size = min(max(2, 1 << (num_channels - 1).bit_length()), _MOST_DRAWS // 2)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    columns = torch.arange(num_channels) % size
    matrix = matrix[:, columns]
    return torch.cat([matrix, -matrix])


class TiedEncoder(nn.Module):
    """A linear encoder with the loadings, offset and noise of the decoder and the likelihood."""

    takes_observed = True

    def __init__(self, encoder: LinearEncoder, decoder: LinearDecoder, likelihood: Any) -> None:
        super().__init__()
        self.__dict__["parts"] = encoder, decoder, likelihood  # their parameters belong to the model

    def tensors(self) -> dict[str, Tensor]:
        """The encoder's parameters as functions of those of the decoder and the likelihood."""
        encoder, decoder, likelihood = self.__dict__["parts"]
        variance = likelihood.constant_variance().reshape(-1).expand(len(encoder.offset))
        return {"loadings": decoder.loadings, "offset": decoder.offset, "log_variance": variance.log()}

    def forward(self, y: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pseudo-observations of the linear path."""
        encoder = self.__dict__["parts"][0]
        return torch.func.functional_call(encoder, self.tensors(), (y, observed))


@contextmanager
def linear_alone(model: Any) -> Iterator[None]:
    """The model without its residual networks, which are zero. The encoder of a Gaussian model follows its decoder."""
    encoder, decoder = model.encoder, model.decoder
    kept = encoder.residual, decoder.residual
    encoder.residual = decoder.residual = None
    if model.likelihood.constant_variance() is not None:
        model.encoder = TiedEncoder(encoder, decoder, model.likelihood)
    try:
        yield
    finally:
        if isinstance(model.encoder, TiedEncoder):
            with torch.no_grad():
                for name, value in model.encoder.tensors().items():
                    getattr(encoder, name).copy_(value)
        model.encoder = encoder
        encoder.residual, decoder.residual = kept
        for p in model.parameters():
            p.grad = None
