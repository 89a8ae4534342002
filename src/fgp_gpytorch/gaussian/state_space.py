r"""Markov channels in O(Q): Kalman filter and smoother, in parallel over stretches of members.

A Matern process of order d = nu + 1/2 is the first element of a state of d numbers that has the Markov property. A
constant is a state of one number that never changes. Sums of such processes have the states of all terms, one below
the other. With members sorted by x, and h = 1 at the first element of each term:

    z_k = h' s_k,   s_1 ~ N(0, P),   s_{k+1} = F_k s_k + N(0, V_k),   V_k = P - F_k P F_k'

The filter predicts the state of each member from all members before it, s_k ~ N(m_k, P_k):

    p = h' P_k h,   g = R^2 / (1 + R^2 p),   e = r_k - h' m_k,   f = F_k P_k h / (1 + R^2 p),   D_k = F_k - R^2 f h'
    m_{k+1} = F_k m_k + R^2 f e,   P_{k+1} = D_k P_k F_k' + V_k
    log Z = -1/2 sum_observed ( log 2 pi (p + sigma^2) + g e^2 )

The smoother of Bryson and Frazier (in the form of de Jong 1989, "Smoothing and interpolation with the state-space
model") goes backwards and inverts nothing:

    a_{k-1} = h g e + D_k' a_k,   N_{k-1} = h g h' + D_k' N_k D_k          a = 0, N = 0 behind the last member
    posterior mean       m = h' m_k + p g e + f' a_k
    posterior variance   v = p / (1 + R^2 p) - f' N_k f

Both directions are associative (Sarkka and Garcia-Fernandez 2021, "Temporal parallelization of Bayesian smoothers"), so
they run in parallel over stretches of members (`_recursions`). Their gradients are recursions of the same form.

Precisions R^2 are 0 for missing members, and members may share an x. Nothing is divided by a variance, and no
covariance of a noise is inverted. The tridiagonal precision matrix of the members would be shorter. It loses all digits
where members lie close together.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgp_gpytorch.errors import NonFiniteError
from fgp_gpytorch.gaussian._recursions import backwards, forwards, joined, stretches
from fgp_gpytorch.gaussian._small_matrices import (
    block_diagonal,
    cholesky,
    embedded,
    matmul,
    matvec,
    outer,
    picked,
    quadratic,
    symmetric,
    transposed,
)
from fgp_gpytorch.gaussian.precision import root_precision, rounding_tolerance


class MarkovTerm(NamedTuple):
    """A term of a Markov covariance.

    Attributes:
        order: d = nu + 1/2 of a Matern kernel: 1, 2 or 3. 0 for a constant.
        variance: At every x, broadcastable to (*b, Q).
        rate: sqrt(2 nu) / lengthscale, in units of 1 / x, broadcastable to (*b, Q); None for a constant.

    Examples:
        >>> matern = MarkovTerm(order=2, variance=torch.tensor(1.0), rate=torch.tensor(3**0.5))  # nu 3/2, lengthscale 1
        >>> level = MarkovTerm(order=0, variance=torch.tensor(4.0))
        >>> markov_chain([matern, level], gaps=torch.zeros(5)).transition.shape  # two states and one, five members
        torch.Size([3, 3, 5])
    """

    order: int
    variance: Tensor
    rate: Tensor | None = None


class MarkovChain(NamedTuple):
    """The prior of the states of members in ascending order of x.

    Attributes:
        transition: F to the next member, (S, S, *b, Q).
        noise: V of the next member, (S, S, *b, Q).
        stationary: P, (S, S, *b, 1).
        places: Where h is 1: the first element of each term.

    Examples:
        >>> term = MarkovTerm(order=1, variance=torch.tensor(1.0), rate=torch.tensor(1.0))
        >>> chain = markov_chain([term], gaps=torch.tensor([math.log(2), math.log(4), 0.0]))
        >>> chain.transition[0, 0], chain.noise[0, 0]  # exp(-gap), and 1 - exp(-2 gap)
        (tensor([0.5000, 0.2500, 1.0000]), tensor([0.7500, 0.9375, 0.0000]))
    """

    transition: Tensor
    noise: Tensor
    stationary: Tensor
    places: tuple[int, ...]


class StateSpaceMarginals(NamedTuple):
    """The posterior at the members.

    Attributes:
        mean: Posterior mean less the prior mean, (*b, Q).
        variance: Posterior variance, (*b, Q), positive.
        kl: KL(q || p), nats, (*b,).
        log_evidence: log Z, nats, (*b,).

    Examples:
        >>> chain = markov_chain([MarkovTerm(0, torch.tensor(1.0))], gaps=torch.zeros(2))  # one value for all members
        >>> precision, residual = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> marginals = state_space_marginals(chain, precision, residual)
        >>> marginals.mean, marginals.variance
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor
    log_evidence: Tensor


