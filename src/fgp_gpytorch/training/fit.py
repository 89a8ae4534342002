"""Training on Lightning."""

import importlib.util
import logging
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import pandas as pd
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import generators_restored
from fgp_gpytorch.data import GroupedDataset, HeldOut
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.models import GroupedVAE
from fgp_gpytorch.objectives import ELBO, Objective
from fgp_gpytorch.training import _advice as advice
from fgp_gpytorch.training._split import check_split, split_groups
from fgp_gpytorch.training.checkpoints import EpochCheckpoint, with_checkpoint_files
from fgp_gpytorch.training.environment import (
    check_restore_best,
    check_trainer,
    check_trainer_options,
    global_state_restored,
    mode_restored_on_error,
)
from fgp_gpytorch.training.folders import DEFAULT_FOLDER, checkpoint_to_resume, claimed, existing, folder_of
from fgp_gpytorch.training.lightning_module import TrainingModule
from fgp_gpytorch.training.resume import PatientStopping, content_of, run
from fgp_gpytorch.training.settings import OptimizerFactory, RunSettings, ScheduleFactory


@dataclass(frozen=True)
class FitResult:
    """The results of a training run.

    Attributes:
        history: One row per epoch: log_likelihood, kl_local, kl_global (nats per group), mse (units of y squared per
            element), multiplier, learning_rate. With validation data also val_loss (nats per member) and val_mse. The
            KL is the whole one, also during `kl_warmup_steps`.
        folder: The folder of logs and checkpoints, or None if nothing was written.
        last_checkpoint: The last epoch that was saved.
        best_checkpoint: The best epoch by validation. None without validation data, and if `restore_best` found none
            better than the start.
        best_epoch: Epochs behind the best state by validation: 3 is the state after the third epoch. 0 is the start,
            which `restore_best` judges, too. None without validation data.
        validation_labels: Labels of the groups that `validation=0.1` split off, NumPy (G,); None without a split.
        kl_channels: KL of each channel in at most 64 training groups, nats a group, (L,) on the CPU: what the channel
            says of a group. None for models whose prior couples groups.
        interrupted: Whether ctrl-C stopped the run.
        seconds_per_epoch: Mean wall time of the epochs that this call trained, seconds; NaN if there was none.
        trainer: Lightning's trainer.

    Examples:
        >>> data = GroupedDataset(torch.rand(9, 2), torch.arange(9.0), group=[0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> result = fit(model, data, validation=HeldOut.last(data), folder="run", epochs=1)
        >>> list(result.history)[:5], len(result.history), result.kl_channels.shape
        (['epoch', 'log_likelihood', 'kl_local', 'kl_global', 'mse'], 1, torch.Size([3]))
        >>> result.last_checkpoint.name, result.best_epoch
        ('last.ckpt', 1)
    """

    history: pd.DataFrame
    folder: Path | None
    last_checkpoint: Path | None
    best_checkpoint: Path | None
    best_epoch: int | None
    validation_labels: np.ndarray | None
    kl_channels: Tensor | None
    interrupted: bool
    seconds_per_epoch: float
    trainer: lightning.Trainer = field(repr=False)


