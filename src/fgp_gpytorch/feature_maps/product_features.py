"""Products of feature maps: interactions."""

import functools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.feature_maps.selected_features import checked_map
from fgp_gpytorch.gaussian import row_products
from fgp_gpytorch.saving import Configurable


class ProductFeatures(Configurable, nn.Module):
    r"""The feature map of a product of kernels, such as f(time, sex) with k(t, t') delta(s, s').

        phi(x) = phi_1(x) (x) phi_2(x) (x) ...,   phi phi' = k_1 k_2 ...

    Args:
        maps: Feature maps of x, at least two.

    Raises:
        ArgumentError: If there are fewer than two, or one is no feature map.

    Examples:
        >>> time = SelectedFeatures(NystromFeatures(gpytorch.kernels.MaternKernel(nu=1.5), [0.0, 1.0, 2.0, 3.0]), [0])
        >>> features = ProductFeatures([time, SelectedFeatures(CategoricalFeatures(2), [1])])
        >>> features(torch.tensor([[0.5, 0.0], [0.5, 1.0]])).shape  # 4 of time, times 2 categories and an unknown one
        torch.Size([2, 12])
    """

    maps: Sequence[nn.Module]

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        if isinstance(maps, nn.Module) or len(maps) < 2:
            raise ArgumentError("maps: expected two feature maps or more, got fewer. Try the map itself.")
        self.maps = nn.ModuleList([checked_map(part, "maps") for part in maps])  # pyright: ignore

    @property
    def num_features(self) -> int:
        """M, the columns of phi: the product of those of the maps."""
        return math.prod(int(part.num_features) for part in self.maps)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """Phi at x (*b, N, D): (*b, N, M). The errors are those of the maps."""
        return functools.reduce(row_products, [part(x) for part in self.maps])
