"""Posteriors of blocks whose prior mean contains shared effects."""

from collections.abc import Callable

import torch
from torch import Tensor

from fgp_gpytorch.gaussian import LowRankFactor, low_rank_factor
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior, with_new_members
from fgp_gpytorch.prior.caching import cached_by_grad_mode


class ShiftedBlock:
    """A block whose prior mean has an effect added to it.

    Args:
        block: The block.
        effect: From x (*b, G, Q, D) to (*b, G, J, Q).
    """

    def __init__(self, block: BlockPrior, effect: Callable[[Tensor], Tensor]) -> None:
        self.block, self.effect = block, effect
        self.num_channels, self.is_global = block.num_channels, block.is_global
        self.couples_channels = block.couples_channels

    def prior_mean(self, x: Tensor) -> Tensor:
        """Prior mean at x (*b, G, Q, D) with the effect, (*b, G, J, Q)."""
        return self.block.prior_mean(x) + self.effect(x)

    def add_mean(self, values: Tensor, x: Tensor) -> Tensor:
        """Values (*b, G, J, Q) plus the prior mean and the effect at x."""
        return self.block.add_mean(values, x) + self.effect(x)

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The covariance of the block."""
        return self.block.covariance(x1, x2)

    def covariance_root(self, x: Tensor) -> Tensor:
        """The root of the block."""
        return self.block.covariance_root(x)


class EffectsBlockPosterior(BlockPosterior):
    r"""Posterior of a block with the weights of its shared effects integrated out, exactly.

    With w = m_w + L v, v ~ N(0, I), z = m + Phi_e m_w + Psi (u, v) for Psi = [Phi, Phi_e L]. The precision of (u, v) is

        [ B             Phi' R^2 Phi_e L      ]  =  [ C   0 ] [ C'  W ],   C C' = B,   W = C^-1 Phi' R^2 Phi_e L
        [ .             D + W'W               ]     [ W'  E ] [ 0   E']    D = E E'

    - For groups that q(w) has not seen, q(w) is the prior of w, which their pseudo-observations update:
      D = I + L' Phi_e' (R^2 - R^2 Phi B^-1 Phi' R^2) Phi_e L.
    - For groups that q(w) was trained on, v keeps N(0, I), and only u is conditioned on them: D = I.

    Args:
        base: The posterior given the mean of the weights.
        root: From x (*b, G, Q, D) to Phi_e L of the block, (*b, G, J, Q, M).
        seen: Whether q(w) was trained on these groups.
    """

    def __init__(self, base: BlockPosterior, root: Callable[[Tensor], Tensor], seen: bool) -> None:
        super().__init__(base.block, base.x, base.precision, base.residual)
        self.effect_root, self.seen = root, seen

    @cached_by_grad_mode
    def members(self) -> LowRankFactor:
        """q(u, v) at the members."""
        return self.whitened()

    def whitened(self, x_new: Tensor | None = None) -> LowRankFactor:
        """q(u, v), and Psi at the members (and then x_new): (*b, G, sets of channels), rows by channel, then member."""
        x, precision, residual = with_new_members(self.x, self.precision, self.residual, x_new)
        plain, effect = self.block.covariance_root(x), self.effect_root(x)
        if self.block.couples_channels:
            plain = plain.flatten(-3, -2).unsqueeze(-3)
            precision, residual = precision.flatten(-2).unsqueeze(-2), residual.flatten(-2).unsqueeze(-2)
        effect = effect_rows(effect, self.block.couples_channels)
        plain = plain.expand(*effect.shape[:-1], -1)
        root = torch.cat([plain, effect], dim=-1)
        if not self.seen:
            return low_rank_factor(root, precision, residual)
        given = low_rank_factor(plain, precision, residual)
        corner = torch.linalg.solve_triangular(
            given.cholesky, plain.mT @ (precision.unsqueeze(-1) * effect), upper=False
        )  # W
        identity = torch.eye(effect.shape[-1], dtype=x.dtype, device=x.device).expand(*corner.shape[:-2], -1, -1)
        above = torch.cat([given.cholesky, torch.zeros_like(corner)], dim=-1)
        cholesky = torch.cat([above, torch.cat([corner.mT, identity], dim=-1)], dim=-2)
        weights = torch.nn.functional.pad(given.weights, (0, effect.shape[-1]))
        return LowRankFactor(root, precision, residual, cholesky, weights)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        mean, variance = self._at(self.members)
        return self.block.add_mean(mean, self.x), variance

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        mean, variance = (part[..., self.x.shape[-2] :] for part in self._at(self.whitened(x_new)))
        return self.block.add_mean(mean, x_new), variance

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J): of z, or for seen groups the mean over q(w) of that given w."""
        return self._shares(self.members.kl())

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J), or for seen groups the mean over q(w) of that given w."""
        factor = self.members
        value = factor.log_evidence()
        if self.seen:  # less 1/2 tr (Phi_e L)' (K + R^-2)^-1 Phi_e L
            size = self.effect_root(self.x).shape[-1] * (self.block.num_channels if self._coupled else 1)
            effect, corner = factor.root[..., -size:], factor.cholesky[..., -size:, :-size]
            explained = (factor.precision.unsqueeze(-1) * effect.square()).sum((-2, -1))
            value = value - 0.5 * (explained - corner.square().sum((-2, -1)))
        return self._shares(value)

    @property
    def _coupled(self) -> bool:
        return self.block.couples_channels

    def _at(self, factor: LowRankFactor) -> tuple[Tensor, Tensor]:
        mean, variance = factor.predict_mean(factor.root), factor.predict_variance(factor.root)
        variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        shape = (*mean.shape[:-2], self.block.num_channels, -1)
        return mean.reshape(shape), variance.reshape(shape)

    def _shares(self, value: Tensor) -> Tensor:
        channels = self.block.num_channels
        return (value / channels).expand(*value.shape[:-1], channels) if self._coupled else value


def effect_rows(root: Tensor, couples_channels: bool) -> Tensor:
    """Phi_e L (*b, J, Q, M) by sets of channels: as it is, or block diagonal for a coupled set, (*b, 1, J Q, J M)."""
    if not couples_channels:
        return root
    identity = torch.eye(root.shape[-3], dtype=root.dtype, device=root.device)
    return torch.einsum("...jqm,jk->...jqkm", root, identity).flatten(-2).flatten(-3, -2).unsqueeze(-3)
