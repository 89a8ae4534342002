"""The covariance of members that share a code: groups inside groups."""

from collections.abc import Sequence
from typing import Any

import torch
from gpytorch import settings
from gpytorch.kernels import Kernel
from linear_operator import to_dense
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, ShapeError


class WithinKernel(Kernel):
    r"""A kernel within the inner groups of a group, zero between them.

        k((c, w), (c', w')) = delta(c, c') k_base(w, w')

    c is a column of x that contains the code of an inner group, such as an utterance of a speaker. w are the other
    columns. Codes are compared exactly. The base kernel never gets them. `GroupedDataset.from_dataframe` makes such a
    column for `group=["speaker", "utterance"]`, and `data.levels["utterance"].feature` is its place in x.

    In a block of channels the kernel says on which level a channel varies. The sum of several is a channel that varies
    on all of them. With x = (time, utterance):

    | kernel | a channel of it |
    | --- | --- |
    | `WithinKernel(matern, 1)` | a curve for each utterance |
    | `WithinKernel(ConstantKernel(), 1)` | one value for each utterance |
    | `MaternKernel(active_dims=[0])` | a curve that all utterances of a speaker share |
    | `ConstantKernel()`, `GlobalChannels` | one value for each speaker |

    Args:
        base_kernel: The covariance within an inner group. Its `active_dims` and `ard_num_dims` count the columns that
            are left. Its `batch_shape` becomes this kernel's.
        feature: The column of the code. Negative numbers count from the end.
        hidden: Further columns that the base kernel must not get, such as the codes of other levels.
        active_dims: As in any GPyTorch kernel. `feature` and `hidden` then count the active columns.

    Shapes:
        x1 (*batch, N, D) and x2 (*batch, M, D) give (*batch, N, M), or (*batch, N) with `diag=True`. With
        `last_dim_is_batch=True` every column that is left is a batch element: (*batch, D - 1, N, M). N and M count m
        times if the base has m outputs for each input.

    Raises:
        ArgumentError: If the base is no kernel, or a column is no integer.
        ShapeError: If x does not have the columns.

    Examples:
        >>> kernel = WithinKernel(gpytorch.kernels.RBFKernel(), feature=1)
        >>> x = torch.tensor([[0.1, 0.0], [0.3, 0.0], [0.1, 1.0]])  # two rows of utterance 0, one of utterance 1
        >>> kernel(x).to_dense().count_nonzero()
        tensor(5)
    """

    def __init__(
        self,
        base_kernel: Kernel,
        feature: int,
        hidden: Sequence[int] = (),
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(active_dims=active_dims)
        self.base_kernel = check.instance(base_kernel, "base_kernel", Kernel, "Try gpytorch.kernels.RBFKernel().")
        self.feature = _integer(feature, "feature")
        self.hidden = tuple(_integer(column, "hidden") for column in hidden)

    @property
    def is_stationary(self) -> bool:
        """Whether k depends on x - x' alone, as the base kernel does or does not."""
        return self.base_kernel.is_stationary

    def columns(self, num_features: int) -> tuple[int, list[int]]:
        """The column of the code, and the columns that the base kernel gets, of x with D features.

        Raises:
            ShapeError: If x does not have a column.
        """
        beyond = [column for column in (self.feature, *self.hidden) if not -num_features <= column < num_features]
        if beyond:
            raise ShapeError(
                f"x: expected a column {beyond[0]} with the code of an inner group, got D = {num_features} features. "
                "Try GroupedDataset.from_dataframe(group=['speaker', 'utterance']), which appends one."
            )
        code = self.feature % num_features
        removed = {code, *(column % num_features for column in self.hidden)}
        return code, [column for column in range(num_features) if column not in removed]

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> Any:
        """The base kernel's number of outputs for each input."""
        _, rest = self.columns(x1.shape[-1])
        return self.base_kernel.num_outputs_per_input(x1[..., rest], x2[..., rest])

    def __call__(
        self, x1: Tensor, x2: Tensor | None = None, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Any:
        """Call the kernel as any GPyTorch kernel."""
        # a lazy matrix would expect one batch element for each column, the code's too
        lazily = bool(settings.lazily_evaluate_kernels.on()) and not last_dim_is_batch
        with settings.lazily_evaluate_kernels(lazily):
            return super().__call__(x1, x2, diag=diag, last_dim_is_batch=last_dim_is_batch, **params)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Evaluate the kernel. The errors are those of the class."""
        code, rest = self.columns(x1.shape[-1])
        if last_dim_is_batch:
            params["last_dim_is_batch"] = True
        value = to_dense(self.base_kernel(x1[..., rest], x2[..., rest], diag=diag, **params))
        left, right = x1[..., code], x2[..., code]
        same = left == right if diag else left.unsqueeze(-1) == right.unsqueeze(-2)
        outputs = self.num_outputs_per_input(x1, x2)
        outputs1, outputs2 = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        if outputs1 != 1 or outputs2 != 1:
            same = same.repeat_interleave(outputs1, -1 if diag else -2)
            same = same if diag else same.repeat_interleave(outputs2, -1)
        if last_dim_is_batch:  # the dimension of the features follows the batch's
            same = same.unsqueeze(-2 if diag else -3)
        return torch.where(same, value, 0.0)


def _integer(value: int, name: str) -> int:
    number = check.number(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ArgumentError(f"{name}: expected the number of a column of x, got {value!r}. Try 1.")
    return number
