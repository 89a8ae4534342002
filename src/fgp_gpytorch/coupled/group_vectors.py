"""Vectors that identify groups."""

import math

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import GroupError
from fgp_gpytorch.saving import Configurable


class GroupVectors(Configurable, nn.Module):
    r"""One learned vector per group, D (P, m): Sigma = D D' of the paper's Section 2 (Casale et al. 2018).

    A new group has no vector.

    Args:
        num_groups: P.
        num_factors: m.

    Attributes:
        vectors: (P, m), float64. They start as independent normal numbers of variance 1 / m.

    Raises:
        ArgumentError: If a number is below 1.

    Examples:
        >>> vectors = GroupVectors(num_groups=3, num_factors=2)
        >>> vectors.set_vectors(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
        >>> vectors(torch.tensor([2, 0])).detach()
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]], dtype=torch.float64)
    """

    vectors: nn.Parameter

    def __init__(self, num_groups: int, num_factors: int = 8) -> None:
        super().__init__()
        self.num_groups = check.count(num_groups, "num_groups", hint="Try num_groups=len(data).")
        self.num_factors = check.count(num_factors, "num_factors", hint="Try 8.")
        start = torch.randn(self.num_groups, self.num_factors, dtype=torch.float64)
        self.vectors = nn.Parameter(start / math.sqrt(self.num_factors))

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Replace the vectors.

        Args:
            vectors: (P, m).

        Raises:
            ArgumentError: If the vectors are not numeric.
            ShapeError: If the shape differs.
            DataError: If an entry is not finite.
        """
        vectors = check.as_reals(vectors, "vectors", like=self.vectors)
        check.shape(vectors, "vectors", tuple(self.vectors.shape), "One vector for each group of the training data.")
        self.vectors.copy_(check.finite(vectors, "vectors"))

    def forward(self, group_index: Tensor) -> Tensor:
        """The vectors of some groups.

        Args:
            group_index: Positions among the P groups, (*b,), int64.

        Returns:
            (*b, m).

        Raises:
            ArgumentError: If `group_index` is no tensor of integers.
            GroupError: If a position is out of range.
        """
        check.instance(group_index, "group_index", Tensor, "Try torch.tensor(group_index).")
        check.choice(group_index.dtype, "group_index.dtype", (torch.int64, torch.int32), "Try group_index.long().")
        if group_index.numel() and not 0 <= int(group_index.min()) <= int(group_index.max()) < self.num_groups:
            raise GroupError(
                f"group_index: expected positions from 0 to {self.num_groups - 1}, got {int(group_index.min())} to "
                f"{int(group_index.max())}. A new group needs training to have a vector. Try FGPVAE, which needs none."
            )
        return self.vectors[group_index]


def unit_length(vectors: Tensor) -> Tensor:
    """Vectors (*b, m) divided by their lengths.

    Examples:
        >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # torch.nn.functional.normalize divides by at least 1e-12: shorter vectors would not get length 1
    return vectors / vectors.square().sum(-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny).sqrt()
