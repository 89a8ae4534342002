"""The sparse prior of the SVGP-VAE: inducing points over object vectors and views (Jazbec et al. 2021)."""

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from fgp_gpytorch._shapes import check_finite, check_shape
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.prior.channels import check_num_channels
from fgp_gpytorch.prior.hyperprior import log_hyperprior
from fgp_gpytorch.prior.inducing_posterior import InducingPosterior
from fgp_gpytorch.prior.object_root import ObjectRoot
from fgp_gpytorch.saving import Configurable

_JITTER = 1e-6  # variance of an inducing variable about the function, relative to the kernel's


class InducingPrior(Configurable, gpytorch.Module):
    r"""f^l ~ GP(0, k), k((d, w), (d', w')) = D_d . D_d' k(w, w'), seen through M inducing points (Titsias 2009).

    The inducing variables u ~ N(0, I) are whitened: with K_uu = L L' the features of a row are Phi = K_xu L^-T, and

        z = Phi u + sqrt(k_xx - || Phi ||^2) e,   e ~ N(0, 1)

    which is p(z | u) row by row. Inducing points have an object vector and a view each; both are learned. A variance of
    1e-6 of the kernel's, on the inducing variables alone, keeps K_uu regular: they are noisy views of the function,
    and the bound stays one.

    Args:
        num_channels: L; all channels share kernel and inducing points.
        objects: The object vectors D of the P groups; `GivenObjects` if they come with the data.
        kernel: The kernel of the view, any GPyTorch kernel on the D features without a batch shape; made float64.
        num_inducing: M.
        num_features: Auxiliary features D of a row.

    Attributes:
        inducing_vectors: (M, m), in the space of the object vectors (as these are used: normalised if they are).
        inducing_x: (M, D).

    Raises:
        ShapeError: If `num_channels` is below 1.
        DataError: If `num_inducing` or `num_features` is below 1, or the kernel is none or has a batch shape.
    """

    objects: ObjectRoot
    kernel: Kernel
    inducing_vectors: nn.Parameter
    inducing_x: nn.Parameter

    def __init__(
        self, num_channels: int, objects: ObjectRoot, kernel: Kernel, num_inducing: int = 64, num_features: int = 1
    ) -> None:
        super().__init__()
        check_num_channels(num_channels)
        for name, value in (("num_inducing", num_inducing), ("num_features", num_features)):
            if not isinstance(value, int) or value < 1:
                raise DataError(f"{name}: expected an integer >= 1, got {value!r}. Try num_inducing=64.")
        if not isinstance(kernel, Kernel):
            raise DataError(
                f"kernel: expected a GPyTorch kernel, got {type(kernel).__name__}. Try gpytorch.kernels.MaternKernel()."
            )
        if tuple(kernel.batch_shape) != ():
            raise DataError(f"kernel: expected batch_shape [], got {list(kernel.batch_shape)}. Try one kernel for all.")
        self.num_channels, self.dtype = num_channels, torch.float64
        self.objects, self.kernel = objects, kernel
        self.inducing_vectors = nn.Parameter(torch.randn(num_inducing, objects.num_factors))
        self.inducing_x = nn.Parameter(torch.randn(num_inducing, num_features))
        self.to(self.dtype)

    @torch.no_grad()
    def set_inducing(self, vectors: Tensor, x: Tensor) -> None:
        """Start from given inducing points.

        Args:
            vectors: (M, m).
            x: (M, D).

        Raises:
            ShapeError: If a shape is another one.
            DataError: If an entry is not finite.
        """
        for name, value, parameter in (("vectors", vectors, self.inducing_vectors), ("x", x, self.inducing_x)):
            check_shape(value, name, tuple(parameter.shape), "One for each inducing point.")
            check_finite(value, name)
            parameter.copy_(value)

    def features(self, group_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Phi and the residual variance k_xx - || Phi ||^2 >= 0 at rows.

        Args:
            group_index: Position of each row's group, (N,), int64.
            x: Auxiliary features, (N, D).

        Returns:
            (N, M) and (N,).

        Raises:
            GroupError: If a group has no object vector.
        """
        return self.features_at(self.objects.forward(group_index), x)

    def features_at(self, vectors: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `features`, at rows of given object vectors.

        Args:
            vectors: The vector of each row, as it is used (normalised if the objects are), (N, m).
            x: Auxiliary features, (N, D).

        Returns:
            (N, M) and (N,).

        Raises:
            ShapeError: If there are not `num_features` features.
        """
        hint = "Try num_features= of the model for other data."
        check_shape(x, "x", ("N", self.inducing_x.shape[-1]), hint)
        points = self.inducing_vectors
        with gpytorch.settings.lazily_evaluate_kernels(False):
            among = self.kernel(self.inducing_x).to_dense() * (points @ points.mT)
            cross = self.kernel(x, self.inducing_x).to_dense() * (vectors @ points.mT)
            diagonal = self.kernel(x, diag=True)
        assert isinstance(diagonal, Tensor)
        own = diagonal * vectors.square().sum(-1)
        noise = (_JITTER * among.diagonal().mean()).clamp_min(torch.finfo(points.dtype).tiny)
        identity = torch.eye(len(points), dtype=points.dtype, device=points.device)
        cholesky = torch.linalg.cholesky(among + noise * identity)
        root = torch.linalg.solve_triangular(cholesky, cross.mT, upper=False).mT
        return root, (own - root.square().sum(-1)).clamp_min(torch.finfo(own.dtype).tiny)

    def condition(
        self,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> InducingPosterior:
        """q(u), exact for the pseudo-observations of these rows, each counted `scale` times (Jazbec et al. 2021).

        Args:
            group_index: Which object vector each group has, (G,), int64.
            x: Auxiliary features, (G, Q, D).
            mean: mu, (G, Q, L).
            variance: sigma^2, (G, Q, L), positive.
            mask: True where a member is observed, (G, Q); None observes all.
            scale: Groups of the data set for each group of the batch: q(u) then estimates that of all rows.

        Returns:
            The posterior.
        """
        return InducingPosterior(self, group_index, x, mean, variance, mask, scale)

    def log_hyperprior(self) -> Tensor:
        """Log density of the hyperparameters under the GPyTorch priors registered on them, nats, a scalar."""
        return log_hyperprior(self, self.dtype)
