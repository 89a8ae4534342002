"""The features themselves."""

from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.saving import Configurable


class LinearFeatures(Configurable, nn.Module):
    r"""phi(x) = x, the feature map of the linear kernel k(x, x') = x'x. Scale x near 1.

    Args:
        num_features: Columns of x.

    Raises:
        ArgumentError: If the number is below 1.

    Examples:
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> LinearFeatures()(x) @ LinearFeatures()(x).mT  # the linear kernel of x
        tensor([[1., 2.],
                [2., 4.]])
    """

    def __init__(self, num_features: int = 1) -> None:
        super().__init__()
        self.num_features = check.count(num_features, "num_features", hint="Try 1.")

    def forward(self, x: Tensor) -> Tensor:
        """Return x (*b, N, M).

        Raises:
            ShapeError: If x has another number of columns.
        """
        return check.shape(x, "x", ("...", "N", self.num_features), "Try SelectedFeatures(LinearFeatures(), [column]).")
