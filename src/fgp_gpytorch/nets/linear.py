"""Networks that start as a linear factor model: a linear path, and a residual perceptron that starts at zero."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.nets._inputs import as_shape, flatten
from fgp_gpytorch.nets.mlp import MLP
from fgp_gpytorch.saving import Configurable

_LEAST_INFORMATION = 1e-6  # 1 - V_jj: a channel without a loading gets a pseudo-variance of a million
_LARGEST_LOG_STEP = 8.0  # of the residual network, on the log of a pseudo-variance


class LinearEncoder(Configurable, nn.Module):
    r"""Encoder of a linear factor model y = offset + W z + noise, plus a residual network that starts at zero.

    The linear path is exact for gaps. With the observed rows W_o of a member and the noise D_o,

        V = (I + W_o' D_o^-1 W_o)^-1,   m = V W_o' D_o^-1 (y_o - offset_o)
        1 / sigma_j^2 = 1 / V_jj - 1,   mu_j = m_j / (1 - V_jj)

    so a pseudo-observation times N(z_j | 0, 1) has the mean and the variance of p(z_j | y_o) under z ~ N(0, I). If the
    columns of D^-1/2 W are orthogonal, the pseudo-observations are the likelihood of z itself, and the ELBO of a linear
    decoder is the evidence of the multi-output Gaussian process. Otherwise it is a bound.

    Args:
        y_shape: Shape of one observation. The network flattens it to K elements.
        num_channels: Latent channels L.
        hidden: Widths of the residual network; an empty list leaves it out.
        log_elements: Positions among the K elements that the network takes as log(1 + y), such as counts.

    Attributes:
        loadings: W, (K, L), random with variance 1 / L at the start.
        offset: (K,), 0 at the start.
        log_variance: log diag D, (K,), 0 at the start.

    Shape:
        Input (*batch, *y_shape) and a mask of that shape or None; output a mean and a variance, each (*batch, L).

    Raises:
        ArgumentError: If a size is not a positive integer, or a position is not one of the K elements.

    Examples:
        >>> encoder = LinearEncoder([2], num_channels=1)
        >>> encoder.loadings.data = torch.ones(2, 1)
        >>> observed = torch.tensor([[True, True], [True, False]])
        >>> mean, variance = encoder(torch.tensor([[3.0, 5.0], [3.0, 0.0]]), observed)
        >>> mean.detach().T, variance.detach().T  # a gap is left out: the mean of 3 and 5, and 3 alone
        (tensor([[4.0000, 3.0000]]), tensor([[0.5000, 1.0000]]))
    """

    takes_observed = True
    logged: Tensor
    residual: MLP | None

    def __init__(
        self,
        y_shape: Sequence[int],
        num_channels: int,
        hidden: Sequence[int] = (64, 64),
        log_elements: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.y_shape = as_shape(y_shape, "y_shape")
        self.num_channels = check.count(num_channels, "num_channels")
        size = math.prod(self.y_shape)
        logged = torch.zeros(size, dtype=torch.bool)
        for position in log_elements:
            if not 0 <= check.count(position, "log_elements", least=0) < size:
                raise ArgumentError(f"log_elements: expected positions below K = {size}, got {position}. Try 0.")
            logged[position] = True
        self.register_buffer("logged", logged, persistent=False)
        self.loadings = nn.Parameter(torch.randn(size, num_channels) / math.sqrt(num_channels))
        self.offset = nn.Parameter(torch.zeros(size))
        self.log_variance = nn.Parameter(torch.zeros(size))
        self.residual = zero_residual(2 * size, 2 * num_channels, hidden)

    def working_values(self, y: Tensor) -> Tensor:
        """Observations on the scale of the linear path: flat, and log(1 + y) for the logged elements, (*batch, K)."""
        rows = flatten(y, self.y_shape, "LinearEncoder")
        if bool(self.logged.any()):
            rows = torch.where(self.logged, rows.clamp_min(0).log1p(), rows)
        return rows

    def forward(self, y: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the pseudo-observations.

        Raises:
            ShapeError: If y or the mask has another shape.
        """
        rows = self.working_values(y) - self.offset
        precision = (-self.log_variance).exp()  # (K,): rows without gaps share V
        seen = torch.ones_like(rows)
        if observed is not None:
            seen = flatten(observed, self.y_shape, "LinearEncoder").to(rows)
            rows, precision = rows * seen, precision * seen  # (*batch, K)
        weighted = precision.unsqueeze(-1) * self.loadings  # D_o^-1 W_o, (K, L) or (*batch, K, L)
        identity = torch.eye(self.num_channels, dtype=rows.dtype, device=rows.device)
        inverse = torch.linalg.inv(identity + self.loadings.mT @ weighted)  # V; all eigenvalues of I + ... are >= 1
        mean = (rows.unsqueeze(-2) @ weighted @ inverse).squeeze(-2)
        own = inverse.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(rows.dtype).tiny).expand(mean.shape)
        information = (1 - own).clamp_min(_LEAST_INFORMATION)
        mean, variance = mean / information, own / information
        if self.residual is not None:
            scaled = rows * (-0.5 * self.log_variance.detach()).exp().clamp_max(1.0)
            step, log_step = self.residual(torch.cat([scaled, seen], dim=-1)).chunk(2, dim=-1)
            mean, variance = mean + step, variance * log_step.clamp(-_LARGEST_LOG_STEP, _LARGEST_LOG_STEP).exp()
        return mean, variance


class LinearDecoder(Configurable, nn.Module):
    """Decoder offset + W z, plus a residual network that starts at zero.

    Args:
        num_channels: Latent channels L.
        y_shape: Shape of the output: of one observation, or of the likelihood's parameter.
        hidden: Widths of the residual network; an empty list leaves it out.

    Attributes:
        loadings: W, (K, L), random with variance 1 / L at the start.
        offset: (K,), 0 at the start.

    Shape:
        Input (*batch, L); output (*batch, *y_shape).

    Raises:
        ArgumentError: If a size is not a positive integer.

    Examples:
        >>> decoder = LinearDecoder(2, [3])
        >>> z = torch.rand(5, 2)
        >>> torch.allclose(decoder(z), z @ decoder.loadings.mT)  # before training
        True
    """

    def __init__(self, num_channels: int, y_shape: Sequence[int], hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.num_channels, self.y_shape = check.count(num_channels, "num_channels"), as_shape(y_shape, "y_shape")
        size = math.prod(self.y_shape)
        self.loadings = nn.Parameter(torch.randn(size, num_channels) / math.sqrt(num_channels))
        self.offset = nn.Parameter(torch.zeros(size))
        self.residual = zero_residual(num_channels, size, hidden)

    def forward(self, z: Tensor) -> Tensor:
        """Return the likelihood's parameter.

        Raises:
            ShapeError: If z has another width.
        """
        check.shape(z, "z", ("...", self.num_channels), f"The prior has L channels. Try LinearDecoder({z.shape[-1]}).")
        output = torch.nn.functional.linear(z, self.loadings, self.offset)
        if self.residual is not None:
            output = output + self.residual(z)
        return output.reshape(*z.shape[:-1], *self.y_shape)


def zero_residual(num_inputs: int, num_outputs: int, hidden: Sequence[int]) -> MLP | None:
    """A perceptron whose last layer is zero; None without hidden layers."""
    if not hidden:
        return None
    network = MLP(num_inputs, num_outputs, hidden)
    zero_last_layer(network)
    return network


def zero_last_layer(network: MLP) -> None:
    """Set the last layer to zero."""
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
