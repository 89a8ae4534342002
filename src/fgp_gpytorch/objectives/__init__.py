"""Objectives: `pyro.infer.ELBO` subclasses with the analytic KL."""

from fgp_gpytorch.objectives.elbo import ELBO
from fgp_gpytorch.objectives.geco import GECO
from fgp_gpytorch.objectives.objective import Objective

__all__ = ["ELBO", "GECO", "Objective"]
