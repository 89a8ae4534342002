"""Kernels with a state of a few numbers: sums of Matern kernels and constants on one feature."""

from collections.abc import Sequence

import torch
from gpytorch.kernels import AdditiveKernel, ConstantKernel, Kernel, MaternKernel, ProductKernel, ScaleKernel
from torch import Tensor

from fgp_gpytorch.gaussian import MarkovTerm


def markov_terms(kernel: Kernel, num_features: int) -> tuple[list[MarkovTerm], int] | None:
    """The kernel as a sum of Markov terms, with gradients to its hyperparameters.

    Args:
        kernel: `MaternKernel` (nu = 1/2, 3/2 or 5/2), `ConstantKernel`, their sums, and products of a sum with
            constants or scales. Subclasses may compute something else, and are not taken.
        num_features: D.

    Returns:
        The terms, with parameters (*batch_shape, 1), and the column of x that they depend on. None if the kernel has
        another form, or its terms depend on no column or on several.

    Examples:
        >>> kernel = gpytorch.kernels.MaternKernel(nu=1.5) + gpytorch.kernels.ConstantKernel()
        >>> terms, column = markov_terms(kernel, num_features=1)
        >>> [term.order for term in terms], column, markov_terms(gpytorch.kernels.RBFKernel(), num_features=1)
        ([2, 0], 0, None)
    """
    found = _terms(kernel, range(num_features))
    if found is None:
        return None
    columns = {column for _, column in found if column is not None}
    return ([term for term, _ in found], columns.pop()) if len(columns) == 1 else None


_Terms = list[tuple[MarkovTerm, int | None]]  # with the column of x, None for a constant


def _terms(kernel: Kernel, columns: Sequence[int], called: bool = True) -> _Terms | None:
    """Terms of a kernel that gets these columns. A kernel that is not called does not select its `active_dims`."""
    if called and kernel.active_dims is not None:
        places = torch.as_tensor(kernel.active_dims).tolist()
        if min(places) < 0:  # GPyTorch does not take them
            return None
        columns = [columns[index] for index in places]
    if type(kernel) is ConstantKernel:
        return [(MarkovTerm(0, kernel.constant), None)]
    if type(kernel) is MaternKernel and len(columns) == 1:
        order, lengthscale = int(kernel.nu + 0.5), kernel.lengthscale
        assert isinstance(lengthscale, Tensor)
        rate = (2 * kernel.nu) ** 0.5 / lengthscale.squeeze(-1)
        return [(MarkovTerm(order, torch.ones_like(rate), rate), columns[0])]
    if type(kernel) is ScaleKernel:  # it calls the forward of its base
        base = _terms(kernel.base_kernel, columns, called=False)
        return None if base is None else _scaled(base, kernel.outputscale.unsqueeze(-1))
    if type(kernel) is AdditiveKernel:
        parts = [_terms(part, columns) for part in kernel.kernels if isinstance(part, Kernel)]
        return [term for part in parts for term in part or []] if None not in parts else None
    if type(kernel) is ProductKernel:
        return _product([_terms(part, columns) for part in kernel.kernels if isinstance(part, Kernel)])
    return None


def _product(factors: list[_Terms | None]) -> _Terms | None:
    """A product in which one factor at most depends on x."""
    product: _Terms | None = None
    for factor in factors:
        if factor is None:
            return None
        if product is None:
            product = factor
            continue
        if all(column is None for _, column in product):
            product, factor = factor, product
        if any(column is not None for _, column in factor):
            return None
        product = _scaled(product, sum((term.variance for term, _ in factor[1:]), factor[0][0].variance))
    return product


def _scaled(terms: _Terms, scale: Tensor) -> _Terms:
    return [(term._replace(variance=scale * term.variance), column) for term, column in terms]
