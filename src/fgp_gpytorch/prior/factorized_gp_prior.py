"""The factorized Gaussian-process prior of the paper, for anybody's encoder."""

from collections.abc import Iterable, Sequence

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

from fgp_gpytorch._shapes import as_sample_shape, check_finite, check_floating, check_same_device, check_shape
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.gaussian import masked_precision
from fgp_gpytorch.prior.channels import ChannelBlock, GlobalChannels
from fgp_gpytorch.prior.hyperprior import log_hyperprior
from fgp_gpytorch.prior.latent_posterior import LatentPosterior
from fgp_gpytorch.saving import Configurable

_UNGROUPED = "The rows look ungrouped: GroupedDataset(y, x, group) pads them to (G, Q, ...)."


class FactorizedGPPrior(Configurable, gpytorch.Module):
    r"""A prior over L latent channels that factorizes over groups and channels (paper, Section 3).

        p(Z | X) = prod_groups prod_channels N(z_p^l | m^l(X_p), K^l(X_p, X_p))

    It knows no networks: it takes means and variances of pseudo-observations, so it serves any VAE. Exact inference
    costs O(G Q^3), a group never seen needs no training, and a minibatch of groups gives unbiased gradients.

    Args:
        blocks: Blocks of channels, in the order in which their channels stand in the last dimension.
        dtype: Of the Gaussian algebra and of the kernels' hyperparameters, which are converted in place. float32 is
            faster on a GPU and good for pseudo-variances above 1e-5 of the prior's in groups of some tens, 1e-3 of
            hundreds, without autocast.

    Attributes:
        num_channels: L.

    Raises:
        ShapeError: If there is no block, or an element is not a block.

    Example:
        >>> prior = FactorizedGPPrior([LocalChannels(8, gpytorch.kernels.PeriodicKernel()), GlobalChannels(8)])
        >>> posterior = prior.posterior(x, mean, variance)  # x (G, Q, 1), mean and variance (G, Q, 16)
        >>> loss = posterior.kl.sum() - log_likelihood(decoder(posterior.rsample()))
    """

    def __init__(self, blocks: Sequence[ChannelBlock], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        given = [blocks] if isinstance(blocks, ChannelBlock) or not isinstance(blocks, Iterable) else list(blocks)
        wrong = [type(block).__name__ for block in given if not isinstance(block, ChannelBlock)]
        blocks = given
        if not blocks or wrong:
            raise ShapeError(
                f"blocks: expected a sequence of LocalChannels and GlobalChannels, got {wrong or 'none'}. "
                "Try FactorizedGPPrior([LocalChannels(8, kernel), GlobalChannels(8)])."
            )
        if len({id(block) for block in blocks}) < len(blocks):
            raise ShapeError(
                "blocks: expected different blocks, got one block twice. Try one block with more channels."
            )
        if dtype not in (torch.float32, torch.float64):
            raise DataError(f"dtype: expected torch.float64 or torch.float32, got {dtype}. Try torch.float64.")
        self.blocks = torch.nn.ModuleList(blocks)
        self.dtype = dtype
        self.num_channels = sum(block.num_channels for block in blocks)
        self.to(dtype)

    @property
    def num_local_channels(self) -> int:
        """J: channels that may vary within a group."""
        return self.num_channels - self.num_global_channels

    @property
    def num_global_channels(self) -> int:
        """L - J: channels with one value per group."""
        return sum(block.num_channels for block in self._blocks() if isinstance(block, GlobalChannels))

    def posterior(self, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None = None) -> LatentPosterior:
        """Condition on pseudo-observations N(z | mean, variance), such as an encoder's (paper, Section 3).

        Args:
            x: Auxiliary features, (*b, G, Q, D).
            mean: Pseudo-means, (*b, G, Q, L).
            variance: Pseudo-variances, (*b, G, Q, L), positive.
            mask: Boolean (*b, G, Q), True where a member is observed. The others cost nothing, and what stands in
                `mean` and `variance` there does not matter; they get a posterior at their x. None observes all. An x
                there that is not finite, or 1e5 times further off than the observed x are apart (such as a padding of
                0 among dates in seconds), is taken for padding: that of the group's first observed member stands in.

        Returns:
            The posterior: marginals, KL, evidence, predictions and samples. A group without an observed member has
            its prior as posterior.

        Raises:
            ShapeError: If shapes do not fit; nothing is broadcast.
            DataError: If a dtype is not floating (or the mask's not boolean), devices differ, an observed value is
                NaN or infinite, or an observed variance is not positive.
        """
        self._check(x, mean, variance, mask)
        if mask is not None:
            x = _near_the_observed(x, mask)
        return self.condition(x, mean, variance, mask)

    def condition(self, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None = None) -> LatentPosterior:
        """`posterior` without its checks, for training loops that look at the loss instead."""
        x = self._converted(x)
        mean = mean.to(self.dtype).mT.contiguous()  # shape: (*b, G, L, Q)
        variance = variance.to(self.dtype).mT.contiguous()
        channel_mask = None
        if mask is not None:
            channel_mask = mask.unsqueeze(-2)
            mean = torch.where(channel_mask, mean, 0.0)
        precision = masked_precision(variance, channel_mask)
        sizes = [block.num_channels for block in self._blocks()]
        parts = zip(self._blocks(), mean.split(sizes, -2), precision.split(sizes, -2), strict=True)
        return LatentPosterior([block.condition(x, m, r) for block, m, r in parts], x, mask)

    def sample(self, x: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the latent paths of new groups, coherent across members, with gradients.

        Args:
            x: Auxiliary features, (*b, G, Q, D), or (Q, D) for a single group.
            sample_shape: Leading shape s of the draws.

        Returns:
            (*s, *b, G, Q, L), or (*s, Q, L) for a single group.

        Raises:
            ShapeError: If x has fewer than two dimensions.
            DataError: If x is not floating or not finite, or `sample_shape` is no sequence of integers.
        """
        self._check_x(x)
        x, shape = self._converted(x), as_sample_shape(sample_shape)
        return torch.cat([_block_path(block, x, shape) for block in self._blocks()], dim=-2).mT

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        """The prior at x as GPyTorch's distribution: one task per channel, batched over groups.

        Args:
            x: Auxiliary features, (*b, G, Q, D).

        Returns:
            Batch shape (*b, G), event shape (Q, L).

        Raises:
            ShapeError: If x has fewer than two dimensions.
            DataError: If x is not floating or not finite.
        """
        self._check_x(x)
        x = self._converted(x)
        front, members = x.shape[:-2], x.shape[-2]
        blocks = self._blocks()
        means = [block.prior_mean(x).expand(*front, block.num_channels, members) for block in blocks]
        mean = torch.cat(means, dim=-2)
        # as linear operators: singular where x repeats, and so not to be factorized
        if any(block.couples_channels for block in blocks):
            parts = [part for block in blocks for part in _joint_covariances(block, x)]
            joint = _members_before_channels(_block_diagonal(parts), self.num_channels)
            return MultitaskMultivariateNormal(mean.mT, to_linear_operator(joint))
        sizes = [(*front, block.num_channels, members, members) for block in blocks]
        covariances = [block.covariance(x, x).expand(size) for block, size in zip(blocks, sizes, strict=True)]
        channels = MultivariateNormal(mean, to_linear_operator(torch.cat(covariances, dim=-3)))
        return MultitaskMultivariateNormal.from_batch_mvn(channels, task_dim=-1)

    def log_hyperprior(self) -> Tensor:
        """Log density of the hyperparameters under the GPyTorch priors registered on them, nats, a scalar.

        It belongs to the dataset, not to a batch: objectives add it once per dataset.
        """
        return log_hyperprior(self, self.dtype)

    def channel_blocks(self) -> list[ChannelBlock]:
        """The block of each of the L channels, in their order."""
        return [block for block in self._blocks() for _ in range(block.num_channels)]

    def _blocks(self) -> list[ChannelBlock]:
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    def _converted(self, x: Tensor) -> Tensor:
        converted = x.to(self.dtype)
        if torch.finfo(x.dtype).eps < torch.finfo(self.dtype).eps and x.numel() > 0:
            rows = x.flatten(0, -2)
            spread = rows.amax(0) - rows.amin(0)
            lost = (converted.flatten(0, -2).to(x.dtype) - rows).abs().amax(0)
            if bool(((spread > 0) & (lost > 1e-3 * spread)).any()):
                raise DataError(
                    f"x: expected values that {self.dtype} tells apart, got {x.amin().item():g} to "
                    f"{x.amax().item():g}. Try x - x.min(), or a prior of dtype=torch.float64."
                )
        return converted

    def _check_x(self, x: Tensor) -> None:
        check_floating(x, "x")
        if x.dim() < 2:
            raise ShapeError(f"x: expected (*b, G, Q, D), got {tuple(x.shape)}. {_UNGROUPED}")
        check_finite(x, "x")

    def _check(self, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None) -> None:
        check_floating(x, "x")
        if x.dim() < 3:
            raise ShapeError(f"x: expected (*b, G, Q, D), got {tuple(x.shape)}. {_UNGROUPED}")
        members = tuple(x.shape[:-1])
        for name, value in (("mean", mean), ("variance", variance)):
            check_floating(value, name)
            hint = _UNGROUPED
            if value.dim() == x.dim() and value.shape[:-1] == x.shape[:-1]:
                hint = f"The prior has {self.num_channels} channels: give the encoder as many outputs."
            check_shape(value, name, (*members, self.num_channels), hint)
        tensors = {"x": x, "mean": mean, "variance": variance}
        if mask is not None:
            check_shape(mask, "mask", members, "One boolean for each member.")
            if mask.dtype != torch.bool:
                raise DataError(f"mask: expected torch.bool, got {mask.dtype}. Try mask.bool(), True = observed.")
            tensors["mask"] = mask
        check_same_device(**tensors)
        observed = None if mask is None else mask.unsqueeze(-1)
        for name, value in (("x", x), ("mean", mean), ("variance", variance)):
            check_finite(value, name, observed)
        wrong = variance <= 0 if observed is None else (variance <= 0) & observed
        if bool(wrong.any()):
            raise DataError(
                f"variance: expected positive pseudo-variances, got {int(wrong.sum())} entries <= 0, the smallest "
                f"{float(variance[wrong.expand_as(variance)].min())}. Try an encoder that ends in exp or softplus."
            )


def _near_the_observed(x: Tensor, mask: Tensor) -> Tensor:
    """x with the first observed member's in the place of padding; see `FactorizedGPPrior.posterior`.

    Kernels centre x before they take distances: among dates in seconds a padding of 0 would leave no digit of them.
    """
    where = mask.unsqueeze(-1)
    index = mask.int().argmax(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
    first = torch.where(where.any(-2, keepdim=True), x.gather(-2, index), 0.0)
    offset = torch.where(where, x - first, 0.0)
    spread = offset.amax(-2, keepdim=True) - offset.amin(-2, keepdim=True)
    distance = (x - first).abs()
    padding = ~torch.isfinite(x) | ((distance > 1e5 * spread) & (spread > 0) & (distance > 1e5))
    return torch.where(~where & padding.any(-1, keepdim=True), first, x)


def _block_path(block: ChannelBlock, x: Tensor, sample_shape: torch.Size) -> Tensor:
    root = block.covariance_root(x)
    shape = (*sample_shape, *x.shape[:-2], block.num_whitened, root.shape[-1])
    noise = torch.randn(shape, dtype=x.dtype, device=x.device)
    return block.prior_mean(x) + (root @ noise.unsqueeze(-1)).squeeze(-1)


def _joint_covariances(block: ChannelBlock, x: Tensor) -> list[Tensor]:
    """The diagonal blocks (*b, G, N, N) of a block's covariance, rows by channel, then member."""
    if block.couples_channels:
        root = block.covariance_root(x).flatten(-3, -2)
        return [root @ root.mT]
    members = x.shape[-2]
    return list(block.covariance(x, x).expand(*x.shape[:-2], block.num_channels, members, members).unbind(-3))


def _block_diagonal(parts: list[Tensor]) -> Tensor:
    """Matrices (*b, N, N) of different N on the diagonal of one."""
    size = sum(part.shape[-1] for part in parts)
    whole = parts[0].new_zeros(*parts[0].shape[:-2], size, size)
    start = 0
    for part in parts:
        end = start + part.shape[-1]
        whole[..., start:end, start:end] = part
        start = end
    return whole


def _members_before_channels(joint: Tensor, channels: int) -> Tensor:
    """A matrix (*b, L Q, L Q) whose rows are ordered by channel, then member, by member, then channel."""
    apart = joint.unflatten(-1, (channels, -1)).unflatten(-3, (channels, -1))  # shape: (*b, L, Q, L, Q)
    return apart.transpose(-4, -3).transpose(-2, -1).flatten(-2).flatten(-3, -2)
