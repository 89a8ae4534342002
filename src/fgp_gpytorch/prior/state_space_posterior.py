"""Posterior of channels with a Markov kernel, in O(Q)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fgp_gpytorch.gaussian import (
    MarkovChain,
    MarkovTerm,
    StateSpaceMarginals,
    markov_chain,
    state_space_draws,
    state_space_marginals,
    state_space_paths,
)
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior, with_new_members
from fgp_gpytorch.prior.caching import cached_by_grad_mode

_NUMBERS_AT_ONCE = 2**23  # of one matrix of all members; more channels than that take turns, which bounds the memory


class StateSpaceBlockPosterior(BlockPosterior):
    """Posterior of `LocalChannels` with a sum of Matern kernels and constants, by a Kalman smoother.

    Members may come in any order.

    Args:
        block: The block.
        x: Auxiliary features, (*b, G, Q, D).
        precision: R^2 = 1 / sigma^2, (*b, G, J, Q), 0 for a missing member.
        residual: mu less the prior mean, (*b, G, J, Q).
        terms: The kernel, with parameters (J or 1, 1).
        column: The column of x that it depends on.
    """

    def __init__(
        self,
        block: BlockPrior,
        x: Tensor,
        precision: Tensor,
        residual: Tensor,
        terms: Sequence[MarkovTerm],
        column: int,
    ) -> None:
        super().__init__(block, x, precision, residual)
        self.terms, self.column = terms, column

    @cached_by_grad_mode
    def members(self) -> StateSpaceMarginals:
        """Marginals, KL and evidence at the members."""
        return self._at(None)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        return self.block.add_mean(self.members.mean, self.x), self.members.variance

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        found, own = self._at(x_new), slice(self.x.shape[-2], None)
        return self.block.add_mean(found.mean[..., own], x_new), found.variance[..., own]

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.members.kl

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.members.log_evidence

    def rsample(self, sample_shape: torch.Size, x_new: Tensor | None = None) -> Tensor:
        """Joint draws at the members (and x_new), (*s, *b, G, J, Q + Q*)."""
        x, precision, residual = with_new_members(self.x, self.precision, self.residual, x_new)
        time, order, back = sorted_members(x, self.column)
        chain = chain_of(self.terms, time)
        paths = state_space_draws(chain, _placed(precision, order), _placed(residual, order), sample_shape)
        return self.block.add_mean(_placed(paths, back), x)

    def _at(self, x_new: Tensor | None) -> StateSpaceMarginals:
        """The posterior at the members and x_new, in their order."""
        x, precision, residual = with_new_members(self.x, self.precision, self.residual, x_new)
        time, order, back = sorted_members(x, self.column)
        precision, residual = _placed(precision, order), _placed(residual, order)
        channels = precision.shape[-2]
        size = sum(max(term.order, 1) for term in self.terms) ** 2
        step = max(1, _NUMBERS_AT_ONCE * channels // max(1, size * precision.numel()))
        if step >= channels:
            found = state_space_marginals(chain_of(self.terms, time), precision, residual)
        else:
            parts = [
                checkpoint(_some_channels, self.terms, time, precision, residual, own, use_reentrant=False)
                for own in torch.arange(channels).split(step)
            ]
            mean, variance, kl, evidence = zip(*parts, strict=True)
            found = StateSpaceMarginals(
                torch.cat(mean, -2), torch.cat(variance, -2), torch.cat(kl, -1), torch.cat(evidence, -1)
            )
        return found._replace(mean=_placed(found.mean, back), variance=_placed(found.variance, back))


def state_space_prior_draws(
    terms: Sequence[MarkovTerm], column: int, x: Tensor, channels: int, sample_shape: Sequence[int]
) -> Tensor:
    """Draw channels of the prior less their mean, coherent across members, (*s, *b, G, J, Q), at x (*b, G, Q, D)."""
    time, _, back = sorted_members(x, column)
    paths = state_space_paths(chain_of(terms, time), sample_shape, (*time.shape[:-1], channels))
    return _placed(paths, back)


def sorted_members(x: Tensor, column: int) -> tuple[Tensor, Tensor, Tensor]:
    """One feature in ascending order, the order of its members, and the way back, each (*b, G, Q)."""
    time, order = x[..., column].sort(dim=-1, stable=True)
    return time, order, order.argsort(-1)


def chain_of(terms: Sequence[MarkovTerm], time: Tensor) -> MarkovChain:
    """The chain of channels, with batch dimensions (*b, G, J or 1), at ascending times (*b, G, Q)."""
    gaps = torch.nn.functional.pad(time[..., 1:] - time[..., :-1], (0, 1)).unsqueeze(-2)
    return markov_chain([_like(term, gaps) for term in terms], gaps)


def _like(term: MarkovTerm, x: Tensor) -> MarkovTerm:
    return term._replace(variance=term.variance.to(x), rate=None if term.rate is None else term.rate.to(x))


def _some_channels(
    terms: Sequence[MarkovTerm], time: Tensor, precision: Tensor, residual: Tensor, own: Tensor
) -> StateSpaceMarginals:
    def some(parameter: Tensor | None) -> Tensor | None:  # shape: (J, 1), (1, 1) or (1,)
        return parameter if parameter is None or parameter.dim() < 2 or len(parameter) == 1 else parameter[own]

    chosen = [term._replace(variance=some(term.variance), rate=some(term.rate)) for term in terms]
    return state_space_marginals(chain_of(chosen, time), precision[..., own, :], residual[..., own, :])


def _placed(values: Tensor, order: Tensor) -> Tensor:
    """Members of (*s, *b, G, J, Q) in the order (*b, G, Q)."""
    return values.gather(-1, order.unsqueeze(-2).expand(values.shape))
