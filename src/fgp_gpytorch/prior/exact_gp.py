"""The bridge to GPyTorch's own ExactGP."""

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from fgp_gpytorch._shapes import check_finite, check_floating, check_shape
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.prior.channels import ChannelBlock


class BlockExactGP(gpytorch.models.ExactGP):
    """A block of channels as GPyTorch's exact GP on flat rows (group, x), batched over its J channels.

    Made by `exact_gp`. Kernel and mean are the block's own, so what is learned here is learned there. The noise is
    the pseudo-variance, so the marginal log likelihood is the block's log evidence.
    """

    def __init__(self, block: ChannelBlock, rows: Tensor, targets: Tensor, noise: Tensor) -> None:
        likelihood = FixedNoiseGaussianLikelihood(noise=noise, batch_shape=targets.shape[:-1])
        super().__init__(rows.expand(len(targets), -1, -1), targets, likelihood)
        self.block = block
        self._dtype = rows.dtype
        self.covariance_module = block.kernel_on_rows()

    def __call__(self, rows: Tensor, **kwargs: Any) -> MultivariateNormal:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The prior (training mode) or the posterior (evaluation mode) at rows (N, 1 + D), batched over channels."""
        return super().__call__(rows.expand(self.block.num_channels, *rows.shape[-2:]), **kwargs)

    def forward(self, rows: Tensor) -> MultivariateNormal:
        """The prior at rows (J, N, 1 + D), the same for every channel."""
        features = rows[0, :, 1:]
        mean = self.block.prior_mean(features)  # shape: (J or 1, N), the rows as if they were one group
        mean = mean.reshape(-1, len(features)).expand(rows.shape[:-1])
        return MultivariateNormal(mean, self.covariance_module(rows))

    @staticmethod
    def rows(x: Tensor) -> Tensor:
        """Flat rows (group, x) of grouped features.

        Args:
            x: (*b, G, Q, D); groups are numbered through *b and G.

        Returns:
            (N, 1 + D), N = b G Q, sorted by group.
        """
        flat = x.flatten(0, -3)
        group = torch.arange(len(flat), dtype=x.dtype, device=x.device)
        return torch.cat([group[:, None, None].expand(*flat.shape[:-1], 1), flat], dim=-1).flatten(0, 1)

    def multitask(self, x: Tensor) -> MultitaskMultivariateNormal:
        """In evaluation mode, the posterior at grouped features as one distribution, one task per channel.

        Args:
            x: (*b, G, Q*, D), the groups in the order of training.

        Returns:
            Event shape (N*, J), N* = b G Q*.
        """
        return MultitaskMultivariateNormal.from_batch_mvn(self(self.rows(x.to(self._dtype))), task_dim=-1)


def exact_gp(
    block: ChannelBlock, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None = None
) -> BlockExactGP:
    """A block's posterior by GPyTorch's own path: ExactGP with a FixedNoiseGaussianLikelihood.

    It is slower than `FactorizedGPPrior.posterior` (see docs/results.md) and gives the same numbers (the tests
    hold one against the other) at variances above GPyTorch's least noise of 1e-6, which it rounds smaller ones up to
    with a warning; use it to reach GPyTorch's other tools. To GPyTorch the training rows, given once more, are the
    training rows: of `IndependentChannels` it then gives their posterior, where `predict` takes new members.

    Args:
        block: A block of channels.
        x: Auxiliary features, (*b, G, Q, D).
        mean: Pseudo-means of the block's channels, (*b, G, Q, J).
        variance: Pseudo-variances, (*b, G, Q, J), positive.
        mask: True where a member is observed, (*b, G, Q).

    Returns:
        The model, in training mode.

    Raises:
        ShapeError: If `block` is none or shapes do not fit.
        DataError: If no member is observed, an observed value is not finite or its variance not positive, or a dtype
            is not floating (the mask's not boolean).

    Example:
        >>> gp = exact_gp(prior.blocks[0], x, mean, variance).eval()
        >>> gp.multitask(x_new).mean  # (N*, J)
    """
    if not isinstance(block, ChannelBlock):
        raise ShapeError(f"block: expected a block of channels, got {type(block).__name__}. Try prior.blocks[0].")
    check_floating(x, "x")
    if x.dim() < 3:
        raise ShapeError(f"x: expected (*b, G, Q, D), got {tuple(x.shape)}. One group is x.unsqueeze(0).")
    members = tuple(x.shape[:-1])
    for name, value in (("mean", mean), ("variance", variance)):
        check_floating(value, name)
        check_shape(value, name, (*members, block.num_channels))
    dtype = next((p.dtype for p in block.parameters()), x.dtype)
    rows = BlockExactGP.rows(x.to(dtype))
    observed = torch.ones(members, dtype=torch.bool, device=x.device) if mask is None else mask
    check_shape(observed, "mask", members)
    if observed.dtype != torch.bool:
        raise DataError(f"mask: expected torch.bool, got {observed.dtype}. Try mask.bool(), True = observed.")
    there = observed.unsqueeze(-1)
    for name, value in (("x", x), ("mean", mean), ("variance", variance)):
        check_finite(value, name, there)
    if bool(((variance <= 0) & there).any()):
        raise DataError(
            f"variance: expected positive entries, got {float(variance[observed].min()):g}. Try exp or softplus."
        )
    keep = observed.flatten()
    if not bool(keep.any()):
        raise DataError(
            "mask: expected at least one observed member, got none: GPyTorch's ExactGP needs training data."
        )
    targets = mean.to(dtype).flatten(0, -2)[keep].mT  # shape: (J, N)
    noise = variance.to(dtype).flatten(0, -2)[keep].mT
    return BlockExactGP(block, rows[keep], targets.contiguous(), noise.contiguous())
