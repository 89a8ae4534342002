"""Observations whose elements are of different kinds."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.likelihoods.elements import Elements
from fgp_gpytorch.likelihoods.likelihood import Likelihood, sum_per_member
from fgp_gpytorch.likelihoods.mixtures import mixture_variance

_VALUES_AT_ONCE = 2**21  # outputs of `quantiles`


class ColumnLikelihood(Likelihood):
    r"""p(y | z) = prod_parts p(y_part | output_part): elements of different kinds, independent given z.

    | part | elements of y | outputs | E[y given z] |
    | --- | --- | --- | --- |
    | `GaussianElements(n)` | n real numbers | n, or 2 n if heteroscedastic | the output |
    | `BernoulliElements(n)` | n times 0 or 1 | n logits | the probability |
    | `CategoricalElements(C)` | C, one-hot | C logits | the probabilities |
    | `OrdinalElements(levels)` | one code 0, ... levels - 1 | 1 | the expected code |
    | `PoissonElements(n)`, `NegativeBinomialElements(n)` | n counts | n logs of the mean | the expected count |

    Counts and codes are in raw units. The decoder has `num_outputs` outputs, which may be more than the elements of y:
    `MLPDecoder(num_channels, likelihood.output_shape())`.

    Args:
        parts: The kinds of elements, in the order of the elements of y.
        y_shape: Shape of one observation; None for a vector (K,). Its elements, flattened, are those of the parts.
            Anything but a vector needs as many outputs as elements.

    Attributes:
        parts: The parts, a ModuleList.
        y_shape: Shape of one observation.
        element_blocks: For each element of y, flattened, the number of its block, int64 (K,). The elements of a block
            are observed together or not at all. A one-hot category is one block, any other element is its own.

    Raises:
        ArgumentError: If there is no part, one is no `Elements`, or `y_shape` is not a sequence of sizes.
        ShapeError: If `y_shape` does not fit the parts. In use, if observations or outputs have another shape.
        DataError: In use, if a value is impossible for its kind, or a block is observed in part.

    Examples:
        >>> likelihood = ColumnLikelihood([GaussianElements(3), BernoulliElements(), CategoricalElements(4)])
        >>> likelihood.output_shape()  # 3 means, a logit, 4 logits
        (8,)
        >>> decoder = MLPDecoder(6, likelihood.output_shape())
    """

    parts: nn.ModuleList
    element_blocks: Tensor

    def __init__(self, parts: Sequence[Elements], y_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        hint = "Try [GaussianElements(3), BernoulliElements()]."
        check.instance(parts, "parts", (list, tuple, nn.ModuleList), hint)
        if not len(parts):
            raise ArgumentError(f"parts: expected at least one kind of elements, got none. {hint}")
        self.parts = nn.ModuleList([check.instance(part, "parts", Elements, hint) for part in parts])
        if y_shape is None:
            sizes: Sequence[int] = (self.num_elements,)
        else:
            sizes = check.instance(y_shape, "y_shape", (tuple, list), "Try data.y_shape.")
        self.y_shape = torch.Size(check.count(size, "y_shape") for size in sizes)
        if math.prod(self.y_shape) != self.num_elements:
            raise ShapeError(
                f"y_shape: expected a shape of {self.num_elements} elements, those of the parts, got "
                f"{tuple(self.y_shape)}. Try y_shape=None for vectors."
            )
        if len(self.y_shape) != 1 and self.num_outputs != self.num_elements:
            raise ShapeError(
                f"y_shape: expected vectors ({self.num_elements},) for parts with {self.num_outputs} outputs, got "
                f"{tuple(self.y_shape)}. Try parts without heteroscedastic=True."
            )
        blocks: list[int] = []
        for part in self._parts():
            first = blocks[-1] + 1 if blocks else 0
            blocks += [first] * part.num_elements if part.one_block else range(first, first + part.num_elements)
        self.register_buffer("element_blocks", torch.tensor(blocks), persistent=False)

    @property
    def num_elements(self) -> int:
        """K, the elements of y."""
        return sum(part.num_elements for part in self._parts())

    @property
    def num_outputs(self) -> int:
        """Outputs of the decoder for one observation."""
        return sum(part.num_outputs for part in self._parts())

    @property
    def y_slices(self) -> list[slice]:
        """The elements of y of each part."""
        return _slices([part.num_elements for part in self._parts()])

    @property
    def output_slices(self) -> list[slice]:
        """The outputs of each part. The first `num_elements` of them belong to the part's elements."""
        return _slices([part.num_outputs for part in self._parts()])

    def element_outputs(self, y_shape: Sequence[int] | None = None) -> Tensor:
        """The output of each element of y, int64 (K,): where the rows of a linear decoder belong."""
        slices = zip(self.output_slices, self._parts(), strict=True)
        return torch.cat([torch.arange(part.num_elements) + outputs.start for outputs, part in slices])

    def constant_variance(self) -> Tensor | None:
        """The variance of each element if all are Gaussian and none is heteroscedastic, (*y_shape); else None."""
        found = [part.constant_variance() for part in self._parts()]
        known = [variance for variance in found if variance is not None]
        return torch.cat(known).reshape(self.y_shape) if len(known) == len(found) else None

    def element_variances(self) -> Tensor | None:
        """The variance of each Gaussian element without outputs of its own, NaN for the others, (*y_shape)."""
        found = [(part, part.constant_variance()) for part in self._parts()]
        known = [variance for _, variance in found if variance is not None]
        if not known:
            return None
        unknown = known[0].detach() * torch.nan
        rows = [unknown[:1].expand(part.num_elements) if own is None else own for part, own in found]
        return torch.cat(rows).reshape(self.y_shape)

    def output_shape(self, y_shape: Sequence[int] | None = None) -> tuple[int, ...]:
        """Shape of the decoder's output for one observation: (num_outputs,) for vectors, else that of y.

        Args:
            y_shape: Shape of one observation, which is checked; None for that of the likelihood.

        Raises:
            ShapeError: If observations have another shape than the likelihood.
        """
        if y_shape is not None and tuple(y_shape) != self.y_shape:
            raise ShapeError(
                f"y: expected observations of shape {tuple(self.y_shape)}, the elements of the likelihood's parts, got "
                f"{tuple(y_shape)}. Try a ColumnLikelihood with one part for each kind of elements of y."
            )
        return (self.num_outputs,) if len(self.y_shape) == 1 else tuple(self.y_shape)

    # of every element

    def distribution(
        self, output: Tensor, y: Tensor | None = None, observed: Tensor | None = None
    ) -> dist.TorchDistribution:
        """Distribution of the elements of y, with their batch shape. A draw of a category is one-hot.

        Args:
            output: The decoder's output, (*batch, *output_shape).
            y: Observations, whose range is checked.
            observed: Which of them count; None for all.

        Raises:
            ShapeError: If the output has another shape.
            DataError: If a value is impossible, or a block is observed in part.
        """
        self._flat_outputs(output)
        if y is not None:
            self.check_range(y, observed)
        return _ColumnDistribution(self, output)

    def mean(self, output: Tensor) -> Tensor:
        """E[y | z], (*batch, *y_shape): means, probabilities, expected counts and codes.

        Raises:
            ShapeError: If the output has another shape.
        """
        return self._answers([part.mean(own) for part, own in self._with_outputs(output)])

    def variance(self, output: Tensor) -> Tensor:
        """Var[y | z] of each element, (*batch, *y_shape).

        Raises:
            ShapeError: If the output has another shape.
        """
        return self._answers([part.variance(own) for part, own in self._with_outputs(output)])

    def sample(self, output: Tensor) -> Tensor:
        """One draw of y for each output, (*batch, *y_shape).

        Raises:
            ShapeError: If the output has another shape.
        """
        return self._answers([part.sample(own) for part, own in self._with_outputs(output)])

    def cdf(self, output: Tensor, value: Tensor) -> Tensor:
        """P(y <= value | z) of each element by itself, (*batch, *y_shape).

        Args:
            output: The decoder's output, (*batch, *output_shape).
            value: (*y_batch, *y_shape). Its leading dimensions broadcast against those of the output.

        Raises:
            ShapeError: If a shape does not fit.
        """
        values = self._flat_elements(value, "value").split([part.num_elements for part in self._parts()], -1)
        pairs = zip(self._with_outputs(output), values, strict=True)
        return self._answers([part.cdf(own, v) for (part, own), v in pairs])

    def element_log_prob(self, output: Tensor, y: Tensor) -> Tensor:
        """Log probability or log density of each element, nats, (*batch, *y_shape). Its range is not checked.

        Args:
            output: The decoder's output, (*batch, *output_shape).
            y: Observations, (*y_batch, *y_shape). `y_batch` is the end of `batch`.

        Raises:
            ShapeError: If a shape does not fit.
        """
        front = output.shape[: output.dim() - len(self.y_shape)]
        batch = y.shape[: y.dim() - len(self.y_shape)]
        if front[len(front) - len(batch) :] != batch:
            raise ShapeError(
                f"y: expected the leading dimensions of the output {tuple(output.shape)}, got {tuple(y.shape)}. "
                "Try y of shape (G, Q, *y_shape)."
            )
        values = self._flat_elements(y, "y").split([part.num_elements for part in self._parts()], -1)
        pairs = zip(self._with_outputs(output), values, strict=True)
        return self._answers([part.log_prob(own, v) for (part, own), v in pairs])

    def possible(self, y: Tensor) -> Tensor:
        """True where an element is possible for its kind, the shape of y.

        Raises:
            ShapeError: If y has another shape.
        """
        values = self._flat_elements(y, "y").split([part.num_elements for part in self._parts()], -1)
        return self._answers([part.possible(v) for part, v in zip(self._parts(), values, strict=True)])

    # the likelihood

    def log_prob(self, output: Tensor, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(y | z) summed over the observed elements of each member, nats, (*s, G, Q)."""
        self.check_range(y, observed)
        output, y = self.without_gaps(output, y, observed)
        terms = self.element_log_prob(output, y)
        if observed is not None:
            terms = torch.where(observed, terms, 0.0)
        return sum_per_member(terms, y)

    def without_gaps(self, output: Tensor, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The outputs as they are, and y with 0 where nothing was observed: every kind is defined there."""
        return output, y if observed is None else torch.where(observed, y, 0.0)

    def gap_value(self, y: Tensor) -> float:
        """The value that networks get where nothing was observed: 0."""
        return 0.0

    def check_range(self, y: Tensor, observed: Tensor | None = None) -> None:
        """Require possible values, and blocks that are observed as wholes.

        Raises:
            ShapeError: If y has another shape.
            DataError: If a value is impossible for its kind, or a block is observed in part.
        """
        for part, own, (value, mask) in self._with_elements(y, observed):
            part.check_range(value, mask, f"y[..., {own.start}:{own.stop}]")

    # starts

    def starting_output(self, y: Tensor, observed: Tensor | None = None) -> Tensor:
        """The output that fits y best without latents, `output_shape`: a start for the decoder's last bias.

        Means of real numbers, logits of frequencies, logs of mean counts, and 0 for codes, whose thresholds
        `initialize` sets.

        Args:
            y: Observations, (*batch, *y_shape).
            observed: Which of them count, the shape of y; None for all.

        Raises:
            ShapeError: If y has another shape.
            DataError: If a value is impossible.
        """
        self.check_range(y, observed)
        own = [part.starting_output(*values) for part, _, values in self._with_elements(y, observed)]
        return torch.cat(own).reshape(self.output_shape())

    def initialize(self, y: Tensor, observed: Tensor | None = None, residual_variance: Tensor | None = None) -> None:
        """Set the learned parameters from data: variances, thresholds and dispersions.

        Args:
            y: Observations, (*batch, *y_shape).
            observed: Which of them count, the shape of y; None for all.
            residual_variance: Variance of y that the latents leave unexplained, (*y_shape), for Gaussian elements.
                Other elements ignore it. None takes the variance of y.

        Raises:
            ShapeError: If a shape does not fit.
            DataError: If a value is impossible.
        """
        self.check_range(y, observed)
        residual = None
        if residual_variance is not None:
            check.shape(residual_variance, "residual_variance", tuple(self.y_shape), "Try None, the variance of y.")
            residual = residual_variance.flatten()
        for part, own, values in self._with_elements(y, observed):
            part.initialize(*values, residual if residual is None else residual[own])

    # mixtures over draws

    @torch.no_grad()
    def moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y under equally likely outputs: E[y], and E[Var] + Var[E].

        Args:
            output: S draws of the decoder's output, (S, *batch, *output_shape).

        Returns:
            Two tensors (*batch, *y_shape).

        Raises:
            ShapeError: If the output has another shape.
        """
        mean = self.mean(self._draws(output))
        return mean.mean(0), mixture_variance(mean, self.variance(output))

    @torch.no_grad()
    def quantiles(self, output: Tensor, probabilities: Sequence[float] | Tensor) -> Tensor:
        """Quantiles of each element of y under equally likely outputs, with the noise of the likelihood.

        A real number is exact to 1e-7 of the smallest standard deviation of a draw. Any other element gets the
        smallest integer whose probability of not being exceeded reaches `probability`. Of a category this is 0 or 1.

        Args:
            output: S draws of the decoder's output, (S, *batch, *output_shape).
            probabilities: P numbers in (0, 1).

        Returns:
            (P, *batch, *y_shape), in the dtype of the output.

        Raises:
            ArgumentError: If a probability is outside (0, 1), or they are not a sequence.
            ShapeError: If the output has another shape.
        """
        flat = self._flat_outputs(self._draws(output))
        check.instance(probabilities, "probabilities", (Sequence, Tensor), "Try [0.05, 0.5, 0.95].")
        levels = [check.positive(p, "probabilities", below=1, hint="Try [0.05, 0.5, 0.95].") for p in probabilities]
        rows = flat.flatten(1, -2) if flat.dim() > 2 else flat.unsqueeze(1)
        found = rows.new_empty(len(levels), rows.shape[1], self.num_elements)
        step = max(1, _VALUES_AT_ONCE // max(1, len(rows) * self.num_outputs))
        for start in range(0, rows.shape[1], step):
            some = rows[:, start : start + step].double()
            for part, elements, outputs in zip(self._parts(), self.y_slices, self.output_slices, strict=True):
                for place, probability in enumerate(levels):
                    answer = part.quantile(some[..., outputs], probability)
                    found[place, start : start + step, elements] = answer.to(found.dtype)
        return found.reshape(len(levels), *flat.shape[1:-1], *self.y_shape)

    # shapes

    def _parts(self) -> list[Elements]:
        return list(self.parts)  # pyright: ignore[reportReturnType]

    def _draws(self, output: Tensor) -> Tensor:
        if output.dim() <= len(self.y_shape) or not len(output):
            raise ShapeError(
                f"output: expected draws (S, *batch, *{self.output_shape()}), got {tuple(output.shape)}. "
                "Try output.unsqueeze(0) for a single draw."
            )
        return output

    def _flat_outputs(self, output: Tensor) -> Tensor:  # shape: (*batch, *output_shape) -> (*batch, num_outputs)
        """Outputs as vectors. They must be so many: nothing is broadcast or left out."""
        own = self.output_shape()
        hint = "Try MLPDecoder(num_channels, likelihood.output_shape())."
        check.shape(output, "output", ("...", *own), hint)
        return output.reshape(*output.shape[: output.dim() - len(own)], self.num_outputs)

    def _flat_elements(self, y: Tensor, name: str) -> Tensor:  # shape: (*batch, *y_shape) -> (*batch, K)
        check.shape(y, name, ("...", *self.y_shape), "Try the elements of the likelihood's parts, in their order.")
        return y.reshape(*y.shape[: y.dim() - len(self.y_shape)], self.num_elements)

    def _with_outputs(self, output: Tensor) -> list[tuple[Elements, Tensor]]:
        sizes = [part.num_outputs for part in self._parts()]
        return list(zip(self._parts(), self._flat_outputs(output).split(sizes, -1), strict=True))

    def _with_elements(
        self, y: Tensor, observed: Tensor | None
    ) -> Iterator[tuple[Elements, slice, tuple[Tensor, Tensor | None]]]:
        """Each part, its elements of y, and their values and mask."""
        flat = self._flat_elements(y, "y")
        mask = None if observed is None else self._flat_elements(observed, "observed")
        for part, own in zip(self._parts(), self.y_slices, strict=True):
            yield part, own, (flat[..., own], None if mask is None else mask[..., own])

    def _answers(self, values: list[Tensor]) -> Tensor:  # shape: (*batch, n) of each part -> (*batch, *y_shape)
        flat = torch.cat(values, -1)
        return flat.reshape(*flat.shape[:-1], *self.y_shape)


class _ColumnDistribution(dist.TorchDistribution):
    """Elements of different kinds, with the batch shape of y.

    Args:
        likelihood: Their kinds.
        output: The decoder's output, (*batch, *output_shape).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, likelihood: ColumnLikelihood, output: Tensor) -> None:
        self._likelihood, self._output = likelihood, output
        front = output.shape[: output.dim() - len(likelihood.y_shape)]
        super().__init__(front + likelihood.y_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Values that are possible at their places."""
        return _Possible(self._likelihood)

    @property
    def mean(self) -> Tensor:
        """E[y | output]."""
        return self._likelihood.mean(self._output)

    @property
    def variance(self) -> Tensor:
        """Var[y | output]."""
        return self._likelihood.variance(self._output)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability or log density of each element, nats."""
        return self._likelihood.element_log_prob(self._output, value)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, *batch, *y_shape)."""
        return self._likelihood.sample(self._output.expand(*sample_shape, *self._output.shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_ColumnDistribution":
        """The distribution with more leading dimensions. The shape of y stays."""
        front = torch.Size(batch_shape)[: len(batch_shape) - len(self._likelihood.y_shape)]
        return _ColumnDistribution(self._likelihood, self._output.expand(*front, *self._likelihood.output_shape()))


class _Possible(constraints.Constraint):
    """Values that are possible for the kinds of elements."""

    def __init__(self, likelihood: ColumnLikelihood) -> None:
        self._likelihood = likelihood
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """True where a value is possible."""
        return self._likelihood.possible(value)


def _slices(sizes: list[int]) -> list[slice]:
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
