"""Multilayer perceptrons for observations that are vectors."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.nets._inputs import append, as_shape, flatten
from fgp_gpytorch.saving import Configurable

_ACTIVATIONS = {
    "elu": nn.ELU, "gelu": nn.GELU, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}  # fmt: skip


class MLP(Configurable, nn.Sequential):
    """A multilayer perceptron: dense layers with an activation between them.

    Args:
        num_inputs: Length of an input vector.
        num_outputs: Length of an output vector.
        hidden: Widths of the hidden layers. An empty list makes a linear map.
        activation: "elu", "gelu", "relu", "sigmoid", "silu", "softplus" or "tanh".

    Shape:
        Input (*batch, num_inputs); output (*batch, num_outputs).

    Raises:
        ArgumentError: If a width is not a positive integer, or the activation is another word.

    Examples:
        >>> MLP(3, 2, hidden=[])(torch.rand(5, 7, 3)).shape
        torch.Size([5, 7, 2])
        >>> MLP(3, 2, hidden=[16], activation="tanh")
        MLP(
          (0): Linear(in_features=3, out_features=16, bias=True)
          (1): Tanh()
          (2): Linear(in_features=16, out_features=2, bias=True)
        )
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, hidden: Sequence[int] = (64, 64), activation: str = "elu"
    ) -> None:
        make = _ACTIVATIONS[check.choice(activation, "activation", _ACTIVATIONS)]
        num_inputs = check.count(num_inputs, "num_inputs")
        widths = [num_inputs, *as_shape(hidden, "hidden")]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), make()]
        super().__init__(*layers, nn.Linear(widths[-1], check.count(num_outputs, "num_outputs")))

        self.num_inputs = num_inputs

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs.

        Raises:
            ArgumentError: If the input is no tensor.
            ShapeError: If it has another width.
        """
        check.shape(input, "input", ("...", self.num_inputs), "Try MLP(num_inputs, ...) of this width.")
        return super().forward(input)


class MLPEncoder(Configurable, nn.Module):
    """A perceptron that returns a mean and a variance for each latent channel.

    Args:
        y_shape: Shape of one observation. The network flattens it.
        num_channels: Latent channels L.
        hidden: Widths of the hidden layers.
        num_features: F, features that `CVAE` appends to y; 0 for none.
        takes_observed: Whether the network also takes a mask of the observed elements of y. Without it, a missing
            element looks like a zero.
        activation: As in `MLP`.

    Shape:
        Input (*batch, *y_shape), features (*batch, F) if F > 0, and a mask (*batch, *y_shape) or None if
        `takes_observed`; output a mean and a variance, each (*batch, L).

    Raises:
        ArgumentError: If a size is not a positive integer, or the activation is unknown.

    Examples:
        >>> encoder = MLPEncoder([5], 4, takes_observed=True)
        >>> y = torch.zeros(7, 5)
        >>> mean, variance = encoder(y, observed=torch.ones(7, 5) > 0)
        >>> mean.shape, torch.equal(mean, encoder(y, observed=torch.zeros(7, 5) > 0)[0])  # a gap is no zero
        (torch.Size([7, 4]), False)
    """

    def __init__(
        self,
        y_shape: Sequence[int],
        num_channels: int,
        hidden: Sequence[int] = (64, 64),
        num_features: int = 0,
        takes_observed: bool = False,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self.y_shape, self.takes_observed = as_shape(y_shape, "y_shape"), takes_observed
        self.num_features = check.count(num_features, "num_features", least=0)
        inputs = math.prod(self.y_shape) * (2 if takes_observed else 1) + self.num_features
        self.layers = MLP(inputs, 2 * check.count(num_channels, "num_channels"), hidden, activation)

    def forward(
        self, y: Tensor, features: Tensor | None = None, observed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations.

        Raises:
            ShapeError: If y, the features or the mask have another shape.
        """
        vectors = flatten(y, self.y_shape, "MLPEncoder")
        if self.takes_observed:
            mask = torch.ones_like(vectors) if observed is None else flatten(observed, self.y_shape, "MLPEncoder")
            vectors = torch.cat([vectors, mask.to(vectors.dtype)], dim=-1)
        mean, log_variance = self.layers(append(vectors, features, self.num_features, "MLPEncoder")).chunk(2, dim=-1)
        return mean, log_variance.exp()


class MLPDecoder(Configurable, nn.Module):
    """A perceptron from latent channels to the parameter of the likelihood.

    Args:
        num_channels: Latent channels L.
        y_shape: Shape of one observation.
        hidden: Widths of the hidden layers.
        num_features: F, features that `CVAE` appends to z; 0 for none.
        activation: As in `MLP`.

    Shape:
        Input (*batch, L), and features (*batch, F) if F > 0; output (*batch, *y_shape).

    Raises:
        ArgumentError: If a size is not a positive integer, or the activation is unknown.

    Examples:
        >>> MLPDecoder(4, [2, 5])(torch.zeros(7, 4)).shape
        torch.Size([7, 2, 5])
        >>> MLPDecoder(4, [2, 5], num_features=3)(torch.zeros(7, 4), torch.zeros(7, 3)).shape  # of a CVAE
        torch.Size([7, 2, 5])
    """

    def __init__(
        self,
        num_channels: int,
        y_shape: Sequence[int],
        hidden: Sequence[int] = (64, 64),
        num_features: int = 0,
        activation: str = "elu",
    ) -> None:
        super().__init__()
        self.num_channels, self.y_shape = check.count(num_channels, "num_channels"), as_shape(y_shape, "y_shape")
        self.num_features = check.count(num_features, "num_features", least=0)
        self.layers = MLP(self.num_channels + self.num_features, math.prod(self.y_shape), hidden, activation)

    def forward(self, z: Tensor, features: Tensor | None = None) -> Tensor:
        """Return the likelihood's parameter: a mean, or logits.

        Raises:
            ShapeError: If z or the features have another width.
        """
        if not isinstance(z, Tensor):
            check.instance(z, "z", Tensor, "Try torch.as_tensor(z).")
        hint = f"The prior has L channels. Try MLPDecoder({z.shape[-1]}, y_shape)."
        check.shape(z, "z", ("...", self.num_channels), hint)
        output = self.layers(append(z, features, self.num_features, "MLPDecoder"))
        return output.reshape(*z.shape[:-1], *self.y_shape)


class MLPFeatures(Configurable, nn.Module):
    """A perceptron that returns one vector for each observation.

    Args:
        y_shape: Shape of one observation. The network flattens it.
        width: Length of the vector.
        hidden: Widths of the hidden layers.
        activation: As in `MLP`.

    Shape:
        Input (*batch, *y_shape); output (*batch, width).

    Raises:
        ArgumentError: If a size is not a positive integer, or the activation is unknown.

    Examples:
        >>> MLPFeatures([2, 5], width=8)(torch.zeros(7, 2, 5)).shape
        torch.Size([7, 8])
    """

    def __init__(
        self, y_shape: Sequence[int], width: int, hidden: Sequence[int] = (64,), activation: str = "elu"
    ) -> None:
        super().__init__()
        self.y_shape, self.width = as_shape(y_shape, "y_shape"), check.count(width, "width")
        self.layers = MLP(math.prod(self.y_shape), self.width, hidden, activation)

    def forward(self, y: Tensor) -> Tensor:
        """Return the vectors.

        Raises:
            ShapeError: If y has another shape.
        """
        return self.layers(flatten(y, self.y_shape, "MLPFeatures"))
