"""Minibatches of whole groups that several processes share."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fgp_gpytorch._modes import generators_restored
from fgp_gpytorch._shards import Shard
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.models import Terms

_JITTER = 0.2  # of the logarithm of a size, so that epochs differ


class Request(NamedTuple):
    """Positions of groups, and the seed of the random numbers that make their observations."""

    positions: list[int]
    seed: int


class SharedBatches(Sampler[Request]):
    """The requests of one process for its share of every minibatch.

    All processes order the groups in the same way. A minibatch is `processes * batch_size` consecutive groups of that
    order, or consecutive groups of about `processes * batch_members` members. Each process gets consecutive groups of
    it. A process without a share gets a group that does not count. All epochs have the same number of minibatches.

    Args:
        group_sizes: Members of each group of the data set, (G,).
        batch_size: Groups of a minibatch per process; None with `batch_members`.
        trainer: It contains the number of processes, and the number of this one.
        epoch: Returns the number of the epoch.
        seed: Of the order. None keeps the order of the data set.
        drop_last: Whether to leave out a last minibatch that is not full. A single one is kept.
        batch_members: Members of a minibatch per process; None with `batch_size`.
        bucketing: Whether minibatches are of groups of similar sizes, in random order. Needs a seed.

    Attributes:
        weight: The factor that makes a sum over the groups of a random minibatch unbiased for the data set: the
            number of minibatches, B. It is None if the order alone decides which groups are together. The factor is
            then N/G, groups of the data set per group of the minibatch.
    """

    def __init__(
        self,
        group_sizes: Tensor,
        batch_size: int | None,
        trainer: lightning.Trainer,
        epoch: Callable[[], int],
        seed: int | None = None,
        drop_last: bool = False,
        batch_members: int | None = None,
        bucketing: bool = False,
    ) -> None:
        self.group_sizes, self.num_groups = group_sizes.cpu(), len(group_sizes)
        self.epoch, self.seed, self.bucketing = epoch, seed, bucketing
        self.processes, self.rank = trainer.world_size, trainer.global_rank
        self.global_size = None if batch_size is None else batch_size * self.processes
        self.global_members = None if batch_members is None else batch_members * self.processes
        self._kept = self.num_groups  # groups of an epoch
        if self.global_size is not None and drop_last:
            self._kept -= self.num_groups % self.global_size if self.num_groups > self.global_size else 0
        self._number = self._minibatches_of_an_epoch()
        by_size = bucketing or batch_members is not None
        self.weight = self._number * self.num_groups / self._kept if by_size else None
        self._last: tuple[int, list[Tensor]] = -1, []  # the minibatches of an epoch

    def _minibatches_of_an_epoch(self) -> int:
        if self.global_members is None:
            assert self.global_size is not None
            return -(-self._kept // self.global_size)
        return -(-int(self.group_sizes.clamp_max(self.global_members).sum()) // self.global_members)

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch()
        for number, minibatch in enumerate(self._minibatches(epoch)):
            whole = minibatch.tolist()
            sizes = self.sizes(len(whole))
            first = min(sum(sizes[: self.rank]), len(whole) - 1)
            seeds = np.random.SeedSequence((self.seed or 0, epoch, number, self.rank))
            yield Request(whole[first : first + max(sizes[self.rank], 1)], int(seeds.generate_state(1)[0]))

    def whole(self, number: int) -> Tensor:
        """The positions of all groups of a minibatch."""
        epoch = self.epoch()
        if self._last[0] != epoch:
            self._last = epoch, self._minibatches(epoch)
        return self._last[1][number]

    def sizes(self, total: int) -> tuple[int, ...]:
        """The number of groups of every process, in a minibatch of `total` groups."""
        ends = [total * rank // self.processes for rank in range(self.processes + 1)]
        return tuple(end - start for start, end in itertools.pairwise(ends))

    def _minibatches(self, epoch: int) -> list[Tensor]:
        """The positions of the groups of every minibatch."""
        if self.seed is None:
            return self._cut(torch.arange(self.num_groups))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.num_groups, generator=generator)[: self._kept]
        if self.bucketing:
            size = self.group_sizes[order].clamp_min(1).log() + _JITTER * torch.rand(len(order), generator=generator)
            order = order[size.argsort(descending=True, stable=True)]
        minibatches = self._cut(order)
        if self.weight is None:
            return minibatches
        return [minibatches[place] for place in torch.randperm(len(minibatches), generator=generator).tolist()]

    def _cut(self, order: Tensor) -> list[Tensor]:
        if self.global_members is None:
            assert self.global_size is not None
            return list(order.split(self.global_size))
        # A larger group counts as a full minibatch. Then the number of minibatches does not depend on the order.
        members = self.group_sizes[order].clamp_max(self.global_members).tolist()
        lengths = lengths_of(members, self._number)
        return list(order.split(lengths))


def lengths_of(members: Sequence[int], number: int) -> list[int]:
    """Cut a sequence of groups into so many minibatches of about equal numbers of members.

    A minibatch takes groups until it has its share of the members that are left, and leaves one group for each that
    follows. So none has less room than the one before it.
    """
    lengths, left, start = [], sum(members), 0
    for following in range(number - 1, -1, -1):
        taken, stop = 0, start
        while stop < len(members) - following and (stop == start or taken * (following + 1) < left):
            taken += members[stop]
            stop += 1
        stop = len(members) if following == 0 else stop
        lengths.append(stop - start)
        left, start = left - sum(members[start:stop]), stop
    return lengths


class SeededGroups(Dataset):
    """Groups by `Request`. Random observations follow from its seed, in whichever process they are made."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, request: Request) -> Any:
        """Return the groups of a request as a batch."""
        source = self.data.context if isinstance(self.data, HeldOut) else self.data
        if not isinstance(source, GroupedDataset) or not source.is_lazy:
            return self.data[request.positions]
        with _seeded(request.seed):
            return self.data[request.positions]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python, then restore them."""
    with generators_restored():
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also seeds the generator of a GPU
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        yield


def whole_terms(terms: Terms, shard: Shard) -> Terms:
    """The terms of the whole minibatch, with gradients of this process's groups.

    Args:
        terms: Those of this process's groups.
        shard: Its share of the minibatch.
    """
    own = {name: value for name, value in terms._asdict().items() if isinstance(value, Tensor) and value.dim() == 1}
    columns = shard.gather(torch.stack([value.detach().double() for value in own.values()]))
    start = sum(shard.sizes[: shard.rank])
    whole, rest = {}, torch.zeros((), dtype=columns.dtype, device=columns.device)
    for (name, value), column in zip(own.items(), columns, strict=True):
        kept = value[: shard.sizes[shard.rank]]
        before, after = column[:start].to(value.dtype), column[start + len(kept) :].to(value.dtype)
        whole[name] = torch.cat([before, kept, after])
        rest = rest + 0.0 * value.sum()  # a process without a share takes part in the backward pass too
    # the hyperparameters' density and the KL of shared effects count once, not once a process
    hyper = terms.log_hyperprior if shard.rank == 0 else terms.log_hyperprior.detach()
    if terms.kl_effects is not None and shard.rank > 0:
        terms = terms._replace(kl_effects=terms.kl_effects.detach())
    return terms._replace(**whole, log_hyperprior=hyper + rest.to(hyper.dtype))