def markov_chain(terms: Sequence[MarkovTerm], gaps: Tensor) -> MarkovChain:
    """The chain of a sum of independent terms.

    The state of a Matern term is (d/dx + rate)^j f: a cascade of equal low passes of white noise. Then F_jk =
    e^-t t^(k-j) / (k-j)! for t = rate * gap, and V_jk = P_jk times the regularized incomplete gamma function of a + b +
    1 at 2 t, for a = d - 1 - j and b = d - 1 - k. Nothing cancels, however small a gap is.

    Args:
        terms: One or more.
        gaps: Differences of x to the next member, (*b, Q), at least 0. The last one has no effect.

    Examples:
        >>> term = MarkovTerm(order=1, variance=torch.tensor(2.0), rate=torch.tensor(1.0))  # Matern 1/2
        >>> chain = markov_chain([term], gaps=torch.tensor([math.log(2), 0.0]))
        >>> chain.transition.squeeze(), chain.noise.squeeze(), chain.stationary.squeeze(), chain.places
        (tensor([0.5000, 1.0000]), tensor([1.5000, 0.0000]), tensor(2.), (0,))
    """
    transitions, noises, stationaries, places = [], [], [], []
    for term in terms:
        places.append(sum(map(len, stationaries)))
        stationary = [[share * term.variance for share in row] for row in _stationary(max(term.order, 1))]
        stationaries.append(stationary)
        if term.rate is None:
            transitions.append([[torch.ones_like(gaps)]])
            noises.append([[torch.zeros_like(gaps)]])
            continue
        time, size = gaps * term.rate, term.order
        powers = [(-time).exp() * time**n / math.factorial(n) for n in range(size)]
        apart = time > 0  # at 0 gammainc has no gradients
        twice = torch.where(apart, 2 * time, 1.0)
        shares = [-torch.expm1(-2 * time)]  # n = 1
        for n in range(2, 2 * size):
            shares.append(torch.where(apart, torch.special.gammainc(torch.full_like(time, n), twice), 0.0))
        zero = torch.zeros_like(time)
        transitions.append([[powers[k - j] if k >= j else zero for k in range(size)] for j in range(size)])
        noises.append([[stationary[j][k] * shares[2 * (size - 1) - j - k] for k in range(size)] for j in range(size)])
    return MarkovChain(block_diagonal(transitions), block_diagonal(noises), block_diagonal(stationaries), tuple(places))


def _stationary(order: int) -> list[list[float]]:
    """P of a Matern term of variance 1."""
    power = 2 ** (2 * order - 1) * math.factorial(order - 1) ** 2 / math.factorial(2 * order - 2)

    def entry(a: int, b: int) -> float:
        return power * math.comb(a + b, a) / 2 ** (a + b + 1)

    return [[entry(order - 1 - j, order - 1 - k) for k in range(order)] for j in range(order)]


