"""A mean-field posterior under a prior that couples all groups (Casale et al. 2018)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fgp_gpytorch._shapes import as_sample_shape, check_new_members
from fgp_gpytorch.gaussian import MeanFieldFactor, RepeatedRows, mean_field_factor


class CoupledPrior(Protocol):
    """What a posterior asks of its prior; see `ObjectViewPrior`."""

    def features(self, group_index: Tensor, x: Tensor) -> Tensor:
        """Phi, (*b, N, M), at rows of groups (*b, N) and x (*b, N, D)."""
        ...

    def rows(self, group_index: Tensor, x: Tensor, observed: Tensor) -> RepeatedRows:
        """Phi at the observed members of groups (G,), x (G, Q, D), observed (G, Q)."""
        ...

    @property
    def noise(self) -> Tensor:
        """alpha, a scalar."""
        ...


class MeanFieldPosterior:
    r"""q(Z) = prod_i N(z_i | mu_i, sigma_i^2), the encoder's numbers themselves, and the GP's predictions from them.

    Made by `ObjectViewPrior.condition`. A snapshot: after a parameter changes, make a new one.

    Attributes:
        x: Auxiliary features, (G, Q, D).
        group_index: Which object vector each group has, (G,).
        observed: True where a member has a q of its own, (G, Q).
        raw_mean: mu as given, (G, Q, L); at members that were not observed it means nothing.
        raw_variance: sigma^2 as given, (G, Q, L).
    """

    def __init__(
        self,
        prior: CoupledPrior,
        group_index: Tensor,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        observed: Tensor,
        predict_unobserved: bool = True,
    ) -> None:
        self.group_index, self.x, self.observed = group_index, x, observed
        self.raw_mean, self.raw_variance = mean, variance
        self._prior = prior
        self._predict_unobserved = predict_unobserved
        self._factors: dict[bool, MeanFieldFactor] = {}  # with gradients and without

    @classmethod
    def cat(cls, parts: Sequence["MeanFieldPosterior"]) -> "MeanFieldPosterior":
        """The posterior of the groups of several parts under one prior, padded to the largest Q among them.

        Args:
            parts: At least one.

        Returns:
            A posterior with the groups of the first, then of the second, and so on.
        """
        members = max(part.x.shape[1] for part in parts)
        return cls(
            parts[0]._prior,
            torch.cat([part.group_index for part in parts]),
            torch.cat([_pad(part.x, members, 0.0) for part in parts]),
            torch.cat([_pad(part.raw_mean, members, 0.0) for part in parts]),
            torch.cat([_pad(part.raw_variance, members, 1.0) for part in parts]),
            torch.cat([_pad(part.observed, members, False) for part in parts]),
            parts[0]._predict_unobserved,
        )

    @property
    def mean(self) -> Tensor:
        """Marginal means, (G, Q, L): mu, and the prediction at members that were not observed."""
        return self._filled[0]

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (G, Q, L): sigma^2, and the prediction's at members that were not observed."""
        return self._filled[1]

    @property
    def kl_channels(self) -> Tensor:
        """KL(q || N(0, K + alpha I)) of every channel over all observed rows at once, nats, (L,)."""
        return self._factor.kl()

    @property
    def kl(self) -> Tensor:
        """The KL, summed over channels, in equal shares for the groups (it does not factorize), nats, (G,)."""
        groups = len(self.group_index)
        return (self.kl_channels.sum() / groups).expand(groups)

    def predict(self, x_new: Tensor) -> "MeanFieldPrediction":
        """The GP at other members of the same groups: E and Var of z* under q(z) p(z* | z).

        Args:
            x_new: Auxiliary features, (G, Q*, D).

        Returns:
            An object with `mean` and `variance` (G, Q*, L) and `rsample`.

        Raises:
            ShapeError: If the groups or the number of features differ from those of x.
            DataError: If x_new is not floating, not finite, or on another device.
        """
        check_new_members(x_new, self.x)
        return self.predict_groups(self.group_index, x_new)

    def predict_groups(self, group_index: Tensor, x_new: Tensor) -> "MeanFieldPrediction":
        """As `predict`, at members of any groups that have object vectors.

        Args:
            group_index: (G*,), int64.
            x_new: (G*, Q*, D).

        Returns:
            An object with `mean` and `variance` (G*, Q*, L) and `rsample`.

        Raises:
            GroupError: If a group has no object vector.
        """
        rows = group_index.unsqueeze(-1).expand(x_new.shape[:-1])
        x_new = x_new.to(self.x.dtype)
        return MeanFieldPrediction(self._factor, self._prior.features(rows, x_new), self._prior.noise, x_new)

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at x, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: Changes nothing at observed members, which are independent under q.

        Returns:
            (*s, G, Q, L); at members that were not observed draws from the prediction's marginals.

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        mean, variance, shape = self.mean, self.variance, as_sample_shape(sample_shape)
        noise = torch.randn(*shape, *mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + variance.sqrt() * noise

    def at_observed(self) -> tuple[Tensor, Tensor]:
        """mu and sigma^2 of the observed rows, each (L, N), rows in the order of `x[observed]`."""
        return self.raw_mean[self.observed].mT, self.raw_variance[self.observed].mT

    @property
    def _factor(self) -> MeanFieldFactor:
        grad = torch.is_grad_enabled()
        if grad not in self._factors:
            self._factors[grad] = self._factorize()
        return self._factors[grad]

    def _factorize(self) -> MeanFieldFactor:
        rows = self._prior.rows(self.group_index, self.x, self.observed)
        return mean_field_factor(rows if rows.pays else rows.dense(), self._prior.noise, *self.at_observed())

    @property
    def _filled(self) -> tuple[Tensor, Tensor]:
        if not self._predict_unobserved or bool(self.observed.all()):
            return self.raw_mean, self.raw_variance
        prediction, observed = self.predict_groups(self.group_index, self.x), self.observed.unsqueeze(-1)
        mean = torch.where(observed, self.raw_mean, prediction.mean)
        return mean, torch.where(observed, self.raw_variance, prediction.variance)


class MeanFieldPrediction:
    """The GP at new members, made by `MeanFieldPosterior.predict`.

    Attributes:
        x: The new members' features, (G, Q*, D).
        mean: E[z*] = k* (K + alpha I)^-1 mu, (G, Q*, L).
    """

    def __init__(self, factor: MeanFieldFactor, root: Tensor, noise: Tensor, x: Tensor) -> None:
        self.x = x
        self._factor, self._root, self._noise = factor, root.flatten(0, 1), noise  # root: (G Q*, M)
        self.mean = self._members_first(factor.predict_mean(self._root))

    @property
    def variance(self) -> Tensor:
        """Of z*, alpha included, (G, Q*, L); computed when asked, it costs O(L N M^2)."""
        return self._members_first(self._factor.predict_variance(self._root)) + self._noise

    def rsample(self, sample_shape: Sequence[int] = (), marginals: bool = False) -> Tensor:
        """Draw z at the new members, with gradients.

        Args:
            sample_shape: Leading shape s of the draws.
            marginals: False draws joint, coherent paths (over groups as well), each member with its own noise alpha;
                True draws every member by itself.

        Returns:
            (*s, G, Q*, L).

        Raises:
            DataError: If `sample_shape` is no sequence of integers.
        """
        shape = as_sample_shape(sample_shape)
        noise = torch.randn(*shape, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        if marginals:
            return self.mean + self.variance.sqrt() * noise
        weights = self._factor.rsample_weights(shape)  # shape: (*s, L, M)
        return self._members_first(weights @ self._root.mT) + self._noise.sqrt() * noise

    def _members_first(self, rows: Tensor) -> Tensor:
        """(*s, L, G Q*) to (*s, G, Q*, L)."""
        return rows.mT.unflatten(-2, self.x.shape[:-1])


def _pad(value: Tensor, members: int, padding: float | bool) -> Tensor:
    """(G, Q, ...) to (G, members, ...)."""
    missing = members - value.shape[1]
    return torch.cat([value, value.new_full((len(value), missing, *value.shape[2:]), padding)], dim=1)
