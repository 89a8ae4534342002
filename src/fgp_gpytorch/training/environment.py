"""What a run expects of Lightning's trainer, and what it leaves unchanged in the process."""

import difflib
import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from fgp_gpytorch._modes import generators_restored
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.models import CoupledVAE, GroupedVAE

_OWN_NAMES = {
    "max_epochs": ("epochs", "epochs=100"),
    "gradient_clip_val": ("gradient_clip", "gradient_clip=1.0"),
    "use_distributed_sampler": ("batch_size", "batch_size=10, the groups of each process"),
    "overfit_batches": ("train", "fit(model, train.subset(range(20)))"),
    "barebones": ("folder", "folder=None, progress=False"),
    "num_sanity_val_steps": ("restore_best", "restore_best=True, which validates the start"),
}
_PRECISIONS = {"16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"}
_SWITCHES = "CUBLAS_WORKSPACE_CONFIG"  # Trainer(deterministic=True) sets it


def check_trainer_options(options: dict[str, Any], callbacks: Any) -> None:
    """Require Lightning's own flags and callbacks. Refuse flags that `fit` replaces, and precisions that round x.

    Raises:
        ArgumentError: If one is unknown or refused.
    """
    flags = list(inspect.signature(lightning.Trainer).parameters)
    if not isinstance(callbacks, Sequence) or not all(isinstance(one, Callback) for one in callbacks):
        raise ArgumentError(f"callbacks: expected a list of Lightning callbacks, got {callbacks!r}. Try [callback].")
    for name in options:
        if name not in flags:
            close = difflib.get_close_matches(name, flags, n=1) or ["accelerator"]
            raise ArgumentError(f"{name}: expected an argument of fit or a flag of Lightning, got it. Try {close[0]}=.")
        if name in _OWN_NAMES:
            own, hint = _OWN_NAMES[name]
            raise ArgumentError(f"{name}: expected fit's own argument {own}, got Lightning's flag. Try {hint}.")
    _check_precision(str(options.get("precision")))


def check_trainer(trainer: lightning.Trainer, model: GroupedVAE) -> None:
    """Require a strategy under which several processes take the steps of one.

    Raises:
        ArgumentError: If another strategy is in use. If the model cannot share a minibatch.
    """
    _check_precision(str(trainer.precision))
    strategy = trainer.strategy
    own_script = getattr(strategy, "_start_method", "popen") == "popen"
    if type(strategy) not in (DDPStrategy, SingleDeviceStrategy) or not own_script:
        raise ArgumentError(
            f"strategy: expected 'auto' or 'ddp', got {trainer.strategy.__class__.__name__}"
            f"{'' if own_script else ' in spawned or forked processes'}. Try strategy='ddp' in a script, or devices=1."
        )
    if trainer.world_size > 1 and isinstance(model, CoupledVAE):
        raise ArgumentError(
            f"devices: expected one process for {type(model).__name__}, got {trainer.world_size}. Its prior couples "
            "the groups of a minibatch, which processes cannot share. Try devices=1."
        )


def check_restore_best(trainer: lightning.Trainer, callbacks: Sequence[Callback]) -> None:
    """Require that every epoch and the start are judged in the state that `restore_best` would restore.

    Raises:
        ArgumentError: If a flag or a callback of Lightning prevents it.
    """
    averages = [type(c).__name__ for c in callbacks if isinstance(c, WeightAveraging | StochasticWeightAveraging)]
    if averages:
        raise ArgumentError(
            f"restore_best: expected validation of the parameters themselves, got {averages[0]}, which validates their "
            "average. Try restore_best=False, or to leave the callback out."
        )
    short = getattr(trainer, "fast_dev_run", False)
    if short or not trainer.limit_val_batches or repr(trainer.val_check_interval) != "1.0":
        raise ArgumentError(
            "restore_best: expected validation at the start and at the end of each epoch, got "
            f"limit_val_batches={trainer.limit_val_batches}, val_check_interval={trainer.val_check_interval}, "
            f"fast_dev_run={short}. Try to leave these flags out."
        )


@contextmanager
def global_state_restored() -> Iterator[None]:
    """Restore the global random generators and PyTorch's switches of determinism."""
    backend = torch.backends.cudnn
    switches = backend.deterministic, backend.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    variable = os.environ.get(_SWITCHES)
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with generators_restored(cuda):
        try:
            yield
        finally:
            backend.deterministic, backend.benchmark = switches
            torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
            if variable is None:
                os.environ.pop(_SWITCHES, None)
            else:
                os.environ[_SWITCHES] = variable


@contextmanager
def mode_restored_on_error(model: nn.Module) -> Iterator[None]:
    """Restore training or evaluation mode of every part if an error ends the run."""
    modes = {part: part.training for part in model.modules()}
    try:
        yield
    except BaseException:
        for part, training in modes.items():
            part.training = training
        raise


def _check_precision(precision: str) -> None:
    if precision in _PRECISIONS:
        raise ArgumentError(
            f"precision: expected one that keeps x and the prior as they are, got {precision!r}, which rounds x to 16 "
            "bits. Try 'bf16-mixed', or '32-true'."
        )
