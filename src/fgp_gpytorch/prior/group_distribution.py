"""A distribution of groups that is fitted to the posteriors of known groups, in place of the prior."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.gaussian import dense_factor, features_at_points
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.factorized_gp_prior import FactorizedGPPrior
from fgp_gpytorch.prior.independent_channels import IndependentChannels
from fgp_gpytorch.prior.latent_posterior import LatentPosterior
from fgp_gpytorch.prior.posterior import Posterior
from fgp_gpytorch.saving import Configurable

# a, of the mean prior variance at the points; it is part of the definition of w
_NOISE = {torch.float64: 1e-8, torch.float32: 1e-4}
_EXPLAINED = 1e-6  # of the prior variance: no more points where less is left
_CANDIDATES = 1000  # distinct x among which the points are chosen


class GroupDistribution(Configurable, nn.Module):
    r"""A Gaussian, or a mixture of Gaussians, over the latent factors w of a group.

    The prior is w ~ N(0, I), with z(x) = m(x) + A(x) w + e(x) for every block of channels:

    | block | w | A(x) | e(x) |
    | --- | --- | --- | --- |
    | `GlobalChannels`, `CoregionalizedChannels` | the whitened variables u | Phi(x) | 0 |
    | `LocalChannels`, kernel k | L^-1 (z(X) - m(X) + n), n ~ N(0, a I), at points X | k(x, X) L^-T | the rest of k |
    | `IndependentChannels` | nothing: they keep their prior |  | z |

    Here L L' = k(X, X) + a I with a = 1e-8 k (1e-4 k in float32). So a draw continues from the points to any x by the
    prior's conditional distribution p(z(x) | w), coherent over members. `fit` takes the posteriors N(m_g, S_g) of w of
    G groups, and makes

        center c_g = mean(m) + sqrt(1 - h^2) (m_g - mean(m)),   covariance C = h^2 cov(m) + mean(S)
        w ~ 1/G sum_g N(c_g, C)

    The mean and the covariance of this mixture are those of the aggregated posterior 1/G sum_g N(m_g, S_g), for every
    bandwidth h. h = 1 is one Gaussian. A smaller h follows more of the shape, and stays closer to the groups themselves
    (a shrunk kernel density: West 1993; Silverman 1986, Section 6.4). If all posteriors are the prior, so is the fit.

    Shared effects of the prior are added to a draw, with one draw of q(w) for all groups.

    Made by `FactorizedVAE.fit_groups`. It holds for the parameters that the model had then.

    Args:
        num_centers: 1 for one Gaussian, else G.
        num_factors: Length of w.
        num_points: The points of every block of the prior, None for a block without points.
        num_features: D.
        dtype: Of the tensors.

    Attributes:
        centers: c_g, (num_centers, num_factors).
        root: A root of C, (num_factors, num_factors).

    Raises:
        ArgumentError: If a number is not an integer, or is below 1 (below 0 for `num_factors`).

    Examples:
        >>> prior = FactorizedGPPrior([GlobalChannels(2)])
        >>> model = FGPVAE(MLPEncoder([5], 2), MLPDecoder(2, [5]), prior)
        >>> fitted = model.fit_groups(GroupedDataset(torch.rand(6, 5), torch.rand(6), group=[0, 0, 1, 1, 2, 2]))
        >>> fitted.mean.shape, fitted.sample(prior, torch.rand(4, 3, 1)).shape  # four new groups of three members
        (torch.Size([2]), torch.Size([4, 3, 2]))
    """

    centers: Tensor
    root: Tensor

    def __init__(
        self,
        num_centers: int,
        num_factors: int,
        num_points: Sequence[int | None],
        num_features: int,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        num_centers = check.count(num_centers, "num_centers")
        num_factors = check.count(num_factors, "num_factors", least=0)
        self.register_buffer("centers", torch.zeros(num_centers, num_factors, dtype=dtype))
        self.register_buffer("root", torch.eye(num_factors, dtype=dtype))
        for index, number in enumerate(num_points):
            points = None if number is None else torch.zeros(number, num_features, dtype=dtype)
            self.register_buffer(f"points_{index}", points)
        self.num_blocks = len(num_points)

    @classmethod
    @torch.no_grad()
    def fit(
        cls, prior: FactorizedGPPrior, posteriors: Iterable[Posterior], x: Tensor, bandwidth: float, num_points: int
    ) -> "GroupDistribution":
        """Fit the distribution to posteriors.

        Args:
            prior: The prior of the posteriors.
            posteriors: Posteriors of batches of groups.
            x: Auxiliary features of all members, (N, D), from which the points are chosen.
            bandwidth: h, in (0, 1].
            num_points: The most points of a block of channels.

        Raises:
            DataError: If there are fewer than two groups.
        """
        points = [_choose_points(block, x, num_points) for block in prior.blocks]
        means: list[Tensor] = []
        totals: list[Tensor] = []
        for posterior in posteriors:
            assert isinstance(posterior, LatentPosterior)
            moments = [_moments(part, at) for part, at in zip(posterior.blocks, points, strict=True)]
            means.append(torch.cat([mean.flatten(-2) for mean, _ in moments], dim=-1))
            batch = [covariance.sum(0) for _, covariance in moments]  # shape: (S, M, M)
            totals = batch if not totals else [total + part for total, part in zip(totals, batch, strict=True)]
        mean_of = torch.cat(means) if means else x.new_zeros(0, 0)
        if len(mean_of) < 2:
            raise DataError(f"data: expected at least 2 groups, got {len(mean_of)}. Try the training data.")
        middle = mean_of.mean(0)
        apart = mean_of - middle
        covariance = bandwidth**2 * apart.mT @ apart / len(apart)
        matrices = [matrix / len(apart) for total in totals for matrix in total]
        covariance += torch.block_diag(*matrices) if matrices else 0
        centers = middle + math.sqrt(1 - bandwidth**2) * apart if bandwidth < 1 else middle.unsqueeze(0)
        sizes = [None if at is None else len(at) for at in points]
        num_centers, num_factors = centers.shape
        fitted = cls(num_centers, num_factors, sizes, x.shape[-1], prior.dtype).to(x.device)
        fitted.centers.copy_(centers)
        fitted.root.copy_(_root(covariance))
        for index, at in enumerate(points):
            if at is not None:
                fitted.get_buffer(f"points_{index}").copy_(at)
        return fitted

    @property
    def mean(self) -> Tensor:
        """Mean of w, (num_factors,)."""
        return self.centers.mean(0)

    @property
    def covariance(self) -> Tensor:
        """Covariance of w, (num_factors, num_factors)."""
        apart = self.centers - self.mean
        return self.root @ self.root.mT + apart.mT @ apart / len(apart)

    @torch.no_grad()
    def sample(self, prior: FactorizedGPPrior, x: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the latent paths of new groups, coherent over members.

        Args:
            prior: The prior that the distribution was fitted under.
            x: Auxiliary features, (G, Q, D).
            sample_shape: Leading shape s of the draws.

        Returns:
            z, (*s, G, Q, L).

        Raises:
            ArgumentError: If the prior has another number of blocks, or `sample_shape` is not a sequence of integers.
            ShapeError: If `x` has another number of features, or another shape.
            DataError: If `x` is not finite.
        """
        shape = check.as_sample_shape(sample_shape)
        if len(prior.blocks) != self.num_blocks:
            raise ArgumentError(
                f"prior: expected one of {self.num_blocks} blocks of channels, got {len(prior.blocks)}. Try the prior "
                "of the model, or model.fit_groups(data) again."
            )
        check.finite(check.shape(x, "x", ("G", "Q", "D"), "Try x.unsqueeze(0) for one group."), "x")
        x = x.to(prior.dtype)
        here = (*shape, len(x))
        center = torch.randint(len(self.centers), here, device=x.device)
        noise = torch.randn(*here, self.centers.shape[-1], dtype=x.dtype, device=x.device)
        factors = self.centers.to(x.dtype)[center] + noise @ self.root.to(x.dtype).mT
        parts, start = [], 0
        for index, block in enumerate(prior.blocks):
            if isinstance(block, IndependentChannels):
                parts.append(block.sample(x, shape))
                continue
            points = self._buffers[f"points_{index}"]
            same = bool((x == x[:1]).all())  # one decomposition for all groups
            features, rest = _features(block, x[:1] if same else x, points)
            end = start + block.num_whitened * features.shape[-1]
            w = factors[..., start:end].unflatten(-1, (block.num_whitened, -1))  # shape: (*s, G, S, M)
            z = (features @ w.unsqueeze(-1)).squeeze(-1)
            if rest is not None:
                z = z + (_root(rest) @ torch.randn_like(z).unsqueeze(-1)).squeeze(-1)
            parts.append(block.add_mean(z, x))
            start = end
        z = torch.cat(parts, dim=-2)
        return (z if prior.effects is None else z + prior.effects.sample(x, shape)).mT


