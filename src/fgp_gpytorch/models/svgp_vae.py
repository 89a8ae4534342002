"""The sparse Gaussian-process VAE of Jazbec et al. (2021), on grouped data."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from gpytorch.kernels import Kernel, PeriodicKernel
from pyro.nn import pyro_method
from torch import Tensor, nn

from fgp_gpytorch._modes import evaluation_mode
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import checked_batch, features_of, whole_batch
from fgp_gpytorch.models.known_groups_vae import KnownGroupsVAE, objects_for
from fgp_gpytorch.prior import InducingPosterior, InducingPrior
from fgp_gpytorch.prior.given_inducing_objects import InducingPriorAt


class SVGPVAE(KnownGroupsVAE):
    r"""A VAE with one sparse Gaussian process over all images of all groups (Jazbec, Pearce and Fortuin 2021).

    Generative process, with the product kernel of object vectors and views (paper, Section 2):

        f^l ~ GP(0, (D D')_{dd'} k(w, w')),   z_i^l = f^l(d_i, w_i),   y_i ~ likelihood(decoder(z_i))

    The posterior is q(z, u) = p(z | u) q(u) for M inducing variables u, with q(u) the one that is best for the
    encoder's pseudo-observations (Titsias 2009), and the bound

        ELBO = sum_i E_q[log p(y_i | z_i)] - KL(q(u) || p(u))

    which equals theirs: the log of the pseudo-observations cancels between their two terms. In a minibatch of G of the
    P groups q(u) is estimated by counting every row P/G times, as they do, at a cost of O(rows M^2): the step's
    objective is exactly that of a data set which has these groups P/G times over. It is no unbiased estimate of the
    whole's and usually higher, since q(u) is fitted to these groups alone; histories of different batch sizes cannot
    be compared. What is inferred afterwards from all rows (`given`) is exact either way.

    Groups are known by their object vectors, as in `GPVAE`: a group never trained on is refused. With `representation=`
    a network gives the object vectors of a batch's groups from their own images (paper, Appendix C), of groups never
    trained on too; `GPVAE` says which call conditions on what (for training groups: `given(train, context="seen")`)
    and what then becomes of the bound.

    Call `initialize_objects` or, with a representation, `initialize_inducing` before training: the inducing points'
    x are standard normal until then, which for x far from 0 and a kernel that is not periodic see nothing.

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        num_channels: L.
        num_groups: P, groups of the training data; None with a representation, which takes any number.
        num_factors: m, the length of an object vector.
        num_inducing: M.
        view_kernel: The kernel of the view, made float64; None for the paper's periodic kernel of an angle in radians
            with r = 1, learned, its period of 2 pi fixed.
        num_features: Auxiliary features of a row.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        normalize: Whether object vectors have unit length.
        representation: As in `GPVAE`; None learns one vector per training group.

    Raises:
        ShapeError: If an argument is not a module of its kind, or `num_channels` is below 1.
        DataError: If a number is out of range.
        GroupError: If there are both a number of groups and a representation, or neither.

    Example:
        >>> model = SVGPVAE(PaperEncoder(16), PaperDecoder(16), 16, num_groups=len(data.train))
        >>> model.initialize_objects(data.train)
        >>> fit(model, data.train, epochs=1000)
        >>> images = model.given(data.train).generate(x_new, data.test.context.align(data.train))
        >>> network = RepresentationNetwork(PaperFeatures(16), MLPFeatures([16], 8), "mean")
        >>> model = SVGPVAE(PaperEncoder(16), PaperDecoder(16), 16, representation=network)
        >>> model.initialize_inducing(data.train)
        >>> fit(model, data.train, epochs=1000)
        >>> images = model.given(data.train).generate(x_new, data.extrapolation.context)  # digits never trained on
    """

    prior: InducingPrior
    _start_hint = "Try initialize_inducing(data)."

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
        objects = objects_for(num_groups, num_factors, normalize, representation)
        kernel = _periodic() if view_kernel is None else view_kernel
        prior = InducingPrior(num_channels, objects, kernel, num_inducing, num_features)  # pyright: ignore[reportArgumentType]
        super().__init__(encoder, decoder, prior, likelihood, representation=representation)

    def initialize_objects(self, dataset: GroupedDataset, center: bool = True) -> None:
        """Start the object vectors from a PCA of the groups' mean observations, the inducing points from random rows.

        Args:
            dataset: The training data.
            center: As in `KnownGroupsVAE.initialize_objects`.

        Raises:
            GroupError: If the data set has not P groups, or a representation network gives the vectors.
            DataError: If it has too few groups or elements for m components.
        """
        super().initialize_objects(dataset, center)
        self.initialize_inducing(dataset)

    @torch.no_grad()
    def initialize_inducing(self, dataset: GroupedBatch | GroupedDataset) -> None:
        """Start the inducing points at random rows, with the object vectors that their groups have now.

        Args:
            dataset: The training data, or some groups of it.

        Raises:
            GroupError: If the groups are not of a data set of P groups.
            ShapeError: If the representation gives another shape, or x has not `num_features` features.
            DataError: If a value is not finite or a feature not known.
        """
        batch = self._check_groups(checked_batch(dataset, "dataset"))
        with evaluation_mode(self):
            prior, positions = self._locate(batch)
        group, member = batch.mask.nonzero(as_tuple=True)
        chosen = torch.randint(len(group), (len(self.prior.inducing_x),), device=group.device)
        vectors, x = prior.objects.forward(positions), features_of(batch).to(self.prior.dtype)
        self.prior.set_inducing(vectors[group[chosen]], x[group[chosen], member[chosen]])

    # Pyro

    @pyro_method
    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program.

        Site "u" holds the whitened inducing variables, (L, M), of the whole data set; "e" what they leave of z, (G, Q,
        L), the same in the guide; "z" is deterministic.

        Args:
            batch: Groups of the training data.
            observe: False draws the site "y" instead of conditioning on `batch.y`.

        Returns:
            y, observed or drawn, (G, Q, *y_shape).

        Raises:
            GroupError: If the batch is not of the data set of P groups.
        """
        batch = whole_batch(batch, "batch")
        self._check_groups(batch)
        x = features_of(batch).to(self.prior.dtype)
        prior, positions = self._locate(batch)
        rows = positions.unsqueeze(-1).expand(x.shape[:-1]).flatten()
        root, residual = prior.features(rows, x.flatten(0, 1))
        if next(self.prior.named_priors(), None) is not None:
            pyro.factor("log_hyperprior", self.prior.log_hyperprior())
        zero = root.new_zeros(self.prior.num_channels, root.shape[-1])
        u = pyro.sample("u", dist.Normal(zero, 1.0, validate_args=False).to_event(2))
        with self._plate(batch):
            e = pyro.sample("e", self._rest(x))
            paths = root.unflatten(0, x.shape[:-1]) @ u.mT  # shape: (*s, G, Q, L)
            return self._observe(paths + residual.reshape(*x.shape[:-1], 1).sqrt() * e, batch, observe)

    @pyro_method
    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """q(u) p(z | u) as a Pyro program.

        Args:
            batch: The same as the model's.
            observe: As the model's; it changes nothing here.

        Raises:
            GroupError: If the batch is not of the data set of P groups.
        """
        batch = whole_batch(batch, "batch")
        posterior = self._infer(batch)
        cholesky = posterior.factor.cholesky
        joint = dist.MultivariateNormal(
            posterior.factor.weights, precision_matrix=cholesky @ cholesky.mT, validate_args=False
        )
        pyro.sample("u", joint.to_event(1))
        with self._plate(batch):
            pyro.sample("e", self._rest(posterior.x))

    # inside

    def _infer(self, batch: GroupedBatch) -> InducingPosterior:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._meet_groups(batch)
        scale = batch.num_dataset_groups / batch.num_groups
        prior, positions = self._locate(batch)
        return prior.condition(positions, *self._pseudo_observations(batch), scale)

    def _prior_at(self, vectors: Tensor, batch: GroupedBatch) -> InducingPriorAt:
        return InducingPriorAt(self.prior, vectors)

    def _split_kl(self, posterior: InducingPosterior) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        groups = len(posterior.group_index)
        kl = (posterior.kl_channels.sum() / (posterior.scale * groups)).expand(groups)  # of the data set's groups
        return kl, torch.zeros_like(kl)

    def _rest(self, x: Tensor) -> Any:
        zero = x.new_zeros(*x.shape[:-1], self.prior.num_channels)
        return dist.Normal(zero, 1.0, validate_args=False).to_event(2)


def _periodic() -> PeriodicKernel:
    kernel = PeriodicKernel().double()
    # as tensors: GPyTorch makes numbers float32
    kernel.initialize(
        period_length=torch.tensor(2 * math.pi, dtype=torch.float64), lengthscale=torch.tensor(1.0, dtype=torch.float64)
    )
    kernel.raw_period_length.requires_grad_(False)
    return kernel
