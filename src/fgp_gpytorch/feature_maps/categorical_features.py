"""Categories as features: every category has a weight of its own."""

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.saving import Configurable


class CategoricalFeatures(Configurable, nn.Module):
    r"""Columns of zeros and a one, the exact feature map of the kernel k(c, c') = delta(c, c').

    Codes 0 to C - 1 are categories. Every other integer, such as -1, is a category that was never seen. It has the last
    column, whose weight no known category has. So its effect keeps the prior.

    Args:
        num_categories: C.

    Raises:
        ArgumentError: If the number is below 1.

    Examples:
        >>> CategoricalFeatures(2)(torch.tensor([[0.0], [1.0], [7.0]]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_categories = check.count(num_categories, "num_categories", hint="Try int(codes.max()) + 1.")

    @property
    def num_features(self) -> int:
        """C + 1, the columns of phi."""
        return self.num_categories + 1

    def forward(self, x: Tensor) -> Tensor:
        """Phi at codes (*b, N, 1): (*b, N, C + 1).

        Raises:
            ShapeError: If x has several columns.
            DataError: If a code is no integer.
        """
        check.shape(x, "x", ("...", "N", 1), "Try SelectedFeatures(CategoricalFeatures(3), [column]).")
        code = x.squeeze(-1)
        wrong = code != code.round()
        if bool(wrong.any()):
            raise DataError(
                f"x: expected codes of categories, 0 to {self.num_categories - 1} or another integer for an unseen "
                f"one, got {float(code[wrong][0]):g}. Try pd.Categorical(column).codes."
            )
        known = torch.arange(self.num_categories, dtype=x.dtype, device=x.device)
        features = (code.unsqueeze(-1) == known).to(x.dtype)
        return torch.cat([features, 1 - features.sum(-1, keepdim=True)], dim=-1)
