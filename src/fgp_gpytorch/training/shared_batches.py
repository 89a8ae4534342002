"""Minibatches of whole groups that several processes share."""

import itertools
import random
from collections.abc import Callable, Iterator
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


class Request(NamedTuple):
    """Positions of groups, and the seed of the random numbers that make their observations."""

    positions: list[int]
    seed: int


class SharedBatches(Sampler[Request]):
    """The requests of one process for its share of every minibatch.

    All processes order the groups in the same way. A minibatch is `processes * batch_size` consecutive groups of that
    order, and each process gets consecutive groups of it. A process without a share gets a group that does not count.

    Args:
        num_groups: Groups of the data set.
        batch_size: Groups of a minibatch per process.
        trainer: It contains the number of processes, and the number of this one.
        epoch: Returns the number of the epoch.
        seed: Of the order. None keeps the order of the data set.
        drop_last: Whether to leave out a last minibatch that is not full. A single one is kept.
    """

    def __init__(
        self,
        num_groups: int,
        batch_size: int,
        trainer: lightning.Trainer,
        epoch: Callable[[], int],
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_groups, self.epoch, self.seed, self.drop_last = num_groups, epoch, seed, drop_last
        self.processes, self.rank = trainer.world_size, trainer.global_rank
        self.global_size = batch_size * self.processes
        self._last_order = -1, torch.empty(0, dtype=torch.long)  # of an epoch

    def __len__(self) -> int:
        full, rest = divmod(self.num_groups, self.global_size)
        return full if full and (self.drop_last or not rest) else full + 1

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch()
        order = self._order(epoch).tolist()
        for number in range(len(self)):
            whole = order[number * self.global_size : (number + 1) * self.global_size]
            sizes = self.sizes(len(whole))
            first = min(sum(sizes[: self.rank]), len(whole) - 1)
            seeds = np.random.SeedSequence((self.seed or 0, epoch, number, self.rank))
            yield Request(whole[first : first + max(sizes[self.rank], 1)], int(seeds.generate_state(1)[0]))

    def whole(self, number: int) -> Tensor:
        """The positions of all groups of a minibatch."""
        epoch = self.epoch()
        if self._last_order[0] != epoch:
            self._last_order = epoch, self._order(epoch)
        return self._last_order[1][number * self.global_size : (number + 1) * self.global_size]

    def sizes(self, total: int) -> tuple[int, ...]:
        """The number of groups of every process, in a minibatch of `total` groups."""
        ends = [total * rank // self.processes for rank in range(self.processes + 1)]
        return tuple(end - start for start, end in itertools.pairwise(ends))

    def _order(self, epoch: int) -> Tensor:
        if self.seed is None:
            return torch.arange(self.num_groups)
        return torch.randperm(self.num_groups, generator=torch.Generator().manual_seed(self.seed + epoch))


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
