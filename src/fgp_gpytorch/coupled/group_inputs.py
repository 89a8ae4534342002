"""The inputs of a coupled prior."""

from typing import NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.gaussian import masked_precision


class GroupInputs(NamedTuple):
    """Pseudo-observations of G groups, each group with its vector.

    Attributes:
        vectors: Group vectors as the prior uses them, (G, m).
        x: Auxiliary features, (G, Q, D).
        mean: Pseudo-means mu, (G, Q, L).
        variance: Pseudo-variances sigma^2, (G, Q, L), positive.
        mask: True where a member is observed, (G, Q).

    Examples:
        >>> x, mean, variance = torch.rand(2, 3, 1), torch.rand(2, 3, 4), torch.ones(2, 3, 4)
        >>> inputs = GroupInputs.of(torch.eye(2), x, mean, variance, mask=None, dtype=torch.float64)
        >>> inputs.mask.all(), inputs.select(torch.tensor([1])).mean.shape, inputs.cat(inputs).vectors.shape
        (tensor(True), torch.Size([1, 3, 4]), torch.Size([4, 2]))
    """

    vectors: Tensor
    x: Tensor
    mean: Tensor
    variance: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls, vectors: Tensor, x: Tensor, mean: Tensor, variance: Tensor, mask: Tensor | None, dtype: torch.dtype
    ) -> "GroupInputs":
        """Convert the numbers to a dtype. A mask of None observes all members."""
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        return cls(vectors.to(dtype), x.to(dtype), mean.to(dtype), variance.to(dtype), mask)

    def to(self, device: torch.device) -> "GroupInputs":
        """These inputs on a device."""
        return GroupInputs(*(value.to(device) for value in self))

    def select(self, groups: Tensor) -> "GroupInputs":
        """The groups at some positions, (G*,), int64."""
        return GroupInputs(*(value[groups] for value in self))

    def cat(self, *others: "GroupInputs") -> "GroupInputs":
        """These groups and then others, padded to the largest number of members."""
        members = max(part.x.shape[1] for part in (self, *others))
        parts = [(part.vectors, *(_pad(value, members) for value in part[1:])) for part in (self, *others)]
        return GroupInputs(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def targets(self, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Precisions R^2 = scale / sigma^2 and means mu of all members, each (L, G Q), 0 at unobserved members.

        Args:
            scale: How often each member counts.
        """
        mask = self.mask.flatten().unsqueeze(-1)
        precision = scale * masked_precision(self.variance.flatten(0, 1), mask).mT
        return precision.contiguous(), torch.where(mask, self.mean.flatten(0, 1), 0.0).mT.contiguous()


def checked_inputs(inputs: GroupInputs) -> GroupInputs:
    """Require the inputs of a coupled prior.

    Raises:
        ArgumentError: If it is something else.
    """
    return check.instance(inputs, "inputs", GroupInputs, "Try GroupInputs.of(vectors, x, mean, variance, mask, dtype).")


def _pad(value: Tensor, members: int) -> Tensor:
    """(G, Q, ...) to (G, members, ...), repeating the last member so that x stays in its range; False in a mask."""
    missing = members - value.shape[1]
    last = value[:, -1:] & False if value.dtype == torch.bool else value[:, -1:]
    return torch.cat([value, last.expand(-1, missing, *value.shape[2:])], dim=1)
