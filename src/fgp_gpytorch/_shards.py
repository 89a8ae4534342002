"""One minibatch that several processes share.

Every process holds some consecutive groups of the minibatch. Random draws are made for the whole minibatch by all of
them, from the same seed, and each keeps its part. Sums are taken over the whole minibatch. So the step equals the step
of one process.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """The groups of a minibatch that this process holds.

    Attributes:
        sizes: Groups of every process. A process with 0 groups holds a repeated one, which does not count.
        rank: The number of this process.
        num_members: Members of the largest group of the minibatch.
    """

    sizes: tuple[int, ...]
    rank: int
    num_members: int

    @property
    def is_empty(self) -> bool:
        """Whether no group of this process counts."""
        return self.sizes[self.rank] == 0

    def own(self, whole: Tensor, group_dim: int) -> Tensor:
        """The part of this process of a tensor of the whole minibatch."""
        first = min(sum(self.sizes[: self.rank]), sum(self.sizes) - 1)  # a repeated group takes any part
        return whole.narrow(group_dim, first, max(self.sizes[self.rank], 1))

    def gather(self, own: Tensor) -> Tensor:
        """Concatenate the columns (n, G of one process) of all processes, without gradients, (n, G)."""
        padded = own.new_zeros(len(own), max(self.sizes))
        padded[:, : self.sizes[self.rank]] = own.detach()[:, : self.sizes[self.rank]]
        parts = [torch.empty_like(padded) for _ in self.sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:, :size] for part, size in zip(parts, self.sizes, strict=True)], dim=1)


_current: ContextVar[Shard | None] = ContextVar("shard", default=None)


@contextmanager
def sharing(shard: Shard | None) -> Iterator[None]:
    """Make draws and sums inside follow the whole minibatch. None: this process holds all of it."""
    token = _current.set(shard)
    try:
        yield
    finally:
        _current.reset(token)


def draw_normal(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, group_dim: int, member_dim: int
) -> Tensor:
    """Standard normal numbers of a shape with groups and members in the given dimensions."""
    shard = _current.get()
    if shard is None:
        return torch.randn(*shape, dtype=dtype, device=device)
    whole = _whole_shape(shard, shape, group_dim, member_dim)
    own = shard.own(torch.randn(whole, dtype=dtype, device=device), group_dim)
    return own.narrow(member_dim, 0, shape[member_dim])


def draw_uniform(shape: Sequence[int], device: torch.device, member_dim: int | None = None) -> Tensor:
    """Uniform numbers in [0, 1), with groups in the first dimension and members in another, if any."""
    shard = _current.get()
    if shard is None:
        return torch.rand(*shape, device=device)
    own = shard.own(torch.rand(_whole_shape(shard, shape, 0, member_dim), device=device), 0)
    return own if member_dim is None else own.narrow(member_dim, 0, shape[member_dim])


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over the processes that share the minibatch, without gradients."""
    shard = _current.get()
    if shard is None:
        return value
    total = torch.zeros_like(value) if shard.is_empty else value.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def _whole_shape(shard: Shard, shape: Sequence[int], group_dim: int, member_dim: int | None) -> list[int]:
    whole = list(shape)
    whole[group_dim] = sum(shard.sizes)
    if member_dim is not None:
        whole[member_dim] = shard.num_members
    return whole
