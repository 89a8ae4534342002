"""The approximate posterior of all latent channels, q(Z | Y, X) of the paper's Section 3."""

from collections.abc import Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from fgp_gpytorch._shapes import as_sample_shape, check_finite, check_floating, check_same_device
from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.prior.block_posterior import BlockPosterior


class LatentPaths(NamedTuple):
    """One set of coherent draws, at the old and at the new members.

    Attributes:
        members: (*s, *b, G, Q, L).
        new: (*s, *b, G, Q*, L).
    """

    members: Tensor
    new: Tensor


class LatentPosterior:
    r"""q(Z | Y, X): J exact GP posteriors and L - J Gaussians per group (paper, Section 3 and Appendix B).

    Made by `FactorizedGPPrior.posterior`. It is a snapshot: after a kernel parameter changes, make a new one.
    Computed when asked, so reading only `mean` costs no KL.
    """

    def __init__(self, blocks: Sequence[BlockPosterior], x: Tensor, mask: Tensor | None) -> None:
        self.blocks = tuple(blocks)
        self.x = x
        self.mask = mask
        self._marginals: dict[bool, tuple[Tensor, Tensor]] = {}  # with gradients and without

    @property
    def mean(self) -> Tensor:
        """Marginal means at x, (*b, G, Q, L)."""
        return self._at_members()[0]

    @property
    def variance(self) -> Tensor:
        """Marginal variances at x, (*b, G, Q, L)."""
        return self._at_members()[1]

    @property
    def kl(self) -> Tensor:
        """KL(q || p) summed over members and channels, nats, (*b, G)."""
        return self.kl_channels.sum(-1)

    @property
    def kl_channels(self) -> Tensor:
        """KL(q || p) of every channel, nats, (*b, G, L)."""
        return torch.cat([_per_channel(b.kl(), b) for b in self.blocks], dim=-1)

    @property
    def kl_blocks(self) -> tuple[Tensor, ...]:
        """KL(q || p) of every block of channels, nats, each (*b, G)."""
        return tuple(_per_channel(b.kl(), b).sum(-1) for b in self.blocks)

    @property
    def log_evidence(self) -> Tensor:
        """log Z(Y, X) of the pseudo-observations, summed over members and channels, nats, (*b, G)."""
        return torch.stack([_per_channel(b.log_evidence(), b).sum(-1) for b in self.blocks]).sum(0)

    def predict(self, x_new: Tensor) -> "LatentPrediction":
        """The posterior at other members of the same groups.

        Args:
            x_new: Auxiliary features, (*b, G, Q*, D).

        Returns:
            An object with `mean` and `variance` (*b, G, Q*, L) and `rsample`.

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            DataError: If x_new is not floating, not finite, or on another device.
        """
        return LatentPrediction(self, self._check_new(x_new))

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at x, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths (a global channel has one value per group). True draws every
                member by itself from its marginal, which is all that a likelihood that factorizes over members needs,
                and cheaper.

        Returns:
            (*s, *b, G, Q, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        shape = as_sample_shape(sample_shape)
        if marginals:
            return _rsample_marginals(self.mean, self.variance, shape)
        return _members_first([(block.rsample(shape), block) for block in self.blocks], self.x.shape[-2])

    def rsample_paths(self, x_new: Tensor, sample_shape: Sequence[int] = ()) -> LatentPaths:
        """Draw z jointly at x and at x_new: one path per group and channel, seen at old and new members.

        Args:
            x_new: Auxiliary features, (*b, G, Q*, D).
            sample_shape: Leading shape s of the draws.

        Returns:
            The same draws at the members (*s, *b, G, Q, L) and at the new ones (*s, *b, G, Q*, L).

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            DataError: If x_new is not floating, not finite, or on another device, or `sample_shape` is no sequence of
                integers.
        """
        x_new, shape = self._check_new(x_new), as_sample_shape(sample_shape)
        old, new = self.x.shape[-2], x_new.shape[-2]
        joint = _members_first([(block.rsample(shape, x_new), block) for block in self.blocks], old + new)
        return LatentPaths(*joint.split([old, new], dim=-2))

    def whitened_distributions(self) -> tuple[dist.TorchDistribution, ...]:
        """q(u) of every block as Pyro distributions, batch (*b, G), event (J, M): z = m + Phi u has no density."""
        return tuple(block.whitened_distribution() for block in self.blocks)

    def _at_members(self) -> tuple[Tensor, Tensor]:
        grad = torch.is_grad_enabled()
        if grad not in self._marginals:
            self._marginals[grad] = _concatenate(self.blocks, [b.marginals() for b in self.blocks], self.x.shape[-2])
        return self._marginals[grad]

    def _check_new(self, x_new: Tensor) -> Tensor:
        expected = (*self.x.shape[:-2], self.x.shape[-1])
        if x_new.dim() != self.x.dim() or (*x_new.shape[:-2], x_new.shape[-1]) != expected:
            front, features = self.x.shape[:-2], self.x.shape[-1]
            raise ShapeError(
                f"x_new: expected (*b, G, Q*, D) = ({', '.join(map(str, front))}, Q*, {features}) for the groups "
                f"of this posterior, got {tuple(x_new.shape)}. For new groups use prior.sample(x)."
            )
        check_floating(x_new, "x_new")
        check_same_device(x_new=x_new, x=self.x)
        check_finite(x_new, "x_new")
        return x_new.to(self.x.dtype)


class LatentPrediction:
    """The posterior at new members of known groups, made by `LatentPosterior.predict`.

    Attributes:
        x: The new members' features, (*b, G, Q*, D).
        mean: Marginal means, (*b, G, Q*, L).
        variance: Marginal variances, (*b, G, Q*, L).
    """

    def __init__(self, posterior: LatentPosterior, x_new: Tensor) -> None:
        self.x = x_new
        self._posterior = posterior
        blocks = posterior.blocks
        self.mean, self.variance = _concatenate(blocks, [b.predict(x_new) for b in blocks], x_new.shape[-2])

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at the new members, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths; True draws every member by itself.

        Returns:
            (*s, *b, G, Q*, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        if marginals:
            return _rsample_marginals(self.mean, self.variance, as_sample_shape(sample_shape))
        return self._posterior.rsample_paths(self.x, sample_shape).new


def _rsample_marginals(mean: Tensor, variance: Tensor, sample_shape: torch.Size) -> Tensor:
    noise = torch.randn(*sample_shape, *mean.shape, dtype=mean.dtype, device=mean.device)
    return mean + variance.sqrt() * noise


def _per_channel(value: Tensor, block: BlockPosterior) -> Tensor:
    """(*b, G, J or 1) to (*b, G, J)."""
    return value.expand(*block.x.shape[:-2], block.block.num_channels)


def _members_first(parts: list[tuple[Tensor, BlockPosterior]], members: int) -> Tensor:
    """(*s, *b, G, J, Q) of every block to (*s, *b, G, Q, L)."""
    full = [part.expand(*part.shape[:-2], block.block.num_channels, members) for part, block in parts]
    return torch.cat(full, dim=-2).mT


def _concatenate(
    blocks: Sequence[BlockPosterior], parts: list[tuple[Tensor, Tensor]], members: int
) -> tuple[Tensor, Tensor]:
    shapes = [(*block.x.shape[:-2], block.block.num_channels, members) for block in blocks]
    means = torch.cat([mean.expand(shape) for (mean, _), shape in zip(parts, shapes, strict=True)], dim=-2)
    variances = torch.cat([variance.expand(shape) for (_, variance), shape in zip(parts, shapes, strict=True)], dim=-2)
    return means.mT, variances.mT
