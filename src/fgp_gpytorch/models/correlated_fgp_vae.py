"""The FGP-VAE with correlated object priors."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import features_of, standard_normal, whole_batch
from fgp_gpytorch.models.known_groups_vae import KnownGroupsVAE, objects_for
from fgp_gpytorch.prior import ChannelBlock, CorrelatedGPPrior, CorrelatedPosterior, ObjectRoot
from fgp_gpytorch.prior.given_correlated_objects import CorrelatedGPPriorAt


class CorrelatedFGPVAE(KnownGroupsVAE):
    r"""An FGP-VAE whose global channels have a linear kernel over object vectors (`CorrelatedGPPrior`).

    Generative process, for P groups with object vectors D and members q with auxiliary features x_q:

        Z_p^local ~ FactorizedGPPrior(X_p),   z_p^global = D_p u,  u ~ N(0, I)
        y_q ~ likelihood(decoder(z_q))

    with the exact posterior of the encoder's pseudo-observations, as in `FGPVAE`; that of the global channels couples
    the groups and costs O(N m^2). Object vectors are fixed after a PCA (`initialize_objects`) or learned (GP-LVM,
    paper, Appendix C).

    **Minibatches.** q(u) takes all groups. In a training step on G of the P groups it is estimated from these, each row
    counting P/G times, as in `SVGPVAE`: the step's objective is exactly that of a data set which has these groups P/G
    times over. It is no unbiased estimate of the whole's, whose q(u) is another one: `fit(model, data,
    batch_size=len(data))` is exact, and takes one step an epoch. What is inferred afterwards is exact either way.

    With `representation=` a network gives the object vectors of a batch's groups from their own images, of groups
    never trained on too; `GPVAE` says which call conditions on what, and what then becomes of the bound.

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        local: Blocks of local channels.
        num_global_channels: L - J; they come after the local ones.
        num_groups: P, groups of the training data; None with a representation, which takes any number.
        num_factors: m, the length of an object vector.
        learn_objects: Whether object vectors are learned; of no account with a representation.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        member_dropout: As in `FGPVAE`.
        normalize: Whether object vectors have unit length.
        representation: As in `GPVAE`; None has one vector per training group.

    Raises:
        ShapeError: If an argument is not a module of its kind, or there is no local block or no global channel.
        DataError: If a number is out of range.
        GroupError: If there are both a number of groups and a representation, or neither.

    Example:
        >>> model = CorrelatedFGPVAE(ConvEncoder(16), ConvDecoder(16), [LocalChannels(8, kernel)], 8, len(data))
        >>> model.initialize_objects(data)
        >>> fit(model, data)
    """

    prior: CorrelatedGPPrior

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        local: Sequence[ChannelBlock],
        num_global_channels: int,
        num_groups: int | None = None,
        num_factors: int = 8,
        learn_objects: bool = True,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        normalize: bool = True,
        representation: nn.Module | None = None,
    ) -> None:
        objects = objects_for(num_groups, num_factors, normalize, representation)
        if isinstance(objects, ObjectRoot):
            objects.vectors.requires_grad_(learn_objects)
        prior = CorrelatedGPPrior(local, num_global_channels, objects)  # pyright: ignore[reportArgumentType]
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, representation)

    @pyro_method
    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program.

        Sites "u_0", ... are the local blocks' whitened variables (see `FGPVAE`), "u_objects" the weights u of the
        global channels, which all groups share, "z" the latents.

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
        if next(self.prior.local.named_priors(), None) is not None:
            pyro.factor("log_hyperprior", self.prior.log_hyperprior())
        prior, positions = self._locate(batch)
        objects = prior.objects.forward(positions)
        with pyro.plate("global_channels", self.prior.num_global_channels, dim=-1):
            zero = torch.zeros(objects.shape[-1], dtype=objects.dtype, device=objects.device)
            u = pyro.sample("u_objects", dist.Normal(zero, torch.ones_like(zero), validate_args=False).to_event(1))
        shared = (u @ objects.mT).mT.unsqueeze(-2)  # shape: (*s, G, 1, L - J)
        with self._plate(batch):
            parts = []
            for index, block in enumerate(self._blocks()):
                root = block.covariance_root(x)
                v = pyro.sample(f"u_{index}", standard_normal(block, root))
                parts.append((block.prior_mean(x) + (root @ v.unsqueeze(-1)).squeeze(-1)).mT)
            front = torch.broadcast_shapes(parts[0].shape[:-1], (*shared.shape[:-2], x.shape[-2]))
            parts = [part.expand(*front, -1) for part in (*parts, shared)]
            return self._observe(torch.cat(parts, dim=-1), batch, observe)

    @pyro_method
    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """The exact posterior of the pseudo-observations as a Pyro program; q(u) of a minibatch is an estimate.

        Args:
            batch: The same as the model's.
            observe: As the model's; it changes nothing here.

        Raises:
            GroupError: If the batch is not of the data set of P groups.
        """
        batch = whole_batch(batch, "batch")
        posterior = self._infer(batch)
        shared = posterior.shared
        with pyro.plate("global_channels", self.prior.num_global_channels, dim=-1):
            precision = shared.cholesky @ shared.cholesky.mT
            normal = dist.MultivariateNormal(shared.weights, precision_matrix=precision, validate_args=False)
            pyro.sample("u_objects", normal)
        with self._plate(batch):
            for index, distribution in enumerate(posterior.local.whitened_distributions()):
                pyro.sample(f"u_{index}", distribution)

    def _infer(self, batch: GroupedBatch) -> CorrelatedPosterior:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._meet_groups(batch)
        x, mean, variance, mask = self._pseudo_observations(batch)
        mask = self._practice(mask, batch)
        prior, positions = self._locate(batch)
        scale = batch.num_dataset_groups / batch.num_groups
        return prior.condition(positions, x, mean, variance, mask, scale)

    def _prior_at(self, vectors: Tensor, batch: GroupedBatch) -> CorrelatedGPPriorAt:
        return CorrelatedGPPriorAt(self.prior, vectors)

    def _blocks(self) -> list[ChannelBlock]:
        return list(self.prior.local.blocks)  # pyright: ignore[reportReturnType]

    def _split_kl(self, posterior: CorrelatedPosterior) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return posterior.kl_local, posterior.kl_global