def fit(
    model: GroupedVAE,
    train: GroupedDataset,
    *,
    validation: GroupedDataset | HeldOut | float | None = None,
    restore_best: bool = False,
    objective: Objective | None = None,
    epochs: int | None = 100,
    max_steps: int | None = None,
    batch_size: int | None = None,
    batch_members: int | None = None,
    bucketing: bool = False,
    learning_rate: float = 1e-3,
    optimizer: OptimizerFactory | None = None,
    lr_schedule: Literal["cosine"] | ScheduleFactory | None = None,
    kl_warmup_steps: int | None = None,
    gradient_clip: float | None = None,
    early_stopping: int | None = None,
    seed: int | None = None,
    folder: str | Path | None = DEFAULT_FOLDER,
    resume: bool | str | Path = False,
    checkpoint_every: int = 1,
    progress: bool = True,
    num_workers: int = 0,
    drop_last: bool = False,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> FitResult:
    """Train a model in place.

    Lightning supplies loops, devices, logging and checkpoints. Every epoch is seeded by (seed, epoch). A run that was
    interrupted anywhere and resumed therefore ends bit for bit where the uninterrupted run does, on the same machine
    with the same number of threads.

    Checkpoints hold whole epochs. `max_steps`, `max_time` (of each call), a callback's `should_stop`, ctrl-C and
    SIGTERM may end a run within an epoch. No checkpoint contains this epoch. A resumed run repeats it from its start.

    Args:
        model: An `FGPVAE`, or another model of this package.
        train: Training groups.
        validation: Groups, whose negative ELBO is `val_loss` (nats per member), or held-out members, whose error is
            `val_mse`. The smallest value decides which checkpoint is the best. A fraction in (0, 1) splits that part
            of the groups of `train` off, at least one, by `seed`; the others are trained on. Every validation draws
            the same random numbers.
        restore_best: Whether the model ends with the parameters and buffers of the best epoch by validation, not those
            of the last one. The start is judged, too. So training moves the model only if held-out data say so. The
            best state stays in memory, and in `last.ckpt`. Needs validation.
        objective: `ELBO()` if None. Its own state, such as GECO's multiplier, starts anew unless a run is resumed.
        epochs: Passes over the training groups, including those before a resume. A resumed run may have more epochs
            than it was started with; its schedule is then that of all of them. None: as many as `max_steps` need.
        max_steps: Steps of the optimizer after which training ends, including those before a resume. The model is
            validated there, also within an epoch. None for those of `epochs`.
        batch_size: Groups per step and process. Two processes with 10 groups each take the steps of one with 20, up to
            rounding and to random numbers that networks draw themselves. None: 20, without `batch_members`.
        batch_members: Members per step and process, in place of `batch_size`. A minibatch takes groups until their
            members reach this number, or a little less: every epoch has as many steps. A larger group may be alone.
        bucketing: Whether a minibatch has groups of similar sizes, so that there is little padding. Minibatches come in
            random order. Gradients stay unbiased: the mean over an epoch is the gradient of the whole data set. A prior
            that couples groups refuses this, and `batch_members`.
        learning_rate: Of the default optimizer.
        optimizer: A function from parameters to an optimizer. None for Adam in its fused form.
        lr_schedule: "cosine" falls from the learning rate to zero over all steps of the run: those of `epochs`, or
            `max_steps` if it is smaller. A function takes the optimizer and this number of steps, and returns a
            scheduler that is stepped every step.
        kl_warmup_steps: Steps over which the weight of the KL rises linearly from 0 to its full value. The latents are
            then in use before the KL can switch them off. None starts with the full weight. `GECO` refuses it.
        gradient_clip: Largest norm of the gradient of the loss per member. None for no clipping.
        early_stopping: Validation epochs without improvement after which training stops. None never stops early.
        seed: Of shuffling and sampling. None draws one, which is saved. It does not seed the initial weights: call
            `torch.manual_seed` before building the model. PyTorch's global generators are left unchanged.
        folder: For logs (CSV, and TensorBoard if it is installed) and checkpoints. By default a new one that is named
            by date and time. None writes nothing. A folder holds one run, and one process may write it at a time.
        resume: True continues from the folder's last checkpoint if there is one, a path from that file. Model, data,
            validation data, objective, optimizer, schedule, precision, accumulation and other settings must be those
            of the run; epochs, max_steps, early_stopping, checkpoint_every and num_workers may change. The number of
            processes may change if batch_size times processes stays.
        checkpoint_every: Epochs between checkpoints of the last state. The end of the last whole epoch of `epochs`,
            `max_steps` or early stopping is saved too.
        progress: Whether to show a progress bar.
        num_workers: Processes that load data. Data sets in memory need none.
        drop_last: Whether an epoch leaves out the groups of a last minibatch that is not full. Networks with batch
            normalization need it: they cannot take one member alone. Other groups are left out in each epoch.
        callbacks: More Lightning callbacks.
        **trainer_options: Lightning's own flags: `accelerator`, `devices`, `strategy`, `precision`, ... Several
            processes need `strategy="ddp"`. A precision that stores x in 16 bits is refused.

    Warns:
        UserWarning: By the first process, and not again when a run is resumed:

            - If columns of y have raw units: a root mean square above 20 under a Gaussian likelihood, above 1000 under
              another one. If x has (above 20), and networks of a `CVAE` take it as it is.
            - If a lengthscale of the prior does not fit x: a tenth of the distance of neighbouring members or less, so
              that members are independent, or a hundred times the spread of a group or more, so that they are equal. If
              a learned period is below a tenth of that distance.
            - If `CoregionalizedChannels` learn more than the groups determine, so that intervals are too narrow.
            - At the end, if no channel carries 0.1 nats a group: y is predicted by its mean. If only global channels
              do: x has no effect. Some unused channels are no reason to warn; see `FitResult.kl_channels`.
            - At the end, if a run without `max_steps` took fewer than 500 steps and the loss was still falling. The
              loss falls if the mean of the last tenth of at least 20 epochs is below that of the tenth before it. The
              difference must exceed three standard errors. With validation data the last epochs must be the best.

    Returns:
        The history and the checkpoints. The model holds the parameters of the last epoch, or with `restore_best` those
        of the best one, in evaluation mode. It is on the device where it was before.

    Raises:
        ArgumentError: If an argument has the wrong type, a number is out of range, or an option needs another one.
        ShapeError: If held-out members do not fit their context.
        DataError: If a column of y was never observed, or a value lies outside the range of the likelihood. If a
            fraction is to be split off a single group.
        MissingFileError: If the checkpoint to resume from does not exist.
        CheckpointError: If it is no checkpoint of `fit`, damaged, or of another model, data set (by its features and a
            million of its values), objective or setting. If the folder holds another run, or another process writes it.
            If a file cannot be written, for instance on a full disk: the previous checkpoint is then unchanged.
        NonFiniteError: If a loss or gradient is NaN or infinite. It contains the term, the epoch and the groups.

    Examples:
        >>> data = GroupedDataset(torch.rand(9, 2), torch.arange(9.0), group=[0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> result = fit(model, data, validation=HeldOut.last(data), epochs=1, folder="run", progress=False)
        >>> best = FGPVAE.load(result.best_checkpoint)
        >>> result = fit(model, data, validation=HeldOut.last(data), epochs=20, folder="run", resume=True)
    """
    check.instance(model, "model", GroupedVAE, "Try FGPVAE(encoder, decoder, prior).")
    check.instance(train, "train", GroupedDataset, "Try GroupedDataset(y, x, group).")
    fraction = _fraction(validation)
    if fraction is not None:
        check_split(model, fraction)
    elif validation is not None:
        check.instance(validation, "validation", (GroupedDataset, HeldOut), "Try groups that are not in train, or 0.1.")
    else:
        for name, asked in (("early_stopping", early_stopping is not None), ("restore_best", restore_best is True)):
            if asked:
                raise ArgumentError(f"{name}: expected validation data to judge by, got none. Try validation=0.1.")
    check_trainer_options(trainer_options, callbacks)
    if (batch_members is not None or bucketing) and model.prior.couples_groups:
        raise ArgumentError(
            "batch_members, bucketing: expected neither for a prior that couples groups, which weighs minibatches by "
            f"their groups, got batch_members={batch_members} and bucketing={bucketing}. Try batch_size=."
        )
    batch_size = 20 if batch_size is None and batch_members is None else batch_size
    settings = RunSettings(
        objective=ELBO() if objective is None else objective, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, optimizer=optimizer, lr_schedule=lr_schedule, gradient_clip=gradient_clip,
        early_stopping=early_stopping, seed=seed, checkpoint_every=checkpoint_every, num_workers=num_workers,
        drop_last=drop_last, max_steps=max_steps, kl_warmup_steps=kl_warmup_steps, restore_best=restore_best,
        validation_fraction=fraction, batch_members=batch_members, bucketing=bucketing,
    )  # fmt: skip
    checkpoint = checkpoint_to_resume(resume, folder)
    seed_is_drawn = fraction is not None and settings.seed is None and checkpoint is None
    if fraction is not None:
        settings = replace(settings, seed=_seed_of_split(settings, checkpoint))
        assert settings.seed is not None
        train, validation = split_groups(train, fraction, settings.seed)
    assert not isinstance(validation, float | int)
    train.check_observed()
    if isinstance(validation, GroupedDataset) and validation.num_elements == 0:
        raise DataError("validation: expected groups with an observation, got none. Try other groups.")
    for data in (train, validation.context if isinstance(validation, HeldOut) else validation):
        if data is not None:
            model.likelihood.check_data(data)
    speaks = getattr(rank_zero_only, "rank", 0) == 0
    if speaks and checkpoint is None:
        advice.warn_of_raw_units(model, train)
        advice.warn_of_lengthscales(model, train)
        model.prior.warn_of_few_groups(len(train))
    model.begin_training()
    trainer_options["plugins"] = with_checkpoint_files(trainer_options.get("plugins"))
    module = TrainingModule(model, settings, train, validation)
    monitor, path, last, chosen = module.monitor, folder_of(folder), None, list(callbacks)
    if path is not None:
        # the best one first: the last checkpoint then contains its score
        chosen += [EpochCheckpoint(path, "best", monitor)] if monitor is not None else []
        last = EpochCheckpoint(path, "last", every=settings.checkpoint_every)
        chosen.append(last)
    if settings.early_stopping is not None and monitor is not None:
        chosen.append(PatientStopping(monitor, patience=settings.early_stopping, check_on_train_epoch_end=False))
    progress = bool(trainer_options.get("enable_progress_bar", progress))
    if progress:
        chosen.append(TQDMProgressBar(refresh_rate=10))
    device = next((p.device for p in model.parameters()), None)
    with _quiet(), global_state_restored(), mode_restored_on_error(model):
        trainer = lightning.Trainer(
            **{
                # the module ends a run by steps: Lightning's max_steps starts a resumed run with an empty epoch
                "max_epochs": settings.max_steps if settings.epochs is None else settings.epochs,
                "callbacks": chosen,
                "logger": _loggers(path),
                "gradient_clip_val": settings.gradient_clip,
                "enable_progress_bar": progress,
                "enable_checkpointing": path is not None,
                "enable_model_summary": False,
                "num_sanity_val_steps": -1 if settings.restore_best and checkpoint is None else 0,  # all batches
                "log_every_n_steps": 10**9,  # metrics are logged by the epoch
                "limit_val_batches": None if validation is not None else 0,
                "default_root_dir": path,
                "use_distributed_sampler": False,  # the batches are shared among processes here
                **trainer_options,
            }
        )
        check_trainer(trainer, model)
        if seed_is_drawn and trainer.world_size > 1:
            raise ArgumentError(
                "seed: expected a number, by which all processes split the same validation groups off, got None. Try "
                "seed=0."
            )
        if settings.restore_best:
            check_restore_best(trainer, callbacks)
        with claimed(path if trainer.is_global_zero else None, checkpoint):
            model.train()
            try:
                run(trainer, module, checkpoint, path)
                module.restore_best()
            finally:
                model.to(device)  # Lightning leaves it on the CPU
    model.eval()
    if last is not None and folder == DEFAULT_FOLDER and trainer.global_rank > 0:
        path = Path(str(last.dirpath))  # the folder of rank 0
    history = pd.DataFrame(module.history)
    with generators_restored():  # a lazy data set may draw numbers
        kl_channels = advice.kl_of_channels(model, train)
    if speaks and not trainer.interrupted and module.history:
        advice.warn_of_unused_channels(model, history, kl_channels, module.best_epoch if restore_best else None)
        advice.warn_of_few_steps(settings, history, trainer.global_step, module.best_epoch)
    return FitResult(
        history=history,
        folder=path,
        last_checkpoint=existing(path, "last.ckpt"),
        best_checkpoint=existing(path, "best.ckpt"),
        best_epoch=module.best_epoch,
        validation_labels=validation.labels
        if fraction is not None and isinstance(validation, GroupedDataset)
        else None,
        kl_channels=kl_channels,
        interrupted=trainer.interrupted,
        seconds_per_epoch=module.seconds_per_epoch,
        trainer=trainer,
    )


def _fraction(validation: Any) -> float | None:
    """The fraction of the groups to validate on, or None if `validation` is something else than a number."""
    value = check.number(validation)
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return check.positive(value, "validation", below=1, hint="Try 0.1, groups that are not in train, or HeldOut.")


def _seed_of_split(settings: RunSettings, checkpoint: Path | None) -> int:
    """The seed of a run that splits validation groups off: that of the settings or of the checkpoint, or a new one.

    Raises:
        CheckpointError: If the file is no checkpoint of `fit`.
    """
    if settings.seed is not None:
        return settings.seed
    return secrets.randbelow(2**31) if checkpoint is None else content_of(checkpoint)["seed"]


def _loggers(path: Path | None) -> list[Logger]:
    if path is None:
        return []
    # each start gets a new version: Lightning would delete the file of an earlier one
    loggers: list[Logger] = [CSVLogger(path, name="log", flush_logs_every_n_steps=1)]
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(path, name="tensorboard", version=loggers[0].version))
    return loggers


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice that does not apply here, during the run only."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        advice = "does not have many workers|exists and is not empty|callbacks used to create the checkpoint need to be"
        advice += r"|smaller than the logging interval|GPU available but not used|isinstance\(treespec, LeafSpec\)"
        warnings.filterwarnings("ignore", f".*({advice})")
        try:
            yield
        finally:
            logger.setLevel(level)