def state_space_marginals(chain: MarkovChain, precision: Tensor, residual: Tensor) -> StateSpaceMarginals:
    """The exact posterior of pseudo-observations at the members, in O(Q S^3).

    In float64 errors of means are below 1e-8 of the prior's standard deviation for pseudo-variances from 1e-6 of the
    prior variance. Below, members of equal or close x lose digits.

    Args:
        chain: The prior. Its batch dimensions broadcast to those of the other arguments.
        precision: R^2 = 1 / sigma^2, (*b, Q), 0 for a missing member.
        residual: r = mu - m, (*b, Q), finite, 0 for a missing member.

    Raises:
        NonFiniteError: If a result is not finite, or rounding has taken its digits.

    Examples:
        >>> x = torch.tensor([[0.0], [0.5], [2.0]], dtype=torch.float64)
        >>> kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
        >>> terms, column = markov_terms(kernel, num_features=1)
        >>> chain = markov_chain(terms, gaps=torch.tensor([0.5, 1.5, 0.0]).double())
        >>> precision, residual = torch.tensor([1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 0.0, -1.0]).double()
        >>> dense = dense_marginals(kernel(x).to_dense(), precision, residual)
        >>> torch.allclose(state_space_marginals(chain, precision, residual).mean, dense.mean)
        True
    """
    chain = _aligned(chain, torch.broadcast_shapes(precision.shape, residual.shape))
    transition, places, size = chain.transition, chain.places, len(chain.transition)
    state, covariance = _Filter.apply(*chain, precision, residual)  # pyright: ignore[reportGeneralTypeIssues]
    predicted, spread = picked(state, places), picked(covariance, places)
    p = picked(spread, places)
    inflation = 1 + precision * p
    g, e = precision / inflation, residual - predicted
    f = matvec(transition, spread) / inflation
    one = embedded(torch.ones_like(g), places, size)
    step = transition - outer(precision * f, one)
    a, n = backwards(step, one * (g * e), outer(one * g, one))
    assert a is not None
    assert n is not None
    later = (f * a).sum(0)
    mean = predicted + p * g * e + later
    variance = p / inflation - quadratic(f, n)
    with torch.no_grad():  # one transfer; written so that NaN fails
        sound = (variance >= -rounding_tolerance(p.dtype) * p / inflation) & torch.isfinite(mean) & (inflation > 0)
        if not bool(sound.all()):
            raise _inaccurate(precision, p)
    variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
    observed = precision > 0
    log_sigma = torch.where(observed, math.log(2 * math.pi) - torch.where(observed, precision, 1.0).log(), 0.0)
    surprise = g * e.square()
    log_inflation = torch.log1p(precision * p)
    log_evidence = -0.5 * (log_inflation + log_sigma + surprise).sum(-1)
    # E_q log p(mu | z) - log Z, with mu - m = e / (1 + R^2 p) - f' a
    kl = log_inflation + surprise - precision * ((e / inflation - later).square() + variance)
    return StateSpaceMarginals(mean, variance, 0.5 * kl.sum(-1), log_evidence)


def state_space_paths(chain: MarkovChain, sample_shape: Sequence[int], batch: Sequence[int]) -> Tensor:
    """Draw z of the prior, (*s, *b, Q), coherent across members.

    Args:
        chain: The prior.
        sample_shape: s.
        batch: *b, to which the chain's batch dimensions broadcast.

    Examples:
        >>> term = MarkovTerm(order=1, variance=torch.tensor(1.0), rate=torch.tensor(1.0))
        >>> chain = markov_chain([term], gaps=torch.tensor([0.0, 0.1, 0.0]))  # the first two members are at the same x
        >>> paths = state_space_paths(chain, sample_shape=[5], batch=[2])
        >>> paths.shape, torch.allclose(paths[..., 0], paths[..., 1])
        (torch.Size([5, 2, 3]), True)
    """
    size, members, like = len(chain.transition), chain.transition.shape[-1], chain.transition
    chain = _aligned(chain, (*sample_shape, *batch, members))
    noise = torch.randn(size, *sample_shape, *batch, members + 1, dtype=like.dtype, device=like.device)
    start = matvec(cholesky(chain.stationary), noise[..., :1])
    moved = matvec(cholesky(chain.noise), noise[..., 1:])
    # the recursion starts from 0: the first step brings in the first state
    first = torch.zeros(members, dtype=like.dtype, device=like.device)
    first[:1] = 1.0
    moved = moved + first * matvec(chain.transition[..., :1], start)
    states, _ = forwards(chain.transition.expand(size, size, *moved.shape[1:]), moved, None)
    assert states is not None
    return picked(states + first * start, chain.places)


