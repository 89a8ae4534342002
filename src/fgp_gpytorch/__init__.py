"""Gaussian-process-prior variational autoencoders on grouped data."""
