"""The prior covariance of a global latent channel."""

from fgp_gpytorch.kernels.group_delta_kernel import GroupDeltaKernel

__all__ = ["GlobalKernel"]


class GlobalKernel(GroupDeltaKernel):
    """Covariance of a global channel: one value shared by all members of a group.

        k2(x_i, x_j) = delta(d_i, d_j)

    Source: "Factorized GP-VAE", Section 3, the kernel of the channels J + 1, ..., L. It is the limit of the local
    kernel for an infinite lengthscale, and equals GroupDeltaKernel. It models a quantity of the group that does not
    change with the features, such as the style of a digit.

    The paper's variance is 1. `gpytorch.kernels.ScaleKernel(GlobalKernel())` has another one, stays in blocks, and
    trains and predicts exactly in an ExactGP. `LocalKernel(gpytorch.kernels.ConstantKernel())` is the same covariance.
    It is exact also above 800 rows where the lazy matrix of a ScaleKernel is solved or sampled by hand.

    Arguments, shapes and errors are those of GroupDeltaKernel.

    Examples:
        >>> x = torch.tensor([[0.0], [0.0], [1.0]])
        >>> gpytorch.kernels.ScaleKernel(GlobalKernel())(x).to_dense().shape
        torch.Size([3, 3])
    """
