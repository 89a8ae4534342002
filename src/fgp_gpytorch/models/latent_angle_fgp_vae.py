"""The factorized GP-VAE for members of unknown angle (paper, Appendix C)."""

import dataclasses
import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset
from fgp_gpytorch.errors import DataError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import (
    cast_for,
    checked_batch,
    features_of,
    no_rows,
    observed_members,
    scatter,
    whole_batch,
)
from fgp_gpytorch.models._projected_normal import CircularProjectedNormal
from fgp_gpytorch.models.angle_posterior import AnglePosterior, angle_of, direction_of
from fgp_gpytorch.models.factorized_vae import FactorizedVAE
from fgp_gpytorch.models.terms import Terms
from fgp_gpytorch.prior import FactorizedGPPrior, IndependentChannels


class LatentAngleFGPVAE(FactorizedVAE):
    r"""An FGP-VAE that infers unknown angles of members (paper, Appendix C).

    Generative process of a group p. A known angle is conditioned on, as in `FGPVAE`:

        w_q ~ Uniform(circle),   Z_p ~ FactorizedGPPrior(w),   y_q ~ likelihood(decoder(z_q))

    A network gives the posterior of an angle from the observation. (A GP-LVM has parameters for each member instead.)

        q(w_q | y_q) = ProjectedNormal(angle_encoder(y_q)),   q(Z_p | Y_p, w) as in `FGPVAE`

        ELBO = E_q(w) [ sum_q E_q[log p(y_q | z_q)] - KL(q(Z_p) || p(Z_p)) ] - sum_unknown KL(q(w_q) || Uniform)

    Gradients reach the drawn angles through the kernel. Known angles train the network too: training adds
    supervision * sum_known log q(w_q | y_q), which is not part of the bound (Kingma et al. 2014, eq. 9).

    - Unknown angles are NaN in `batch.x`: `GroupedDataset(y, x, group, x_mask=known)`.
    - `infer`, `reconstruct` and `generate` replace an unknown angle by the middle of q, in new groups too. So the
      posterior of z does not contain the uncertainty of the angles.
    - Some angles must be known. Otherwise a turned or mirrored circle fits as well, and training may find no circle.

    Args:
        encoder, decoder, likelihood, member_dropout, element_dropout: As in `GroupedVAE`.
        prior: The prior over the L channels. Its kernels and means must have the period of the angle (fix it with
            `kernel.raw_period_length.requires_grad_(False)`).
        angle_encoder: Module from (*batch, *y_shape) to (*batch, 2), such as `nets.ConvFeatures(2)`. The direction of
            the vector is the angle, its length the concentration. A vector of 0 gives the uniform distribution.
        feature: Position of the angle among the D auxiliary features. The others must be known.
        period: Period of the angle, in its unit (2 pi for radians).
        supervision: Weight of log q of the known angles; 0 leaves it out. At 1 a likelihood of many elements can
            outweigh the known angles and twist the learned circle. Kingma et al. take a tenth of the number of
            members.

    Raises:
        ArgumentError: If an argument has another type, or a number is out of range.

    Examples:
        >>> known = torch.rand(len(angles)) < 0.1
        >>> data = GroupedDataset(images, angles, digit, x_mask=known)
        >>> model = LatentAngleFGPVAE(ConvEncoder(16), ConvDecoder(16), prior, ConvFeatures(2))
        >>> fit(model, data)
        >>> model.infer_angles(data).mean  # (G, Q)
    """

    angle_encoder: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: FactorizedGPPrior,
        angle_encoder: nn.Module,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
        feature: int = 0,
        period: float = 2 * math.pi,
        supervision: float = 10.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, element_dropout)
        hint = "Try nets.ConvFeatures(2), or nets.MLPFeatures(y_shape, 2)."
        self.angle_encoder = check.instance(angle_encoder, "angle_encoder", nn.Module, hint)
        self.feature = check.count(feature, "feature", least=0, hint="Try 0, the position of the angle in x.")
        self.period = check.positive(period, "period", hint="Try 360 for degrees.")
        self.supervision = check.positive(supervision, "supervision", zero=True, hint="Try 10.0.")

    # Pyro

    def model(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> Tensor:
        """The generative model as a Pyro program.

        It has the sites of `FGPVAE` and "direction", (G, Q, 2): unit vectors of the angles, masked to the unknown ones.
        Known angles enter by `pyro.factor("supervision")`.

        Args:
            batch: Groups of a data set.
            observe: False draws the site "y" instead of conditioning on `batch.y`.

        Returns:
            y, observed or drawn, (G, Q, *y_shape).

        Raises:
            ArgumentError, ShapeError, DataError: As in `terms`.
        """
        batch = whole_batch(batch, "batch", self)
        self.register_parameters()
        plate = self.plate(batch)
        with plate:
            zero = torch.zeros(*batch.mask.shape, 2, dtype=self.prior.dtype, device=batch.x.device)
            direction = pyro.sample("direction", self._masked(zero, batch))
            if observe and self.supervision > 0:
                pyro.factor("supervision", self._log_supervision(batch, self._concentration(batch)))
        filled = self._filled(batch, direction)
        return self.draw_observations(self.draw_latents(filled, plate), filled, plate, observe)

    def guide(self, batch: GroupedBatch | GroupedDataset, observe: bool = True) -> None:
        """The approximate posterior as a Pyro program: first of the angles, then of the latents given the angles.

        Args:
            batch: The same as the model's.
            observe: No effect: Pyro passes the model's arguments.

        Raises:
            ArgumentError, ShapeError, DataError: As in `terms`.
        """
        batch = whole_batch(batch, "batch", self)
        self.register_parameters()
        plate = self.plate(batch)
        with plate:
            direction = pyro.sample("direction", self._masked(self._concentration(batch), batch))
        self.draw_posterior(self._filled(batch, direction), plate)

    # objectives

    def terms(self, batch: GroupedBatch | GroupedDataset, num_particles: int = 1) -> Terms:
        """The parts of the ELBO, at one draw of the unknown angles.

        Args:
            batch: Groups of a data set.
            num_particles: Draws of z for the expectation, all at the same angles.

        Returns:
            Sums per group, (G,). `kl_features` is log q(w) - log p(w) at the draw; its mean is the KL.
            `log_supervision` is the weighted log q of the known angles. Densities are of the angle in radians.

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            ShapeError: If a network's output has the wrong shape.
            DataError: If a feature other than the angle is unknown, or the prior does not have the angle's period.
        """
        batch = whole_batch(batch, "batch", self)
        concentration = self._concentration(batch)
        self._check_circle(self._filled(batch, concentration.detach()))
        q = CircularProjectedNormal(concentration)
        direction = q.rsample()
        terms = super().terms(self._filled(batch, direction), num_particles)
        log_ratio = q.log_prob(direction) + math.log(2 * math.pi)
        kl = torch.where(self._unknown(batch), log_ratio, 0.0).sum(-1)
        supervision = self._log_supervision(batch, concentration) if self.supervision > 0 else None
        return terms._replace(kl_features=kl, log_supervision=supervision)

    # inference

    def prepare(self, batch: GroupedBatch) -> GroupedBatch:
        """The batch with unknown angles at the middle of their posterior.

        Raises:
            ShapeError: If the angle encoder's output has the wrong shape.
            DataError: If its output is not finite, or the prior does not have the angle's period.
        """
        filled = self._filled(batch, check.finite(self._concentration(batch), "angle_encoder"))
        self._check_circle(filled)
        return filled

    def prepare_step(self, batch: GroupedBatch) -> GroupedBatch:
        """The batch itself. A training step draws the angles."""
        return batch

    def infer_angles(self, batch: GroupedBatch | GroupedDataset) -> AnglePosterior:
        """q(w | y) of every member from its own observation, whether or not its angle is known.

        Args:
            batch: Groups, seen in training or not.

        Returns:
            The posterior over (G, Q), in the unit of `period`: uniform for a member without an observation.

        Raises:
            ArgumentError: If the batch is not a GroupedBatch or a GroupedDataset.
            ShapeError: If the angle encoder's output has the wrong shape.
            DataError: If the batch is empty, or a value is not finite.
        """
        concentration = self._concentration(checked_batch(batch, "batch", self))
        return AnglePosterior(check.finite(concentration, "angle_encoder"), self.period)

    # inside

    def _concentration(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q, 2)
        observed = observed_members(batch)  # q(w) of the others is the prior
        rows = (batch.y if batch.y_mask is None else self.without_gaps(batch, self.angle_encoder))[observed]
        if len(rows):
            vectors = self.angle_encoder(cast_for(self.angle_encoder, rows))
        else:
            vectors = no_rows(self.angle_encoder, 2, batch.device)
        if not isinstance(vectors, Tensor) or vectors.shape != (len(rows), 2):
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ShapeError(
                f"angle_encoder: expected one vector of the plane for each observation, ({len(rows)}, 2), got {got}. "
                "Try nets.ConvFeatures(2), or nets.MLPFeatures(y_shape, 2)."
            )
        return scatter(vectors.to(self.prior.dtype), observed, 0.0)

    def _unknown(self, batch: GroupedBatch) -> Tensor:  # shape: (G, Q)
        if self.feature >= batch.x.shape[-1]:
            raise DataError(
                f"feature: expected one of the {batch.x.shape[-1]} auxiliary features, got {self.feature}. Try 0."
            )
        return batch.x[..., self.feature].isnan() & batch.mask

    @torch.no_grad()
    def _check_circle(self, batch: GroupedBatch) -> None:
        """Require a prior that does not change after a whole turn."""
        x = features_of(batch)[:1].to(self.prior.dtype)
        here = torch.arange(x.shape[-1], device=x.device) == self.feature
        turned = torch.where(here, x + self.period, x)
        for block in self.prior.blocks:
            if isinstance(block, IndependentChannels):
                continue  # x has no effect on them
            for name, once, again in (
                ("kernel", block.covariance(x, x), block.covariance(x, turned)),
                ("mean", block.prior_mean(x), block.prior_mean(turned)),
            ):
                if not torch.allclose(once, again, rtol=0, atol=1e-3 * max(1.0, float(once.abs().max()))):
                    raise DataError(
                        f"prior: expected a {name} with the angle's period of {self.period:g}, got one of "
                        f"{type(block).__name__} that differs after a whole turn by "
                        f"{float((once - again).abs().max()):.3g}. Try kernel.period_length = {self.period:g} and "
                        "kernel.raw_period_length.requires_grad_(False), or another period=."
                    )

    def _masked(self, concentration: Tensor, batch: GroupedBatch) -> dist.TorchDistribution:
        return CircularProjectedNormal(concentration).mask(self._unknown(batch)).to_event(1)

    def _filled(self, batch: GroupedBatch, direction: Tensor) -> GroupedBatch:
        """The batch with the angles of vectors (*s, G, Q, 2) in place of the unknown ones."""
        angle = angle_of(direction, self.period)
        column = torch.where(self._unknown(batch), angle, batch.x[..., self.feature].to(angle.dtype))
        others = batch.x.to(angle.dtype).expand(*angle.shape, -1)
        here = torch.arange(batch.x.shape[-1], device=batch.x.device) == self.feature
        x = torch.where(here, column.unsqueeze(-1), others)
        if x.dim() > batch.x.dim():
            raise ShapeError(
                f"direction: expected one draw of the angles, got {tuple(direction.shape)}. "
                "Try Pyro's ELBO without vectorize_particles, Predictive without parallel."
            )
        return dataclasses.replace(batch, x=x)

    def _log_supervision(self, batch: GroupedBatch, concentration: Tensor) -> Tensor:  # shape: (G,)
        """supervision * sum over known angles of log q, nats, of the angle in radians."""
        known = observed_members(batch) & ~self._unknown(batch)
        angle = torch.where(known, batch.x[..., self.feature], 0.0).to(concentration.dtype)
        log_prob = CircularProjectedNormal(concentration).log_prob(direction_of(angle, self.period))
        return self.supervision * torch.where(known, log_prob, 0.0).sum(-1)