def state_space_draws(chain: MarkovChain, precision: Tensor, residual: Tensor, sample_shape: Sequence[int]) -> Tensor:
    """Draw z of the posterior less the prior mean, (*s, *b, Q), coherent across members.

    A draw of the prior is moved by what the smoother makes of its errors (Matheron's rule; Durbin and Koopman 2002).

    Args:
        chain: The prior.
        precision: R^2, (*b, Q), 0 for a missing member.
        residual: r, (*b, Q).
        sample_shape: s.

    Raises:
        NonFiniteError: If a result is not finite, or rounding has taken its digits.

    Examples:
        >>> chain = markov_chain([MarkovTerm(0, torch.tensor(1.0))], gaps=torch.zeros(3))  # one value for all members
        >>> precision, residual = torch.tensor([[1e6, 0.0, 0.0], [2.0, 0.0, 0.0]])  # the first one is known
        >>> draws = state_space_draws(chain, precision, residual, sample_shape=[5])
        >>> draws.shape, torch.allclose(draws, torch.tensor(2.0), atol=0.01)
        (torch.Size([5, 3]), True)
    """
    shape = torch.broadcast_shapes(precision.shape, residual.shape)
    path = state_space_paths(chain, sample_shape, shape[:-1])
    observed = precision > 0
    sigma = torch.where(observed, 1 / root_precision(torch.where(observed, precision, 1.0)), 0.0)
    errors = torch.where(observed, residual - path - sigma * torch.randn_like(path), 0.0)
    return path + state_space_marginals(chain, precision.expand_as(path), errors).mean


def _aligned(chain: MarkovChain, shape: Sequence[int]) -> MarkovChain:
    """The chain with as many batch dimensions as (*b, Q)."""

    def aligned(t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], *[1] * (len(shape) + 2 - t.dim()), *t.shape[2:])

    return MarkovChain(aligned(chain.transition), aligned(chain.noise), aligned(chain.stationary), chain.places)


def _inaccurate(precision: Tensor, variance: Tensor) -> NonFiniteError:
    ratio = float((precision * variance).detach().amax())
    return NonFiniteError(
        "state space: expected pseudo-variances that leave digits, got prior variances of members given their "
        f"predecessors up to {ratio:.3g} times as large. Try larger pseudo-variances, a shorter lengthscale, or "
        "inference='dense'.",
        term="posterior",
    )


class _Filter(torch.autograd.Function):
    """m_k and P_k of all members, (S, *b, Q) and (S, S, *b, Q).

    With the cotangents A of m_{k+1} and W of P_{k+1}, which are recursions like the smoother's:

        dF = A (m + P h g e)' + 2 W F (P - P h g h' P),   dV = W
        dr = R^2 f' A,   dR^2 = f' A e / (1 + R^2 p) - f' W f
    """

    @staticmethod
    def forward(
        ctx: Any, F: Tensor, V: Tensor, P: Tensor, places: tuple[int, ...], R2: Tensor, r: Tensor
    ) -> tuple[Tensor, Tensor]:
        m, C = _filter(F, V, P, places, R2, r)
        ctx.places = places
        ctx.save_for_backward(F, V, P, R2, r, m, C)
        return m, C

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dm, dC = grad_outputs
        F, V, P, R2, r, m, C = ctx.saved_tensors
        Ph = picked(C, ctx.places)
        inflation = 1 + R2 * picked(Ph, ctx.places)
        ge = R2 / inflation * (r - picked(m, ctx.places))
        f = matvec(F, Ph) / inflation
        one = embedded(torch.ones_like(ge), ctx.places, len(F))
        D = F - outer(R2 * f, one)
        A, _ = backwards(D, dm, None)
        assert A is not None
        added = symmetric(dC + outer(ge * matvec(transposed(D), A), one))
        _, W = backwards(D, None, added)
        assert W is not None
        D1, W1 = D[..., :1], W[..., :1]
        dP = added[..., :1] + matmul(transposed(D1), matmul(W1, D1))
        filtered = C - outer(R2 / inflation * Ph, Ph)
        dF = outer(A, m + Ph * ge) + 2 * matmul(W, matmul(F, filtered))
        fA = (f * A).sum(0)
        dR2 = fA * (r - picked(m, ctx.places)) / inflation - quadratic(f, W)
        found = (dF, F), (W, V), (dP, P), (dR2, R2), (R2 * fA, r)
        dF, dV, dP, dR2, dr = (gradient.sum_to_size(like.shape) for gradient, like in found)
        return dF, dV, dP, None, dR2, dr


