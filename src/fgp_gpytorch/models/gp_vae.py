"""The Gaussian-process-prior variational autoencoder of Casale et al. (2018), on grouped data."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled import KLExpansion, MeanFieldPosterior, ProductPrior, expand_kl
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import ArgumentError, GroupError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import PseudoObservations, device_of, features_of, observed_members, whole_batch
from fgp_gpytorch.models.coupled_vae import CoupledVAE
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.prior import KLTerms


class GPVAE(CoupledVAE[ProductPrior]):
    r"""A VAE with one Gaussian process over all members of all groups (Casale et al. 2018; paper, Section 2).

    Generative process, for the members i of all groups at once:

        z^l ~ N(0, K + alpha I),  K_ij = (D D')_{d_i d_j} k(w_i, w_j)      in each of the L channels
        y_i ~ likelihood(decoder(z_i))

    The posterior is mean field, q(Z) = prod_i N(z_i | encoder(y_i)). Woodbury's identity gives the exact bound in
    O(N M^2) for M = m M_S features; Casale et al. take a Taylor step. With V distinct x among the N members it costs
    O(N M + M^2 (M + m V)):

        ELBO = sum_i E_q[log p(y_i | z_i)] - KL(q(Z) || N(0, K + alpha I))

    | symbol | meaning | where |
    | --- | --- | --- |
    | D | group vectors, one per training group, learned | `group_vectors.vectors` (P, m) |
    | k(w, w') | kernel of the auxiliary features, learned | `prior.features.kernel` |
    | alpha | variance that the kernel does not explain | `prior.noise` |
    | mu, sigma^2 | mean-field posterior | `encoder(y)`: mean and variance, (*batch, L) |

    The prior couples all groups, so no plate of Pyro's makes the gradient of a minibatch unbiased. Train with
    `fit(model, data, batch_size=len(data))`, or see `summarize`. `CoupledVAE` describes the group vectors and what each
    call conditions on.

    Args:
        encoder, decoder, num_groups, num_factors, likelihood, normalize, representation: As in `CoupledVAE`.
        num_channels: L.
        view_features: Feature map of the kernel k, (*b, N, D) to (*b, N, M_S): `PeriodicFeatures` or `NystromFeatures`.
            It becomes float64 in place. None for the paper's periodic kernel of an angle in radians, with a learned
            lengthscale.
        noise: alpha at the start.
        learn_noise: Whether alpha is learned.

    Attributes:
        summary: None, or the result of `summarize`. Minibatches then use its approximate KL.

    Raises:
        ArgumentError: If an argument has another type, or a number is out of range.
        GroupError: If there are both a number of groups and a representation, or neither.

    Examples:
        >>> model = GPVAE(ConvEncoder(16), ConvDecoder(16), 16, num_groups=len(data.train))
        >>> model.initialize_vectors(data.train)
        >>> fit(model, data.train, batch_size=len(data.train), epochs=1000)
        >>> images = model.condition_on(data.train).generate(x_new, data.test.context.align(data.train))
        >>> network = RepresentationNetwork(ConvFeatures(16), MLPFeatures([16], 8), "mean")
        >>> model = GPVAE(ConvEncoder(16), ConvDecoder(16), 16, representation=network)
        >>> fit(model, data.train, batch_size=len(data.train), epochs=1000)
        >>> images = model.condition_on(data.train).generate(x_new, data.extrapolation.context)  # new digits
    """

    minibatch_hint = ", or model.summary = model.summarize(data)"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_channels: int,
        num_groups: int | None = None,
        num_factors: int = 8,
        view_features: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        noise: float = 0.1,
        learn_noise: bool = True,
        normalize: bool = True,
        representation: nn.Module | None = None,
    ) -> None:
        hint = "Try PeriodicFeatures(kernel, period), or NystromFeatures(kernel, points)."
        check.instance(view_features, "view_features", (nn.Module, type(None)), hint)
        if view_features is not None and not hasattr(view_features, "num_features"):
            raise ArgumentError(
                "view_features: expected a module from x (*b, N, D) to features (*b, N, M) with num_features = M, got "
                f"a {type(view_features).__name__}. {hint}"
            )
        prior = ProductPrior(num_channels, view_features, noise, learn_noise)
        super().__init__(encoder, decoder, prior, num_groups, num_factors, normalize, representation, likelihood)
        self.summary: KLExpansion | None = None

    # Pyro

    def draw_latents(self, batch: GroupedBatch, plate: pyro.plate) -> Tensor:
        """The site "z_rows", one N-dimensional normal of low rank per channel. Returns z, (*s, G, Q, L).

        "z_rows" contains the members with an observation. z is 0 elsewhere, so "y" drawn there has no meaning.
        `predict` and `generate` give the latents of members without an observation.
        """
        rows = observed_members(batch)
        root = self.prior.root(self.used_vectors(batch), features_of(batch))[rows]
        with pyro.plate("channels", self.prior.num_channels, dim=-1):
            zero = torch.zeros(len(root), dtype=root.dtype, device=root.device)
            joint = dist.LowRankMultivariateNormal(zero, root, self.prior.noise.expand(len(root)), validate_args=False)
            z_rows = pyro.sample("z_rows", joint)
        z = z_rows.new_zeros(*z_rows.shape[:-2], *rows.shape, self.prior.num_channels)
        return z.masked_scatter(rows.unsqueeze(-1).expand(z.shape), z_rows.mT)

    def draw_posterior(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The site "z_rows" of the mean-field posterior."""
        posterior = self.training_posterior(batch)
        assert isinstance(posterior, MeanFieldPosterior)
        mean, variance = posterior.at_observed()
        with pyro.plate("channels", self.prior.num_channels, dim=-1):
            pyro.sample("z_rows", dist.Normal(mean, variance.sqrt(), validate_args=False).to_event(1))

    def plate(self, batch: GroupedBatch) -> pyro.plate:
        """The plate of all groups. A Pyro program of this model needs the whole data set.

        Raises:
            GroupError: If the batch is not the whole data set.
        """
        self._check_groups(batch, whole=True)
        return pyro.plate("groups", batch.num_groups, dim=-1)

    # objectives

    def summarize(self, dataset: GroupedDataset, batch_size: int | None = 64) -> KLExpansion:
        """The KL of the whole data set and its gradient, for minibatches with exact gradients (Casale et al. 2018).

        Around the present group vectors, (mu, sigma^2) and hyperparameters, a sum over members approximates the KL
        (`KLExpansion.separable_kl`). Its gradient, summed over the minibatches of an epoch, is exact. So memory holds
        the images and activations of one minibatch at a time:

            model.summary = model.summarize(data)
            for batch in loader:  # gradients accumulate; terms(batch) uses that sum
                loss = objective.differentiable_loss(model, model, batch)  # an estimate for the whole data set
                (loss * batch.num_groups / len(data)).backward()
            optimizer.step()
            model.summary = None

        After a step within the epoch, the later minibatches are approximate; small steps keep the error small. The sum
        is linear in the hyperparameters, so it is not bounded below. Summarize again often.

        Args:
            dataset: The training data.
            batch_size: The most groups to encode at a time, fewer if they are large; None for as many as memory allows.

        Returns:
            The expansion. Set `model.summary` to it.

        Raises:
            ArgumentError: If `dataset` is not a data set, or `batch_size` is below 1.
            GroupError: If the data set does not contain all of its P groups once.
        """
        check.instance(dataset, "dataset", GroupedDataset, "Try GroupedDataset(y, x, group).")
        parts, indices, groups = [], [], dataset[[0]].num_dataset_groups
        with torch.no_grad():
            for batch in dataset.batches(batch_size, device_of(self)):
                batch = self.prepare_step(batch)
                parts.append(self.inputs_of(batch, self.encode(batch)))
                indices.append(batch.group_index)
        index = torch.cat(indices)
        order = index.argsort()
        if not torch.equal(index[order], torch.arange(groups, device=order.device)):
            raise GroupError(
                f"dataset: expected all {groups} groups once, got {len(order)}. Try the whole training data."
            )
        return expand_kl(self.prior, parts[0].cat(*parts[1:]).select(order))

    # hooks

    def condition_step(self, batch: GroupedBatch, pseudo: PseudoObservations) -> MeanFieldPosterior:
        """The mean-field posterior of a training step, without predictions at unobserved members."""
        return self.prior.condition(self.inputs_of(batch, pseudo), predict_unobserved=False)

    def terms(self, batch: GroupedBatch | GroupedDataset, num_particles: int = 1) -> Terms:
        """The parts of the ELBO. Every group gets an equal share of the KL of all groups.

        Args:
            batch: All groups of the training data; some of them only if there is a `summary`.
            num_particles: Draws of z for the expectation.

        Returns:
            Sums per group, (G,).

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            GroupError: If the batch is not the whole data set and there is no summary.
        """
        self._check_groups(whole_batch(batch, "batch", self), whole=self.summary is None)
        return super().terms(batch, num_particles)

    def split_kl(self, posterior: MeanFieldPosterior, batch: GroupedBatch) -> KLTerms:
        """The KL of all groups in equal shares, or its approximation by the summary."""
        if self.summary is None:
            return posterior.kl_terms
        self.summary = self.summary.to(batch.device)
        shares = self.summary.separable_kl(posterior, batch.group_index)
        return KLTerms(shares, torch.zeros_like(shares))
