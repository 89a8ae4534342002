"""Covariances of several channels as one GPyTorch distribution over members and channels."""

from collections.abc import Sequence

from gpytorch.distributions import MultitaskMultivariateNormal
from linear_operator import to_linear_operator
from torch import Tensor


def multitask_normal(mean: Tensor, parts: Sequence[Tensor]) -> MultitaskMultivariateNormal:
    """The joint distribution of L channels at Q members.

    Args:
        mean: (*b, Q, L).
        parts: Covariances of channels that are independent of each other. Each is (*b, N, N) with N = J Q for J
            channels, rows ordered by channel and then by member. They may be singular.

    Returns:
        Batch shape *b, event shape (Q, L).

    Examples:
        >>> parts = [torch.eye(3), 4 * torch.eye(3)]  # of two channels at three members
        >>> distribution = multitask_normal(torch.zeros(3, 2), parts)
        >>> distribution.event_shape, distribution.variance
        (torch.Size([3, 2]), tensor([[1., 4.],
                [1., 4.],
                [1., 4.]]))
    """
    whole = block_diagonal(parts)
    channels = mean.shape[-1]
    apart = whole.unflatten(-1, (channels, -1)).unflatten(-3, (channels, -1))  # shape: (*b, L, Q, L, Q)
    members_first = apart.transpose(-4, -3).transpose(-2, -1).flatten(-2).flatten(-3, -2)
    # as a linear operator: it may be singular, and GPyTorch must not factorize it
    return MultitaskMultivariateNormal(mean, to_linear_operator(members_first))


def block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    """Matrices (*b, N, N) of different N on the diagonal of one."""
    size = sum(part.shape[-1] for part in parts)
    whole = parts[0].new_zeros(*parts[0].shape[:-2], size, size)
    start = 0
    for part in parts:
        end = start + part.shape[-1]
        whole[..., start:end, start:end] = part
        start = end
    return whole
