"""Metrics of trained models, each with its unit and direction."""

from fgp_gpytorch.metrics.calibration import Calibration, held_out_calibration
from fgp_gpytorch.metrics.context_size import mse_by_context_size
from fgp_gpytorch.metrics.disentanglement import Disentanglement, Latents, disentanglement, latent_means
from fgp_gpytorch.metrics.held_out_mse import held_out_mse
from fgp_gpytorch.metrics.mutual_information import discretize, mutual_information, mutual_information_gap
from fgp_gpytorch.metrics.nearest_group import nearest_group_mse
from fgp_gpytorch.metrics.probes import centroid_accuracy, nearest_path_accuracy, ridge_r2
from fgp_gpytorch.metrics.scores import central_interval, crps_of_samples, gaussian_crps, log_mean_exp
from fgp_gpytorch.metrics.swap import SwapErrors, swap_errors

__all__ = [
    "Calibration",
    "Disentanglement",
    "Latents",
    "SwapErrors",
    "central_interval",
    "centroid_accuracy",
    "crps_of_samples",
    "discretize",
    "disentanglement",
    "gaussian_crps",
    "held_out_calibration",
    "held_out_mse",
    "latent_means",
    "log_mean_exp",
    "mse_by_context_size",
    "mutual_information",
    "mutual_information_gap",
    "nearest_group_mse",
    "nearest_path_accuracy",
    "ridge_r2",
    "swap_errors",
]
