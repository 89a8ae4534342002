"""The factorized Gaussian-process prior of the paper, for any encoder."""

from collections.abc import Iterable, Sequence

import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.gaussian import masked_precision
from fgp_gpytorch.prior.block_posterior import BlockPosterior
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.effects_posterior import EffectsBlockPosterior, ShiftedBlock, effect_rows
from fgp_gpytorch.prior.latent_posterior import LatentPosterior
from fgp_gpytorch.prior.latent_prior import LatentPrior
from fgp_gpytorch.prior.multitask import multitask_normal
from fgp_gpytorch.prior.shared_effects import SharedEffects

_UNGROUPED = "The rows look ungrouped. Try GroupedDataset(y, x, group), which pads them to (G, Q, ...)."


class FactorizedGPPrior(LatentPrior):
    r"""A prior over L latent channels that factorizes over groups and channels (paper, Section 3).

        p(Z | X) = prod_groups prod_channels N(z_p^l | m^l(X_p), K^l(X_p, X_p))

    The prior contains no networks. It takes means and variances of pseudo-observations, so it serves any VAE. Exact
    inference costs O(G Q^3), and less for some kernels (`LocalChannels`). A new group needs no training. A minibatch of
    groups gives unbiased gradients.

    With `effects`, all groups share additive functions of x, whose weights are a global latent (`SharedEffects`):

        z_p^l(x) = f_p^l(x) + sum_e s_el phi_e(x) w_el,   f ~ the blocks,   w ~ N(0, I),   q(w_l) = N(m_l, S_l)

    Args:
        blocks: Blocks of channels, in the order of their channels in the last dimension.
        dtype: Of the Gaussian algebra and of the kernels' hyperparameters, which are converted in place. float32 is
            faster on a GPU. It is accurate for pseudo-variances above 1e-5 of the prior's in groups of some tens, and
            above 1e-3 in groups of hundreds, without autocast.
        effects: Feature maps phi_e of x (*b, N, D), such as `feature_maps.SelectedFeatures` of a covariate; None for
            none.

    Attributes:
        effects: The `SharedEffects` with the posterior of their weights; None for none.

    Raises:
        ArgumentError: If there are no blocks, an element is not a block, or a block occurs twice. Also if the dtype is
            neither float32 nor float64, or an effect no feature map.

    Examples:
        >>> prior = FactorizedGPPrior([LocalChannels(8, gpytorch.kernels.PeriodicKernel()), GlobalChannels(8)])
        >>> x, mean, variance = torch.rand(2, 5, 1), torch.rand(2, 5, 16), torch.ones(2, 5, 16)  # two groups
        >>> posterior = prior.posterior(x, mean, variance)
        >>> posterior.mean.shape, posterior.kl.shape, posterior.predict(torch.rand(2, 3, 1)).rsample([4]).shape
        (torch.Size([2, 5, 16]), torch.Size([2]), torch.Size([4, 2, 3, 16]))
        >>> decoder = MLPDecoder(16, [7])
        >>> loss = posterior.kl.sum() + (decoder(posterior.rsample().float()) - torch.rand(2, 5, 7)).square().sum()
    """

    couples_groups = False
    blocks: Sequence[ChannelBlock]
    effects: SharedEffects | None

    def __init__(
        self,
        blocks: Sequence[ChannelBlock],
        dtype: torch.dtype = torch.float64,
        effects: Sequence[torch.nn.Module] | None = None,
    ) -> None:
        super().__init__()
        given = [blocks] if isinstance(blocks, ChannelBlock) or not isinstance(blocks, Iterable) else list(blocks)
        wrong = [type(block).__name__ for block in given if not isinstance(block, ChannelBlock)]
        if not given or wrong:
            raise ArgumentError(
                f"blocks: expected a sequence of LocalChannels and GlobalChannels, got {wrong or 'none'}. "
                "Try FactorizedGPPrior([LocalChannels(8, kernel), GlobalChannels(8)])."
            )
        if len({id(block) for block in given}) < len(given):
            raise ArgumentError(
                "blocks: expected different blocks, got one block twice. Try one block with more channels."
            )
        check.choice(dtype, "dtype", (torch.float64, torch.float32))
        self.blocks = torch.nn.ModuleList(given)  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = dtype
        self.num_channels = sum(block.num_channels for block in given)
        self.effects = None if effects is None else SharedEffects(effects, self.num_channels)
        self.to(dtype)

    @property
    def is_global(self) -> Tensor:
        """True for the channels that have one value per group, (L,), on the CPU."""
        return torch.tensor([block.is_global for block in self.channel_blocks()])

    @property
    def num_local_channels(self) -> int:
        """J: channels that may vary within a group."""
        return self.num_channels - self.num_global_channels

    @property
    def num_global_channels(self) -> int:
        """L - J: channels with one value per group."""
        return int(self.is_global.sum())

    def posterior(
        self, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None = None, seen: bool = False
    ) -> LatentPosterior:
        """Condition on pseudo-observations N(z | mean, variance), such as an encoder's (paper, Section 3).

        Args:
            x: Auxiliary features, (*b, G, Q, D).
            mean: Pseudo-means, (*b, G, Q, L).
            variance: Pseudo-variances, (*b, G, Q, L), positive.
            mask: Boolean (*b, G, Q), True where a member is observed; None observes all. `mean` and `variance` at the
                other members have no effect. These members get a posterior at their x. An x is padding if it is not
                finite, or 1e5 times further away than the observed x lie apart (such as 0 among dates in seconds).
                Padding takes the x of the group's first observed member.
            seen: Whether q(w) of shared effects was trained on these groups. If not, q(w) is the prior of w, and their
                pseudo-observations update it. If so, it stays: they would count twice.

        Returns:
            The posterior: marginals, KL, evidence, predictions and samples. A group without an observed member has
            its prior as posterior.

        Raises:
            ArgumentError: If an argument is not numeric.
            ShapeError: If shapes do not fit. Nothing is broadcast.
            DataError: If a dtype is not floating (or the mask's not boolean), devices differ, an observed value is
                NaN or infinite, or an observed variance is not positive.
        """
        x = check.as_reals(x, "x")
        mean, variance = check.as_reals(mean, "mean", x), check.as_reals(variance, "variance", x)
        mask = None if mask is None else check.as_tensor(mask, "mask")
        self._check(x, mean, variance, mask)
        if mask is not None:
            x = _near_the_observed(x, mask)
        return self.condition(x, mean, variance, mask, seen=seen)

    def condition(
        self,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        seen: bool = False,
    ) -> LatentPosterior:
        """`posterior` without its checks, for training loops that check the loss instead.

        Args:
            x: Auxiliary features, (*b, G, Q, D).
            mean: Pseudo-means, (*b, G, Q, L).
            variance: Pseudo-variances, (*b, G, Q, L).
            mask: True where a member is observed, (*b, G, Q); None for all.
            weights: w of the shared effects, (L, M), to condition on; None integrates q(w) out.
            seen: As in `posterior`.

        Returns:
            The posterior.

        Raises:
            DataError: If a float32 prior cannot distinguish the values of x.
        """
        x = self._converted(x, mask)
        mean = mean.to(self.dtype).mT.contiguous()  # shape: (*b, G, L, Q)
        variance = variance.to(self.dtype).mT.contiguous()
        channel_mask = None
        if mask is not None:
            channel_mask = mask.unsqueeze(-2)
            mean = torch.where(channel_mask, mean, 0.0)
        precision = masked_precision(variance, channel_mask)
        sizes = [block.num_channels for block in self.blocks]
        if self.effects is not None:
            mean = mean - self.effects.values(x, self.effects.mean if weights is None else weights)
        parts = zip(self.blocks, mean.split(sizes, -2), precision.split(sizes, -2), strict=True)
        posteriors = [block.condition(x, m, r) for block, m, r in parts]
        if self.effects is not None:
            posteriors = _with_effects(posteriors, self.effects, weights, seen)
        return LatentPosterior(posteriors, x, mask)

    def sample(self, x: Tensor, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw the latent paths of new groups, coherent across members, with gradients.

        Args:
            x: Auxiliary features, (*b, G, Q, D), or (Q, D) for a single group.
            sample_shape: Leading shape s of the draws.

        Returns:
            (*s, *b, G, Q, L), or (*s, Q, L) for a single group.

        Raises:
            ShapeError: If x has fewer than two dimensions.
            ArgumentError: If x is not numeric, or `sample_shape` is not a sequence of integers.
            DataError: If x is not floating, not finite, or on another device.
        """
        x, shape = self._checked_x(x), check.as_sample_shape(sample_shape)
        draws = torch.cat([block.sample(x, shape) for block in self.blocks], dim=-2)
        if self.effects is not None:
            draws = draws + self.effects.sample(x, shape)
        return draws.mT

    def forward(self, x: Tensor) -> MultitaskMultivariateNormal:
        """The prior at x as GPyTorch's distribution: one task per channel, batched over groups.

        Args:
            x: Auxiliary features, (*b, G, Q, D).

        Returns:
            Batch shape (*b, G), event shape (Q, L). Shared effects are those of q(w).

        Raises:
            ShapeError: If x has fewer than two dimensions.
            ArgumentError: If x is not numeric.
            DataError: If x is not floating, not finite, or on another device.
        """
        x = self._checked_x(x)
        front, members = x.shape[:-2], x.shape[-2]
        means = [block.prior_mean(x).expand(*front, block.num_channels, members) for block in self.blocks]
        mean = torch.cat(means, dim=-2)
        parts = [part for block in self.blocks for part in block.joint_covariances(x)]
        if self.effects is not None:
            mean = mean + self.effects.values(x, self.effects.mean)
            roots = (self.effects.features(x) @ self.effects.root).split([b.num_channels for b in self.blocks], -3)
            rows = [effect_rows(root, b.couples_channels) for root, b in zip(roots, self.blocks, strict=True)]
            added = [part for row in rows for part in (row @ row.mT).unbind(-3)]
            parts = [part + effect for part, effect in zip(parts, added, strict=True)]
        if any(block.couples_channels for block in self.blocks):
            return multitask_normal(mean.mT, parts)
        # as a linear operator: it is singular where x repeats, and GPyTorch must not factorize it
        channels = MultivariateNormal(mean, to_linear_operator(torch.stack(parts, dim=-3)))
        return MultitaskMultivariateNormal.from_batch_mvn(channels, task_dim=-1)

    def kl_effects(self) -> Tensor | None:
        """KL(q(w) || p(w)) of the shared effects, nats, a scalar, once per data set; None without effects."""
        return None if self.effects is None else self.effects.kl()

    def channel_blocks(self) -> list[ChannelBlock]:
        """The block of each of the L channels, in their order."""
        return [block for block in self.blocks for _ in range(block.num_channels)]

    def _converted(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x in the prior's dtype, if that tells neighbours in a group apart, and keeps the range of all groups."""
        converted = x.to(self.dtype)
        if torch.finfo(x.dtype).eps < torch.finfo(self.dtype).eps and x.numel() > 0:
            lost = (converted.to(x.dtype) - x).abs()
            lost = lost if mask is None else torch.where(mask.unsqueeze(-1), lost, 0.0)
            rows = x.flatten(0, -2)
            spread = rows.amax(0) - rows.amin(0)
            if bool((lost > 0.1 * _spacing(x, mask)).any()) or bool(((spread > 0) & (lost > 1e-3 * spread)).any()):
                raise DataError(
                    f"x: expected values that differ in {self.dtype}, got {x.amin().item():g} to "
                    f"{x.amax().item():g}. Try x - x.min(), or a prior of dtype=torch.float64."
                )
        return converted

    def _checked_x(self, x: Tensor) -> Tensor:
        parameter = next(self.parameters(), None)
        x = check.shape(check.as_reals(x, "x", parameter), "x", ("...", "Q", "D"), _UNGROUPED)
        if parameter is not None:
            check.device(x=x, prior=parameter)
        return self._converted(check.finite(x, "x"))

    def _check(self, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None) -> None:
        check.shape(check.floating(x, "x"), "x", ("...", "G", "Q", "D"), _UNGROUPED)
        members = tuple(x.shape[:-1])
        tensors = {"x": x, "mean": mean, "variance": variance}
        for name in ("mean", "variance"):
            value = check.floating(tensors[name], name)
            hint = _UNGROUPED
            if value.dim() == x.dim() and value.shape[:-1] == x.shape[:-1]:
                hint = f"The prior has {self.num_channels} channels. Try an encoder of as many outputs."
            check.shape(value, name, (*members, self.num_channels), hint)
        observed = None
        if mask is not None:
            observed = check.mask(mask, "mask", members, "One boolean for each member.").unsqueeze(-1)
            check.device(**tensors, mask=mask)
        else:
            check.device(**tensors)
        for name, value in tensors.items():
            check.finite(value, name, observed)
        check_variance(variance, observed)


def _spacing(x: Tensor, mask: Tensor | None) -> Tensor:
    """Median distance of neighbours in each group, (*b, G, 1, D), NaN where there are none."""
    steps = (x if mask is None else torch.where(mask.unsqueeze(-1), x, torch.inf)).sort(-2).values.diff(dim=-2)
    steps = torch.where((steps > 0) & steps.isfinite(), steps, torch.nan)
    return steps.nanmedian(-2, keepdim=True).values if steps.shape[-2] else x[..., :1, :] * torch.nan


def _with_effects(
    posteriors: Sequence[BlockPosterior], effects: SharedEffects, weights: Tensor | None, seen: bool
) -> list[BlockPosterior]:
    """Add the effects to posteriors of blocks that were conditioned on pseudo-means without them."""
    given, result, start = effects.mean if weights is None else weights, [], 0
    for posterior in posteriors:
        own = slice(start, start + posterior.block.num_channels)
        start = own.stop
        posterior.replace_block(ShiftedBlock(posterior.block, lambda x, c=own: effects.values(x, given)[..., c, :]))
        if weights is None:
            root = effects.root[own]
            posterior = EffectsBlockPosterior(
                posterior, lambda x, c=own, root=root: effects.features(x)[..., c, :, :] @ root, seen
            )
        result.append(posterior)
    return result


def check_variance(variance: Tensor, observed: Tensor | None) -> None:
    """Require positive pseudo-variances (*b, G, Q, L) where the boolean `observed` (*b, G, Q, 1) is True.

    Raises:
        DataError: If one is zero or negative.

    Examples:
        >>> check_variance(torch.tensor([[[1.0], [0.0]]]), observed=torch.tensor([[[True], [False]]]))
        >>> check_variance(torch.tensor([[[1.0], [0.0]]]), observed=None)
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.DataError: variance: expected positive pseudo-variances, got 1 entries ...
    """
    wrong = variance <= 0 if observed is None else (variance <= 0) & observed
    if bool(wrong.any()):
        raise DataError(
            f"variance: expected positive pseudo-variances, got {int(wrong.sum())} entries <= 0, the smallest "
            f"{float(variance[wrong].min())}. Try an encoder that ends in exp or softplus."
        )


def _near_the_observed(x: Tensor, mask: Tensor) -> Tensor:
    """x with the first observed member's x in place of padding; see `FactorizedGPPrior.posterior`.

    Kernels centre x before they take distances. Among dates in seconds a padding of 0 would cost all digits.
    """
    where = mask.unsqueeze(-1)
    index = mask.int().argmax(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
    first = torch.where(where.any(-2, keepdim=True), x.gather(-2, index), 0.0)
    offset = torch.where(where, x - first, 0.0)
    spread = offset.amax(-2, keepdim=True) - offset.amin(-2, keepdim=True)
    distance = (x - first).abs()
    padding = ~torch.isfinite(x) | ((distance > 1e5 * spread) & (spread > 0) & (distance > 1e5))
    return torch.where(~where & padding.any(-1, keepdim=True), first, x)
