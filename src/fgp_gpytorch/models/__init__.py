"""Models: each offers a Pyro pair, the terms of its objective, inference and generation."""

from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.models.terms import Terms

__all__ = ["FGPVAE", "Terms"]
