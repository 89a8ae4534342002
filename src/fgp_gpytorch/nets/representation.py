"""Networks that describe a whole group by one vector, from its members' observations (paper, Appendix C)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fgp_gpytorch._shapes import check_shape
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.nets.elu import elu
from fgp_gpytorch.nets.mlp import MLPDecoder, as_rows
from fgp_gpytorch.saving import Configurable

_AGGREGATIONS = ("sum", "mean", "attention")


class MLPFeatures(Configurable, nn.Module):
    """A perceptron that gives one vector for each observation.

    Args:
        y_shape: Shape of one observation; it is flattened.
        width: Length of the vector.
        hidden: Widths of the hidden layers.

    Shape:
        Input (*batch, *y_shape); output (*batch, width).
    """

    def __init__(self, y_shape: Sequence[int], width: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        self.y_shape, self.width = tuple(y_shape), width
        self.perceptron = MLPDecoder(math.prod(self.y_shape), [width], hidden)

    def forward(self, y: Tensor) -> Tensor:
        """Return the vectors.

        Raises:
            ShapeError: If y has another shape.
        """
        return self.perceptron(as_rows(y, self.y_shape, "MLPFeatures"))


class PaperFeatures(Configurable, nn.Module):
    """The convolutions of `PaperEncoder` (paper, Table A.1) and one dense layer that gives one vector for each image.

    Args:
        width: Length of the vector.

    Shape:
        Input (*batch, 1, 28, 28), pixels in [0, 1]; output (*batch, width).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2)  # 28 -> 13
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2)  # -> 6
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2)  # -> 2
        self.dense = nn.Linear(32, width)

    def forward(self, y: Tensor) -> Tensor:
        """Return the vectors."""
        hidden = y.reshape(-1, *y.shape[-3:])
        for convolution in (self.conv1, self.conv2, self.conv3):
            hidden = elu(convolution(hidden))
        return self.dense(hidden.flatten(1)).reshape(*y.shape[:-3], self.width)


class RepresentationNetwork(Configurable, nn.Module):
    r"""One vector for a group, from however many of its members were observed (paper, Appendix C).

        d_p = f(sum_q w_q r(y_q)),  q over the observed members

    | aggregation | w_q |
    | --- | --- |
    | "sum" | 1, as Eslami et al. (2018): the vector's length tells the number of members too |
    | "mean" | 1 / Q_p |
    | "attention" | softmax_q(u' r(y_q) / sqrt(width)) with a learned query u, which starts at 0: the mean |

    The order of members does not matter, nor do padding and members that the mask leaves out: r never sees them. A
    group without any observed member has f(0).

    Args:
        r: Module from (*batch, *y_shape) to (*batch, width), such as `PaperFeatures` or `MLPFeatures`.
        f: Module from (*batch, width) to (*batch, m), such as `MLPFeatures([width], m)`; None for the identity.
        aggregation: How members are brought together.
        width: Width of r's output, which attention must know, and a batch in which nobody was observed; None takes
            `r.width` if there is one.

    Shape:
        Input (G, Q, *y_shape) and a mask (G, Q); output (G, m).

    Raises:
        ShapeError: If r or f is no module, or attention is not told the width.
        DataError: If the aggregation is none of the three.

    Example:
        >>> network = RepresentationNetwork(PaperFeatures(16), MLPFeatures([16], 8), "mean")
        >>> network(batch.y, batch.mask).shape
        torch.Size([20, 8])
    """

    def __init__(
        self,
        r: nn.Module,
        f: nn.Module | None = None,
        aggregation: Literal["sum", "mean", "attention"] = "sum",
        width: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("r", r), ("f", f)):
            if not isinstance(value, nn.Module) and not (name == "f" and value is None):
                raise ShapeError(f"{name}: expected a torch Module, got {type(value).__name__}. Try MLPFeatures(...).")
        if aggregation not in _AGGREGATIONS:
            raise DataError(f"aggregation: expected one of {_AGGREGATIONS}, got {aggregation!r}. Try 'mean'.")
        self.r, self.f, self.aggregation = r, f, aggregation
        self.width = width = getattr(r, "width", None) if width is None else width
        if aggregation == "attention":
            if not isinstance(width, int) or width < 1:
                raise ShapeError(
                    f"width: expected the length of r's output for attention, got {width!r}. "
                    "Try RepresentationNetwork(r, f, 'attention', width=16)."
                )
            self.query = nn.Parameter(torch.zeros(width))

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Describe groups.

        Args:
            y: Observations, (G, Q, *y_shape); what stands where the mask is False is not looked at.
            mask: True where a member was observed, (G, Q), bool; None everywhere.

        Returns:
            (G, m).

        Raises:
            ShapeError: If the mask or r's output has the wrong shape.
            DataError: If the mask is not boolean, or no member of any group was observed and the width is not known.
        """
        if mask is None:
            mask = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        check_shape(mask, "mask", tuple(y.shape[:2]), "The first two dimensions of y give G and Q.")
        if mask.dtype != torch.bool:
            raise DataError(f"mask: expected torch.bool, got {mask.dtype}. Try mask.bool(), True = observed.")
        rows: Tensor = self.r(y[mask]) if bool(mask.any()) else self._no_rows(y)
        if rows.dim() != 2 or len(rows) != int(mask.sum()):
            raise ShapeError(
                f"r: expected (N, width) from N = {int(mask.sum())} observations, got {tuple(rows.shape)}. "
                "Try MLPFeatures(y_shape, width), or a module that maps (*batch, *y_shape) to (*batch, width)."
            )
        if self.aggregation == "attention" and rows.shape[-1] != self.width:
            raise ShapeError(
                f"r: expected vectors of the length {self.width} that attention was told, got {rows.shape[-1]}. "
                f"Try RepresentationNetwork(r, f, 'attention', width={rows.shape[-1]})."
            )
        members = rows.new_zeros(*mask.shape, rows.shape[-1]).masked_scatter(mask.unsqueeze(-1), rows)
        aggregate = (self._weights(members, mask).unsqueeze(-1) * members).sum(1)
        return aggregate if self.f is None else self.f(aggregate)

    def _no_rows(self, y: Tensor) -> Tensor:  # shape: (0, width)
        if not isinstance(self.width, int):
            raise DataError(
                "mask: expected an observed member in some group, got none, and the length of r's output is not known. "
                "Try RepresentationNetwork(r, f, width=16)."
            )
        return y.new_zeros(0, self.width)

    def _weights(self, members: Tensor, mask: Tensor) -> Tensor:
        """w, (G, Q), 0 at members that are not observed."""
        if self.aggregation == "sum":
            return mask.to(members.dtype)
        if self.aggregation == "mean":
            return mask.to(members.dtype) / mask.sum(-1, keepdim=True).clamp_min(1)
        scores = members @ self.query / math.sqrt(len(self.query))
        # the lowest finite number and not -inf, whose softmax over a group without members is NaN
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return torch.where(mask, scores.softmax(-1), 0.0)
