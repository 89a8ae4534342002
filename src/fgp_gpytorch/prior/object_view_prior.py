"""The coupled prior of Casale et al. (2018): one Gaussian process over all rows of all groups."""

import math

import gpytorch
import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import PeriodicKernel
from torch import Tensor, nn

from fgp_gpytorch.errors import DataError
from fgp_gpytorch.gaussian import RepeatedRows
from fgp_gpytorch.prior.channels import check_num_channels
from fgp_gpytorch.prior.fourier_root import FourierRoot
from fgp_gpytorch.prior.hyperprior import log_hyperprior
from fgp_gpytorch.prior.mean_field_posterior import MeanFieldPosterior
from fgp_gpytorch.prior.object_root import ObjectRoot, ProductRoot
from fgp_gpytorch.saving import Configurable


class ObjectViewPrior(Configurable, gpytorch.Module):
    r"""z^l ~ N(0, K + alpha I), K_ij = Sigma_{d_i d_j} k(w_i, w_j), the same in all L channels (paper, Section 2).

    Sigma = D D' with one vector per group (Casale et al. 2018), k the kernel of the view. It couples all groups:
    nothing about it is a sum over groups.

    Args:
        num_channels: L.
        root: Features Phi(d, w) of K = Phi Phi', such as `ProductRoot(ObjectRoot(P), FourierRoot(kernel))`.
        noise: alpha, the variance of each z_i that the kernel does not explain, at the start.
        learn_noise: Whether alpha is learned.

    Attributes:
        noise: alpha, a scalar.

    Raises:
        DataError: If `noise` is not positive and finite.
        ShapeError: If `num_channels` is below 1.
    """

    root: ProductRoot
    raw_noise: nn.Parameter
    raw_noise_constraint: Positive

    def __init__(self, num_channels: int, root: ProductRoot, noise: float = 0.1, learn_noise: bool = True) -> None:
        super().__init__()
        check_num_channels(num_channels)
        if not 0 < noise < math.inf:
            raise DataError(f"noise: expected a positive finite variance, got {noise}. Try 0.1.")
        self.num_channels, self.dtype = num_channels, torch.float64
        self.root = root
        self.register_parameter("raw_noise", nn.Parameter(torch.zeros(()), requires_grad=learn_noise))
        self.register_constraint("raw_noise", Positive())
        self.to(self.dtype)
        self.initialize(raw_noise=self.raw_noise_constraint.inverse_transform(torch.tensor(noise, dtype=self.dtype)))

    @property
    def noise(self) -> Tensor:
        """alpha, a scalar."""
        return self.raw_noise_constraint.transform(self.raw_noise)

    @property
    def objects(self) -> ObjectRoot:
        """The object vectors."""
        return self.root.objects

    def features(self, group_index: Tensor, x: Tensor) -> Tensor:
        """Phi at rows.

        Args:
            group_index: Position of each row's group, (*b, N), int64.
            x: Auxiliary features, (*b, N, D).

        Returns:
            (*b, N, M).

        Raises:
            GroupError: If a group has no object vector.
            ShapeError: If x does not fit the view's root.
        """
        return self.root.forward(group_index, x.to(self.dtype))

    def rows(self, group_index: Tensor, x: Tensor, observed: Tensor) -> RepeatedRows:
        """Phi at the observed members of groups (`ProductRoot.rows`).

        Args:
            group_index: Position of each group, (G,), int64.
            x: Auxiliary features, (G, Q, D).
            observed: Members that are there, (G, Q).

        Returns:
            Rows in the order of `x[observed]`.
        """
        return self.root.rows(group_index, x.to(self.dtype), observed)

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        predict_unobserved: bool = True,
    ) -> MeanFieldPosterior:
        """Take means and variances as the mean-field posterior.

        Args:
            group_index: Which object vector each group has, (G,), int64.
            x: Auxiliary features, (G, Q, D).
            mean: mu, (G, Q, L).
            variance: sigma^2, (G, Q, L), positive.
            mask: True where a member is observed, (G, Q); None observes all. The others have no q: their marginals
                are the GP's predictions.
            predict_unobserved: False leaves at unobserved members whatever `mean` and `variance` hold there: training
                masks them anyway, and the predictions cost O(L N M^2).

        Returns:
            The posterior.
        """
        observed = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if mask is None else mask
        mean, variance = mean.to(self.dtype), variance.to(self.dtype)
        return MeanFieldPosterior(self, group_index, x.to(self.dtype), mean, variance, observed, predict_unobserved)

    def log_hyperprior(self) -> Tensor:
        """Log density of the hyperparameters under the GPyTorch priors registered on them, nats, a scalar."""
        return log_hyperprior(self, self.dtype)


def object_view_prior(
    num_channels: int,
    objects: ObjectRoot,
    view_root: nn.Module | None = None,
    noise: float = 0.1,
    learn_noise: bool = True,
) -> ObjectViewPrior:
    """The prior of Casale et al. (2018) for rotated objects.

    Args:
        num_channels: L.
        objects: The object vectors.
        view_root: Root of the view's kernel; None for the paper's periodic kernel of an angle in radians with r = 1,
            learned, its period of 2 pi fixed.
        noise: alpha at the start.
        learn_noise: Whether alpha is learned.

    Returns:
        The prior, in float64.

    Raises:
        DataError: If a number is out of range.
        ShapeError: If `num_channels` is below 1.
    """
    if view_root is None:
        kernel = PeriodicKernel().double()
        # as tensors: GPyTorch makes numbers float32
        kernel.initialize(
            period_length=torch.tensor(2 * math.pi, dtype=torch.float64),
            lengthscale=torch.tensor(1.0, dtype=torch.float64),
        )
        kernel.raw_period_length.requires_grad_(False)
        view_root = FourierRoot(kernel)
    return ObjectViewPrior(num_channels, ProductRoot(objects, view_root), noise, learn_noise)
