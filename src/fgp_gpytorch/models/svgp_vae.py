"""The sparse Gaussian-process VAE of Jazbec et al. (2021), on grouped data."""

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.coupled import InducingPosterior, InducingPrior
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import checked_batch, features_of, observed_members
from fgp_gpytorch.models.coupled_vae import CoupledVAE


class SVGPVAE(CoupledVAE[InducingPrior]):
    r"""A VAE with one sparse Gaussian process over all members of all groups (Jazbec, Pearce and Fortuin 2021).

    Generative process, with the product kernel of group vectors and auxiliary features (paper, Section 2):

        f^l ~ GP(0, (D D')_{dd'} k(w, w')),   z_i^l = f^l(d_i, w_i),   y_i ~ likelihood(decoder(z_i))

    The posterior is q(z, u) = p(z | u) q(u) for M inducing variables u. q(u) is optimal for the encoder's
    pseudo-observations (Titsias 2009). The bound

        ELBO = sum_i E_q[log p(y_i | z_i)] - KL(q(u) || p(u))

    equals theirs, where the log of the pseudo-observations cancels between two terms. A step costs O(members M^2).

    Before training call `initialize_vectors` or, with a representation, `initialize_inducing`. Otherwise the x of the
    inducing points start as standard normal numbers, far from most data. `CoupledVAE` describes the group vectors and
    what each call conditions on.

    **Minibatches.** A step on G of the P groups counts every member P/G times, as Jazbec et al. do. Its ELBO is biased,
    and usually too high: q(u) of a minibatch differs from q(u) of the data set. Losses at different batch sizes cannot
    be compared. `condition_on` all members is exact.

    Args:
        encoder, decoder, num_groups, num_factors, likelihood, normalize, representation: As in `CoupledVAE`.
        num_channels: L.
        num_inducing: M.
        view_kernel: The kernel k of the auxiliary features. It becomes float64. None for the paper's periodic kernel of
            an angle in radians: r = 1 at the start and learned, the period of 2 pi fixed.
        num_features: D, auxiliary features of a member.

    Raises:
        ArgumentError: If an argument has another type, or a number is out of range.
        ShapeError: If the kernel has a batch shape.
        GroupError: If there are both a number of groups and a representation, or neither.

    Examples:
        >>> model = SVGPVAE(ConvEncoder(16), ConvDecoder(16), 16, num_groups=len(data.train))
        >>> model.initialize_vectors(data.train)
        >>> fit(model, data.train, epochs=1000)
        >>> images = model.condition_on(data.train).generate(x_new, data.test.context.align(data.train))
        >>> network = RepresentationNetwork(ConvFeatures(16), MLPFeatures([16], 8), "mean")
        >>> model = SVGPVAE(ConvEncoder(16), ConvDecoder(16), 16, representation=network)
        >>> model.initialize_inducing(data.train)
        >>> fit(model, data.train, epochs=1000)
        >>> images = model.condition_on(data.train).generate(x_new, data.extrapolation.context)  # new digits
    """

    start_hint = "Try initialize_inducing(data)."

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_channels: int,
        num_groups: int | None = None,
        num_factors: int = 8,
        num_inducing: int = 64,
        view_kernel: Kernel | None = None,
        num_features: int = 1,
        likelihood: Likelihood | None = None,
        normalize: bool = True,
        representation: nn.Module | None = None,
    ) -> None:
        hint = "Try gpytorch.kernels.MaternKernel(), or None for an angle."
        check.instance(view_kernel, "view_kernel", (Kernel, type(None)), hint)
        if view_kernel is not None and tuple(view_kernel.batch_shape) != ():
            raise ShapeError(
                f"view_kernel: expected batch_shape [], got {list(view_kernel.batch_shape)}. Try one kernel for all."
            )
        prior = InducingPrior(num_channels, num_factors, view_kernel, num_inducing, num_features)
        super().__init__(encoder, decoder, prior, num_groups, num_factors, normalize, representation, likelihood)
        self.num_features = prior.inducing_x.shape[-1]

    def initialize_vectors(self, dataset: GroupedDataset, center: bool = True) -> None:
        """Start the group vectors from a PCA of the groups' mean observations, the inducing points at random members.

        Args:
            dataset: The training data.
            center: As in `CoupledVAE.initialize_vectors`.

        Raises:
            ArgumentError, GroupError, DataError: As in `CoupledVAE.initialize_vectors`.
        """
        super().initialize_vectors(dataset, center)
        self.initialize_inducing(dataset)

    @torch.no_grad()
    def initialize_inducing(self, dataset: GroupedBatch | GroupedDataset) -> None:
        """Start the inducing points at random observed members, with the present vectors of their groups.

        Args:
            dataset: The training data, or some groups of it.

        Raises:
            ArgumentError: If it is not a GroupedBatch or a GroupedDataset.
            GroupError: If the groups are not of a data set of P groups.
            ShapeError: If the representation returns another shape, or x does not have `num_features` features.
            DataError: If a value is not finite, a feature is unknown, or nothing was observed.
        """
        batch = self.prepare(checked_batch(dataset, "dataset", self))
        with evaluation_mode(self):
            vectors = self.used_vectors(batch)
        group, member = observed_members(batch).nonzero(as_tuple=True)
        if not len(group):
            raise DataError("dataset: expected an observed member, got none. Try the training data.")
        chosen = torch.randint(len(group), (len(self.prior.inducing_x),), device=group.device)
        x = features_of(batch).to(self.prior.dtype)
        self.prior.set_inducing(vectors[group[chosen]], x[group[chosen], member[chosen]])

    # Pyro

    def draw_latents(self, batch: GroupedBatch, plate: pyro.plate) -> Tensor:
        """The sites "u" and "e" of the prior. Returns z, (*s, G, Q, L).

        "u" holds the whitened inducing variables of the whole data set, (L, M). "e" is the part of z that u does not
        explain, (G, Q, L). It has the same distribution in the guide.
        """
        x = features_of(batch).to(self.prior.dtype)
        root, residual = self.prior.root(self.used_vectors(batch), x)
        zero = root.new_zeros(self.prior.num_channels, root.shape[-1])
        u = pyro.sample("u", dist.Normal(zero, 1.0, validate_args=False).to_event(2))
        with plate:
            e = pyro.sample("e", self._unexplained(x))
        return root @ u.mT + residual.sqrt() * e

    def draw_posterior(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The sites "u" and "e" of q(u) p(z | u)."""
        posterior = self.training_posterior(batch)
        assert isinstance(posterior, InducingPosterior)
        factor = posterior.factor
        precision = factor.cholesky @ factor.cholesky.mT
        joint = dist.MultivariateNormal(factor.weights, precision_matrix=precision, validate_args=False)
        pyro.sample("u", joint.to_event(1))
        with plate:
            pyro.sample("e", self._unexplained(posterior.x))

    def _unexplained(self, x: Tensor) -> dist.TorchDistribution:
        zero = x.new_zeros(*x.shape[:2], self.prior.num_channels)
        return dist.Normal(zero, 1.0, validate_args=False).to_event(2)
