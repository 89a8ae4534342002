"""Networks that describe a whole group by one vector (paper, Appendix C)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.saving import Configurable


class RepresentationNetwork(Configurable, nn.Module):
    r"""One vector for a group, from any number of observed members (paper, Appendix C).

        d_p = f(sum_q w_q r(y_q)),  q over the observed members

    | aggregation | w_q |
    | --- | --- |
    | "sum" | 1, as Eslami et al. (2018): the vector's length grows with the number of members |
    | "mean" | 1 / Q_p |
    | "attention" | softmax_q(u' r(y_q) / sqrt(width)) with a learned query u, which starts at 0: the mean |

    The order of members does not matter. Padding and masked members do not enter r. A group without observed members
    has the vector f(0).

    Args:
        r: Module from (*batch, *y_shape) to (*batch, width), such as `ConvFeatures` or `MLPFeatures`.
        f: Module from (*batch, width) to (*batch, m), such as `MLPFeatures([width], m)`; None for the identity.
        aggregation: The weights of the table.
        width: Width of r's output. Attention needs it, and so does a batch without observed members. None takes
            `r.width` if r has that attribute.

    Shape:
        Input (G, Q, *y_shape) and a mask (G, Q); output (G, m).

    Raises:
        ArgumentError: If r or f is no module, the aggregation is none of the three, or attention has no width.

    Examples:
        >>> network = RepresentationNetwork(MLPFeatures([5], 16), MLPFeatures([16], 8), "mean")
        >>> y = torch.rand(2, 3, 5)
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> network(y, mask).shape  # a vector for each of two groups
        torch.Size([2, 8])
    """

    def __init__(
        self,
        r: nn.Module,
        f: nn.Module | None = None,
        aggregation: Literal["sum", "mean", "attention"] = "sum",
        width: int | None = None,
    ) -> None:
        super().__init__()
        check.instance(r, "r", nn.Module, "Try MLPFeatures(...).")
        check.instance(f, "f", (nn.Module, type(None)), "Try MLPFeatures(...).")
        check.choice(aggregation, "aggregation", ("mean", "sum", "attention"))
        self.r, self.f, self.aggregation = r, f, aggregation
        if width is not None:
            width = check.count(width, "width", hint="Try RepresentationNetwork(r, f, width=16).")
        self.width = width = getattr(r, "width", None) if width is None else width
        if aggregation == "attention":
            hint = "It is the length of r's output. Try RepresentationNetwork(r, f, 'attention', width=16)."
            self.query = nn.Parameter(torch.zeros(check.count(width, "width", hint=hint)))

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Describe groups.

        Args:
            y: Observations, (G, Q, *y_shape). Entries where the mask is False are ignored.
            mask: True where a member was observed, (G, Q), bool; None everywhere.

        Returns:
            (G, m).

        Raises:
            ArgumentError: If y or the mask is no tensor.
            ShapeError: If the mask or r's output has the wrong shape.
            DataError: If the mask is not boolean, or all groups are empty and the width of r's output is unknown.
        """
        check.instance(y, "y", Tensor, "Try torch.as_tensor(y).")
        if mask is None:
            mask = torch.ones(y.shape[:2], dtype=torch.bool, device=y.device)
        check.mask(mask, "mask", y.shape[:2], "The first two dimensions of y are G and Q.")
        vectors: Tensor = self.r(y[mask]) if bool(mask.any()) else self._no_vectors(y)
        width = len(self.query) if self.aggregation == "attention" else "width"
        hint = "Try MLPFeatures(y_shape, width), or a module that maps (*batch, *y_shape) to (*batch, width)."
        check.instance(vectors, "r", Tensor, hint)
        check.shape(vectors, "r", (int(mask.sum()), width), hint)
        members = vectors.new_zeros(*mask.shape, vectors.shape[-1]).masked_scatter(mask.unsqueeze(-1), vectors)
        aggregate = (self._weights(members, mask).unsqueeze(-1) * members).sum(1)
        return aggregate if self.f is None else self.f(aggregate)

    def _no_vectors(self, y: Tensor) -> Tensor:  # shape: (0, width)
        if not isinstance(self.width, int):
            raise DataError(
                "mask: expected an observed member in some group, got none, and the length of r's output is unknown. "
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
