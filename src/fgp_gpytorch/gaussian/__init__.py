r"""Gaussian inference from pseudo-observations, as pure functions on tensors (B-form, no jitter).

Letters: K is the prior covariance of Q members, sigma^2 their pseudo-variances, R = 1/sigma their root precisions
(R = 0 where a member is missing), r = mu - m the pseudo-observations less the prior mean. With

    B = I + R K R,   C = chol(B),   a = C^-1 R r

every eigenvalue of B is >= 1, so the factorization succeeds however singular K and however small sigma is.

- `dense`: a full K.
- `low_rank`: K = Phi Phi', as the posterior of u ~ N(0, I) with z = Phi u. u has a density where z has none.
- `state_space`: K of a Markov process, in O(Q).
- `rank_one`: a channel that is constant within a group, K = s 1 1'.

All functions take and return any leading batch dimensions.
"""

from fgp_gpytorch.gaussian.dense import DenseFactor, DenseMarginals, dense_factor, dense_marginals
from fgp_gpytorch.gaussian.low_rank import (
    LowRankFactor,
    MeanFieldFactor,
    features_at_points,
    low_rank_factor,
    mean_field_factor,
)
from fgp_gpytorch.gaussian.precision import (
    check_finite,
    check_residual_variance,
    masked_precision,
    require_covariance,
    root_precision,
    rounding_tolerance,
)
from fgp_gpytorch.gaussian.rank_one import RankOneFactor, RankOneMarginals, rank_one_factor, rank_one_marginals
from fgp_gpytorch.gaussian.repeated_members import PooledMembers, pool_repeated, precise_limit
from fgp_gpytorch.gaussian.repeated_rows import RepeatedRows, row_products
from fgp_gpytorch.gaussian.square_root import symmetric_square_root
from fgp_gpytorch.gaussian.state_space import (
    MarkovChain,
    MarkovTerm,
    StateSpaceMarginals,
    markov_chain,
    state_space_draws,
    state_space_marginals,
    state_space_paths,
)

__all__ = [
    "DenseFactor",
    "DenseMarginals",
    "LowRankFactor",
    "MarkovChain",
    "MarkovTerm",
    "MeanFieldFactor",
    "PooledMembers",
    "RankOneFactor",
    "RankOneMarginals",
    "RepeatedRows",
    "StateSpaceMarginals",
    "check_finite",
    "check_residual_variance",
    "dense_factor",
    "dense_marginals",
    "features_at_points",
    "low_rank_factor",
    "markov_chain",
    "masked_precision",
    "mean_field_factor",
    "pool_repeated",
    "precise_limit",
    "rank_one_factor",
    "rank_one_marginals",
    "require_covariance",
    "root_precision",
    "rounding_tolerance",
    "row_products",
    "state_space_draws",
    "state_space_marginals",
    "state_space_paths",
    "symmetric_square_root",
]