def _filter(F: Tensor, V: Tensor, P: Tensor, places: tuple[int, ...], R2: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """m_k and P_k of all members, (S, *b, Q) and (S, S, *b, Q).

    A stretch that starts in the state s ends in N(A s + b, C). Its likelihood in s is exp(eta' s - s' J s / 2).
    """
    members, size, batch = r.shape[-1], len(F), torch.broadcast_shapes(R2.shape, r.shape)[:-1]
    F, V, R2, r = (stretches(t, members) for t in (F, V, R2, r))  # shape: (T, ..., B)
    lanes = *batch, r.shape[-1]
    b = eta = r.new_zeros(size, *lanes)
    C = J = r.new_zeros(size, size, *lanes)
    A = torch.eye(size, dtype=r.dtype, device=r.device).reshape(size, size, *[1] * len(lanes)).expand_as(C)
    for t in range(len(F)):
        hA = picked(A, places)
        b, C, gain, g, e = _next(F[t], V[t], R2[t], r[t], b, C, places)
        eta = eta + hA * (g * e)
        J = J + outer(hA * g, hA)
        A = matmul(F[t], A) - outer(gain, hA)
    starts = [(b.new_zeros(size, *batch), P[..., 0].expand(size, size, *batch))]
    for k in range(lanes[-1] - 1):
        starts.append(_through(A[..., k], b[..., k], C[..., k], eta[..., k], J[..., k], *starts[-1]))
    m, C = (torch.stack(parts, -1) for parts in zip(*starts, strict=True))
    means, covariances = r.new_empty(len(F), *m.shape), r.new_empty(len(F), *C.shape)
    for t in range(len(F)):
        means[t], covariances[t] = m, C
        m, C, *_ = _next(F[t], V[t], R2[t], r[t], m, C, places)
    return joined(means, members), joined(covariances, members)


def _next(
    F: Tensor, V: Tensor, R2: Tensor, r: Tensor, m: Tensor, C: Tensor, places: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """m and P of the next member, then R^2 f, g and e."""
    FP = matmul(F, C)
    FPh = picked(transposed(FP), places)
    g = R2 / (1 + R2 * picked(picked(C, places), places))
    e = r - picked(m, places)
    gain = FPh * g
    return matvec(F, m) + gain * e, matmul(FP, transposed(F)) - outer(gain, FPh) + V, gain, g, e


def _through(A: Tensor, b: Tensor, C: Tensor, eta: Tensor, J: Tensor, m: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
    """m and P at the end of a stretch that starts at N(m, P)."""
    size = len(m)
    eye = torch.eye(size, dtype=P.dtype, device=P.device)
    right = torch.cat([P, (m + matvec(P, eta)).unsqueeze(1)], 1)
    system = eye + matmul(P, J).movedim((0, 1), (-2, -1))
    updated = torch.linalg.solve(system, right.movedim((0, 1), (-2, -1))).movedim((-2, -1), (0, 1))
    covariance = matmul(matmul(A, updated[:, :size]), transposed(A)) + C
    return matvec(A, updated[:, size]) + b, symmetric(covariance)
