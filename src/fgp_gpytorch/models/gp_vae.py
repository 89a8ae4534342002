"""The Gaussian-process-prior variational autoencoder of Casale et al. (2018), on grouped data."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import features_of, observed_members, whole_batch
from fgp_gpytorch.models.amortized_kl_summary import AmortizedKLSummary, summarize_amortized_kl
from fgp_gpytorch.models.kl_summary import KLSummary, summarize_kl
from fgp_gpytorch.models.known_groups_vae import KnownGroupsVAE, objects_for
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.prior import MeanFieldPosterior, ObjectViewPrior
from fgp_gpytorch.prior.given_objects import ObjectViewPriorAt, join_groups
from fgp_gpytorch.prior.object_view_prior import object_view_prior


class GPVAE(KnownGroupsVAE):
    r"""A VAE with one Gaussian process over all images of all groups (Casale et al. 2018; paper, Section 2).

    Generative process, for the rows i of all groups at once:

        z^l ~ N(0, K + alpha I),  K_ij = (D D')_{d_i d_j} k(w_i, w_j)      in each of the L channels
        y_i ~ likelihood(decoder(z_i))

    The posterior is mean field, q(Z) = prod_i N(z_i | encoder(y_i)), and the bound is exact by Woodbury's identity in
    O(N M^2) for M = m M_view features, where Casale et al. took a Taylor step; where the N rows repeat V distinct
    views in O(N M + M^2 (M + m V)):

        ELBO = sum_i E_q[log p(y_i | z_i)] - KL(q(Z) || N(0, K + alpha I))

    | symbol | meaning | where |
    | --- | --- | --- |
    | D | object vectors, one per training group, learned | `prior.root.objects.vectors` (P, m) |
    | k(w, w') | kernel of the view, learned | `prior.root.view.kernel` |
    | alpha | variance that the kernel does not explain | `prior.noise` |
    | mu, sigma^2 | mean-field posterior | `encoder(y)`: mean and variance, (*batch, L) |

    The prior couples all groups, so a minibatch of groups gives no unbiased gradient, and no plate of Pyro's can scale
    it: train with `fit(model, data, batch_size=len(data))`, or see `summarize`. It knows a group by its object vector:
    `batch.group_index` must be the position in the training data (`rows.align(train)` sees to that),
    and a group that was never trained on is refused.

    **Amortized objects** (paper, Appendix C). With `representation=` there are no object vectors to learn: a group's
    is d_p = representation(its observed images), learned jointly, and a group never trained on has one too. What each
    call conditions on, vectors always being of the images named:

    | call | vectors of | z* given the rows of |
    | --- | --- | --- |
    | `terms`, `model`, `guide`, `infer(batch)` | the batch | the batch |
    | `generate(x_new, context)` | the context | the context, all its groups jointly |
    | `given(train).generate(x_new, context)` | train, context | train and the context, as groups of their own |
    | `given(train, context="seen").generate(...)` | train | train; the context names its groups |

    A context of groups that train has would count twice in the third: take the fourth. Since the vectors look at y,
    the ELBO is a bound of log p(Y | D) at D = d(Y), with D taken as if it had been given; it is none of log p(Y).

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        num_channels: L.
        num_groups: P, groups of the training data; None with a representation, which takes any number.
        num_factors: m, the length of an object vector.
        view_root: Root of the view's kernel, (*b, N, D) to (*b, N, M_view), made float64 in place: `FourierRoot` of a
            periodic kernel, `NystromRoot` of any; None for that of the paper's periodic kernel of an angle in radians,
            its lengthscale learned.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.
        noise: alpha at the start.
        learn_noise: Whether alpha is learned.
        normalize: Whether object vectors have unit length (Casale et al. normalise them).
        representation: Module from y (G, Q, *y_shape) and a mask (G, Q) to object vectors (G, m), such as
            `nets.RepresentationNetwork`; None learns one vector per training group.

    Attributes:
        summary: None, or what `summarize` gave: minibatches then use its form of the KL.

    Raises:
        ShapeError: If an argument is not a module of its kind, or `num_channels` is below 1.
        DataError: If a number is out of range.
        GroupError: If there are both a number of groups and a representation, or neither.

    Example:
        >>> model = GPVAE(PaperEncoder(16), PaperDecoder(16), 16, num_groups=len(data.train))
        >>> model.initialize_objects(data.train)
        >>> fit(model, data.train, batch_size=len(data.train), epochs=1000)
        >>> images = model.given(data.train).generate(x_new, data.test.context.align(data.train))
        >>> network = RepresentationNetwork(PaperFeatures(16), MLPFeatures([16], 8), "mean")
        >>> model = GPVAE(PaperEncoder(16), PaperDecoder(16), 16, representation=network)
        >>> fit(model, data.train, batch_size=len(data.train), epochs=1000)
        >>> images = model.given(data.train).generate(x_new, data.extrapolation.context)  # digits never trained on
    """

    prior: ObjectViewPrior
    _minibatch_hint = ", or model.summary = model.summarize(data)"

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_channels: int,
        num_groups: int | None = None,
        num_factors: int = 8,
        view_root: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        noise: float = 0.1,
        learn_noise: bool = True,
        normalize: bool = True,
        representation: nn.Module | None = None,
    ) -> None:
        objects = objects_for(num_groups, num_factors, normalize, representation)
        prior = object_view_prior(num_channels, objects, view_root, noise, learn_noise)  # pyright: ignore[reportArgumentType]
        super().__init__(encoder, decoder, prior, likelihood, representation=representation)
        self.summary: KLSummary | AmortizedKLSummary | None = None

    # Pyro

    @pyro_method
    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program, of the whole data set: it has no subsampled plate.

        Site "z_rows" holds the rows of whom something was observed, one N-dimensional normal of low rank per channel;
        they are laid out (G, Q, L) with 0 elsewhere, in the padding and at members of whom nothing was observed: their
        latents are no part of this program, and `y` drawn there means nothing. `predict` and `generate` know them.

        Args:
            batch: All groups of the training data.
            observe: False draws the site "y" instead of conditioning on `batch.y`.

        Returns:
            y, observed or drawn, (G, Q, *y_shape).

        Raises:
            GroupError: If the batch is not the whole data set.
        """
        batch = whole_batch(batch, "batch")
        self._check_groups(batch, whole=True)
        rows = observed_members(batch)
        prior, positions = self._locate(batch)
        groups = positions.unsqueeze(-1).expand(rows.shape)[rows]
        root, noise = prior.features(groups, features_of(batch)[rows]), prior.noise
        if next(self.prior.named_priors(), None) is not None:
            pyro.factor("log_hyperprior", self.prior.log_hyperprior())
        with pyro.plate("channels", self.prior.num_channels, dim=-1):
            zero = torch.zeros(len(root), dtype=root.dtype, device=root.device)
            joint = dist.LowRankMultivariateNormal(zero, root, noise.expand(len(root)), validate_args=False)
            z_rows = pyro.sample("z_rows", joint)
        z = z_rows.new_zeros(*z_rows.shape[:-2], *rows.shape, self.prior.num_channels)
        z = z.masked_scatter(rows.unsqueeze(-1).expand(z.shape), z_rows.mT)
        with pyro.plate("groups", batch.num_groups, dim=-1):
            return self._observe(z, batch, observe)

    @pyro_method
    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """The mean-field posterior as a Pyro program.

        Args:
            batch: The same as the model's.
            observe: As the model's; it changes nothing here.

        Raises:
            GroupError: If the batch is not the whole data set.
        """
        batch = whole_batch(batch, "batch")
        self._check_groups(batch, whole=True)
        mean, variance = self._infer(batch).at_observed()
        with pyro.plate("channels", self.prior.num_channels, dim=-1):
            pyro.sample("z_rows", dist.Normal(mean, variance.sqrt(), validate_args=False).to_event(1))

    # objectives

    def terms(self, batch: GroupedBatch, num_particles: int = 1) -> Terms:
        """The parts of the ELBO. The KL is of all groups at once and shared out to them equally.

        Args:
            batch: All groups of the training data; some of them only if there is a `summary`.
            num_particles: Draws of z for the expectation.

        Returns:
            Sums per group, (G,).

        Raises:
            GroupError: If the batch is not the whole data set and there is no summary.
        """
        self._check_groups(whole_batch(batch, "batch"), whole=self.summary is None)
        return super().terms(batch, num_particles)

    def summarize(self, dataset: GroupedDataset, batch_size: int = 64) -> KLSummary | AmortizedKLSummary:
        """The KL of the whole data set and its gradient, for minibatches with exact gradients (Casale et al. 2018).

        The KL couples all rows only through (mu, sigma^2) and the hyperparameters. Around their present values it has
        a form that is a sum over rows (`KLSummary.separable_kl`); at these values its gradient, summed over the
        minibatches of an epoch, is the KL's own. So the images need not be in memory at once with their activations:

            model.summary = model.summarize(data)
            for batch in loader:  # gradients accumulate; terms(batch) uses that form
                loss = objective.differentiable_loss(model, model, batch)  # an estimate for the whole data set
                (loss * batch.num_groups / len(data)).backward()
            optimizer.step()
            model.summary = None

        A step within the epoch makes what follows an approximation, the better the smaller the steps. In the
        hyperparameters it is linear and has no bottom, so summarize anew often.

        Args:
            dataset: The training data.
            batch_size: Groups to encode at a time.

        Returns:
            The summary; set `model.summary` to it.

        Raises:
            GroupError: If the data set has not P groups.
        """
        parts = []
        for start in range(0, len(dataset), batch_size):
            batch = self._check_groups(dataset[start : start + batch_size])
            with torch.no_grad():
                parts.append(self._infer(batch))
        if self.representation is not None:
            return summarize_amortized_kl(self.prior, parts)
        return summarize_kl(self.prior, parts)

    # inside

    def _infer(self, batch: GroupedBatch) -> MeanFieldPosterior:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._meet_groups(batch)
        prior, positions = self._locate(batch)
        x, mean, variance, mask = self._pseudo_observations(batch)
        return prior.condition(positions, x, mean, variance, mask, predict_unobserved=False)

    def _prior_at(self, vectors: Tensor, batch: GroupedBatch) -> ObjectViewPriorAt:
        return ObjectViewPriorAt(self.prior, vectors, batch.group_index, batch.num_dataset_groups)

    def _join(self, first: MeanFieldPosterior, second: MeanFieldPosterior) -> MeanFieldPosterior:
        return join_groups(first, second)

    def _split_kl(self, posterior: MeanFieldPosterior) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kl = posterior.kl if self.summary is None else self.summary.separable_kl(posterior, self.prior)
        return kl, torch.zeros_like(kl)