def _moments(posterior: BlockPosterior, points: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (G, S, M) and covariance (G, S, M, M) of the factors w of a block, S sets for each group."""
    block, x = posterior.block, posterior.x
    if isinstance(block, IndependentChannels):
        return x.new_zeros(len(x), 0, 0), x.new_zeros(len(x), 0, 0, 0)
    if points is None:
        factor, size = posterior.whitened(), block.covariance_root(x).shape[-1]  # weights of shared effects follow
        return factor.weights[..., :size], torch.cholesky_inverse(factor.cholesky)[..., :size, :size]
    # Cov(z(x), w) = A(x) and Cov(w) = I: the regression of w on the pseudo-observations
    features, _ = _features(block, x, points, rest=False)
    factor = dense_factor(block.covariance(x, x), *posterior.observations)
    features = features.expand(*factor.weights.shape, -1)
    explained = torch.linalg.solve_triangular(
        factor.cholesky, factor.root_precision.unsqueeze(-1) * features, upper=False
    )
    identity = torch.eye(features.shape[-1], dtype=x.dtype, device=x.device)
    return factor.predict_mean(features), identity - explained.mT @ explained


def _features(block: BlockPrior, x: Tensor, points: Tensor | None, rest: bool = True) -> tuple[Tensor, Tensor | None]:
    """A at x (G, Q, D), (G, J or 1, Q, M), and the covariance of e, (G, J or 1, Q, Q), None for 0."""
    if points is None:
        return block.covariance_root(x), None
    at = points.to(x.dtype).expand(len(x), -1, -1)
    among = block.covariance(at, at)
    # the points come first: GPyTorch centres on its first argument
    features = features_at_points(among, block.covariance(at, x), "kernel", _NOISE[x.dtype])
    return features, block.covariance(x, x) - features @ features.mT if rest else None


@torch.no_grad()
def _choose_points(block: ChannelBlock, x: Tensor, number: int) -> Tensor | None:
    """The points of a block, (M, D): one after the other where the prior variance given the others is largest.

    This is the pivoted Cholesky factorization of the kernel, averaged over channels (Harbrecht et al. 2012).
    """
    if block.has_factors or isinstance(block, IndependentChannels):
        return None
    if block.couples_channels:
        raise DataError(
            f"prior: expected channels that are independent, or the same factors at every x, got "
            f"{type(block).__name__}. Try CoregionalizedChannels, or generate, which draws from the prior."
        )
    distinct = x.unique(dim=0)
    if len(distinct) > _CANDIDATES:
        distinct = distinct[torch.linspace(0, len(distinct) - 1, _CANDIDATES, device=x.device).round().long()]
    variance = block.covariance(distinct.unsqueeze(-2), distinct.unsqueeze(-2)).squeeze(-1).squeeze(-1).mT  # (J, N)
    left, columns, chosen = variance.clone(), [], []
    for _ in range(min(number, len(distinct))):
        share = (left / variance).mean(0)
        best = int(share.argmax())
        if chosen and float(share[best]) < _EXPLAINED:
            break
        chosen.append(best)
        cross = block.covariance(distinct[[best]].unsqueeze(0), distinct.unsqueeze(0))[0, :, 0]  # shape: (J, N)
        for column in columns:
            cross = cross - column * column[:, [best]]
        pivot = left[:, [best]]
        column = torch.where(pivot > _EXPLAINED * variance[:, [best]], cross / pivot.clamp_min(1e-300).sqrt(), 0.0)
        columns.append(column)
        left = (left - column.square()).clamp_min(0)
    return distinct[chosen]


def _root(covariance: Tensor) -> Tensor:
    """A root of a covariance, negative eigenvalues of rounding taken for zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)
