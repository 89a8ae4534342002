"""The bridge to GPyTorch's own ExactGP."""

from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.factorized_gp_prior import check_variance


class BlockExactGP(gpytorch.models.ExactGP):
    """A block of channels as GPyTorch's exact GP on flat rows (group, x), batched over its J channels.

    Made by `exact_gp`. It shares the kernel and the mean with the block, so training one trains the other. The noise
    is the pseudo-variance, so the marginal log likelihood is the block's log evidence.

    Examples:
        >>> block = LocalChannels(2, gpytorch.kernels.RBFKernel())
        >>> x = torch.rand(2, 3, 1, dtype=torch.float64)  # two groups of three members
        >>> gp = exact_gp(block, x, mean=torch.zeros(2, 3, 2), variance=torch.ones(2, 3, 2)).eval()
        >>> gp.rows(x)[:, 0]  # the group, in front of x
        tensor([0., 0., 0., 1., 1., 1.], dtype=torch.float64)
        >>> gp.multitask(torch.rand(2, 1, 1)).mean.shape  # a new member of each group, two channels
        torch.Size([2, 2])
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
        mean = self.block.prior_mean(features)  # shape: (J or 1, N), all rows taken as one group
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
    """A block's posterior as GPyTorch's ExactGP with a FixedNoiseGaussianLikelihood.

    Use it to reach GPyTorch's other tools. It returns the numbers of `FactorizedGPPrior.posterior`, more slowly.

    - GPyTorch raises variances below 1e-6 to 1e-6, with a warning.
    - GPyTorch recognizes its training inputs. For `IndependentChannels` it returns the posterior of the training
      members at these inputs; `predict` treats them as new members.

    Args:
        block: A block of channels.
        x: Auxiliary features, (*b, G, Q, D).
        mean: Pseudo-means of the block's channels, (*b, G, Q, J).
        variance: Pseudo-variances, (*b, G, Q, J), positive.
        mask: True where a member is observed, (*b, G, Q).

    Returns:
        The model, in training mode.

    Raises:
        ArgumentError: If `block` is not a block of channels, or has inducing points, or an argument is no tensor.
        ShapeError: If shapes do not fit.
        DataError: If no member is observed, an observed value is not finite, an observed variance is not positive, or
            a dtype is not floating (or the mask's not boolean).

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel())])
        >>> x, mean, variance = torch.rand(3, 5, 1), torch.rand(3, 5, 2), torch.ones(3, 5, 2)  # three groups
        >>> gp = exact_gp(prior.blocks[0], x, mean, variance).eval()
        >>> x_new = torch.rand(3, 2, 1)
        >>> ours = prior.posterior(x, mean, variance).predict(x_new).mean.flatten(0, 1)
        >>> torch.allclose(gp.multitask(x_new).mean, ours, atol=1e-6)
        True
    """
    check.instance(block, "block", ChannelBlock, "Try prior.blocks[0].")
    if getattr(block, "inference", None) == "inducing":
        raise ArgumentError(
            "block: expected exact inference, got inference='inducing', which has another posterior. Try "
            "LocalChannels(block.num_channels, block.kernel)."
        )
    x = check.as_reals(x, "x")
    mean, variance = check.as_reals(mean, "mean", x), check.as_reals(variance, "variance", x)
    check.shape(x, "x", ("...", "G", "Q", "D"), "Try x.unsqueeze(0) for one group.")
    members = tuple(x.shape[:-1])
    for name, value in (("mean", mean), ("variance", variance)):
        hint = f"Try {name}[..., channels], only the {block.num_channels} channels of this block."
        check.shape(value, name, (*members, block.num_channels), hint)
    dtype = next((p.dtype for p in block.parameters()), x.dtype)
    rows = BlockExactGP.rows(x.to(dtype))
    observed = torch.ones(members, dtype=torch.bool, device=x.device) if mask is None else check.as_tensor(mask, "mask")
    check.mask(observed, "mask", members, "One boolean for each member.")
    for name, value in (("x", x), ("mean", mean), ("variance", variance)):
        check.finite(value, name, observed.unsqueeze(-1))
    check_variance(variance, observed.unsqueeze(-1))
    keep = observed.flatten()
    if not bool(keep.any()):
        raise DataError(
            "mask: expected at least one observed member, got none. ExactGP needs training data. Try prior(x)."
        )
    targets = mean.to(dtype).flatten(0, -2)[keep].mT  # shape: (J, N)
    noise = variance.to(dtype).flatten(0, -2)[keep].mT
    return BlockExactGP(block, rows[keep], targets.contiguous(), noise.contiguous())
