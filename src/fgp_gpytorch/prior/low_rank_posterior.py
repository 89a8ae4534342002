"""Posterior of channels whose kernel has a finite feature map, or is seen through inducing points, in O(Q M^2)."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode

FeatureMap = Callable[[Tensor], Tensor]

_NOISE = 0.5  # power of the rounding, in prior variances: it makes the rest of a draw factorizable


class LowRankBlockPosterior(BlockPosterior):
    """Posterior of `LocalChannels` with K = Phi Phi', exact.

    Args:
        block: The block.
        x: Auxiliary features, (*b, G, Q, D).
        precision: R^2 = 1 / sigma^2, (*b, G, J, Q), 0 for a missing member.
        residual: mu less the prior mean, (*b, G, J, Q).
        features: Phi, from x (*b, G, Q, D) to (*b, G, J or 1, Q, M).
    """

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor, features: FeatureMap) -> None:
        super().__init__(block, x, precision, residual)
        self.features, self.root = features, features(x)

    @cached_by_grad_mode
    def factor(self) -> LowRankFactor:
        """q(u): batch (*b, G, J), rows Q."""
        return low_rank_factor(self.root, self.precision, self.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self._at(self.root, self.x)

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        return self._at(self.features(x_new), x_new)

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.factor.kl()

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.factor.log_evidence()

    def whitened(self, x_new: Tensor | None = None) -> LowRankFactor:
        """q(u), and Phi at the members (and then x_new): batch (*b, G, J), rows Q + Q*."""
        if x_new is None:
            return self.factor
        return self.factor._replace(root=torch.cat([self.root, self.features(x_new)], dim=-2))

    def _at(self, root: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # 0 where no feature is: the square root has no gradient there
        variance = self.factor.predict_variance(root)
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return self.block.add_mean(self.factor.predict_mean(root), x), variance


class InducingBlockPosterior(LowRankBlockPosterior):
    r"""Posterior of `LocalChannels` through inducing points X_u, in the form of Titsias (2009).

        Phi(x) = k(x, X_u) L^-T,   L L' = k(X_u, X_u),   k~(x) = k(x, x) - Phi(x) Phi(x)' >= 0
        q(z, u) = p(z | u) q(u),   q(u) = N(w, B^-1) ~ p(u) N(mu | Phi u, sigma^2)
        KL(q(z, u) || p(z, u)) = KL(q(u) || p(u)),   log Z >= log Z of Phi Phi' - 1/2 sum_observed R^2 k~

    The marginals have the variance k~ beside that of Phi u. With this q the ELBO remains a lower bound. It is that of
    exact inference if the points are the members.

    Args:
        block: The block.
        x: Auxiliary features, (*b, G, Q, D).
        precision: R^2 = 1 / sigma^2, (*b, G, J, Q), 0 for a missing member.
        residual: mu less the prior mean, (*b, G, J, Q).
        features: Phi, from x (*b, G, Q, D) to (*b, G, J or 1, Q, M).
        variance: k(x, x), from x (*b, G, Q, D) to (*b, G, J or 1, Q).
    """

    def __init__(
        self,
        block: BlockPrior,
        x: Tensor,
        precision: Tensor,
        residual: Tensor,
        features: FeatureMap,
        variance: FeatureMap,
    ) -> None:
        super().__init__(block, x, precision, residual, features)
        self.variance, self.own_variance = variance, variance(x)

    def log_evidence(self) -> Tensor:
        """The lower bound of log Z, nats, (*b, G, J)."""
        missing = _missing(self.own_variance, self.root)
        return super().log_evidence() - 0.5 * (self.precision * missing).sum(-1)

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint draws at the members (and x_new), (*s, *b, G, J, Q + Q*), of p(z | u) q(u), in O((Q + Q*)^3)."""
        factor = self.whitened(x_new)
        x = self.x if x_new is None else torch.cat([self.x, x_new], dim=-2)
        paths = factor.root @ factor.rsample_weights(sample_shape).unsqueeze(-1)
        rest = torch.randn_like(paths.expand(*paths.shape[:-2], x.shape[-2], 1))
        paths = paths + root_of_rest(self.block.covariance(x, x), factor.root) @ rest
        return self.block.add_mean(paths.squeeze(-1), x)

    def joint_covariances(self) -> list[Tensor]:
        """Posterior covariances of the channels, each (*b, G, Q, Q)."""
        rest = self.block.covariance(self.x, self.x) - self.root @ self.root.mT
        return list((self.factor.covariance(self.root) + rest).unbind(-3))

    def _at(self, root: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = super()._at(root, x)
        own = self.own_variance if x is self.x else self.variance(x)
        return mean, variance + _missing(own, root)

    def whitened_distribution(self) -> dist.TorchDistribution:
        """q of u and of the rest as one Pyro distribution: batch (*b, G), event (J, M + Q)."""
        weights, cholesky = self.factor.weights, self.factor.cholesky
        rank, members = weights.shape[-1], self.x.shape[-2]
        identity = torch.eye(rank + members, dtype=weights.dtype, device=weights.device)
        precision = identity.repeat(*weights.shape[:-1], 1, 1)  # I for the rest: its q is its prior
        precision[..., :rank, :rank] = cholesky @ cholesky.mT
        mean = torch.nn.functional.pad(weights, (0, members))
        return dist.MultivariateNormal(mean, precision_matrix=precision, validate_args=False).to_event(1)


def root_of_rest(covariance: Tensor, root: Tensor) -> Tensor:
    """A root of K - Phi Phi', (*b, Q, Q), from K (*b, Q, Q) and Phi (*b, Q, M)."""
    noise = torch.finfo(root.dtype).eps ** _NOISE * covariance.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    identity = torch.eye(root.shape[-2], dtype=root.dtype, device=root.device)
    return torch.linalg.cholesky(covariance - root @ root.mT + noise * identity)


def _missing(variance: Tensor, root: Tensor) -> Tensor:
    """k(x, x) - Phi(x) Phi(x)'."""
    return (variance - root.square().sum(-1)).clamp_min(0.0)
