"""The steps of training and validation, as a Lightning module."""

import math
import secrets
import time
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import generators_restored
from fgp_gpytorch._shards import Shard, sharing
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOut, HeldOutBatch
from fgp_gpytorch.errors import ArgumentError, NonFiniteError
from fgp_gpytorch.models import GroupedVAE, Terms
from fgp_gpytorch.saving import KEY, model_state, pack_model, structure_of
from fgp_gpytorch.training.settings import (
    RunSettings,
    another_run,
    fingerprint,
    first_difference,
    optimizer_settings,
    schedule_settings,
)
from fgp_gpytorch.training.shared_batches import SeededGroups, SharedBatches, whole_terms

_KL = " (of the encoder's mean and variance, and the kernels)"
_SOURCES = {
    "kernel": " (its values at the x of the batch, or their ratio to the pseudo-variances)",
    "posterior": " (of the encoder's mean and variance)",
    "kl_local": _KL,
    "kl_global": _KL,
}


class TrainingModule(lightning.LightningModule):
    """Training and validation steps of a model under an objective.

    All randomness of an epoch follows from (seed, epoch). An epoch that was interrupted therefore runs again bit for
    bit. Every validation draws the same numbers, so its values differ by the parameters alone. Several processes share
    each minibatch. Their step equals the step of one process with the whole minibatch.

    Attributes:
        monitor: The figure that judges an epoch, "val_loss" or "val_mse"; None without validation data.
        best_epoch: Epochs behind the best state by `monitor`. 0 is the start, which only `restore_best` judges.
    """

    def __init__(
        self,
        model: GroupedVAE,
        settings: RunSettings,
        train: GroupedDataset,
        validation: GroupedDataset | HeldOut | None,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.settings = model, settings.objective, settings
        self.resumed: tuple[dict[str, Any], str] = {}, ""  # the saved record, and its file
        self.history: list[dict[str, float]] = []  # one entry per epoch; checkpoints contain it
        self.seconds_per_epoch = math.nan  # of the epochs trained by this call
        self._train, self._validation = train, validation
        self.monitor = None if validation is None else "val_mse" if isinstance(validation, HeldOut) else "val_loss"
        self.best_epoch: int | None = None
        self._best_value, self._best_state = math.inf, None
        self._seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
        self._start, self._first_epoch = math.nan, 0
        self._random = ExitStack()
        self._groups = torch.empty(0)  # of the current batch
        self._names: tuple[str, ...] = ()  # of the parts that the objective reports
        self._sums = torch.zeros(0, 2)  # the sum and the count of each part, over the epoch's steps
        self._structure: list[Any] = []
        self._description: dict[str, Any] = {}
        self._validation_sums: dict[str, Tensor] = {}  # a sum and its count
        self._validation_means: dict[str, float] = {}

    @property
    def description(self) -> dict[str, Any]:
        """The description of the model that `GroupedVAE.load` reads. A callback may change the model."""
        structure = structure_of(self.model)
        if structure != self._structure:
            self._description, self._structure = pack_model(self.model, warn=False), structure
        return self._description

    @cached_property
    def record(self) -> dict[str, Any]:
        """The settings and fingerprints of the data, as plain values. A resumed run is compared with it."""
        validation = {} if self._validation is None else fingerprint(self._validation)
        kind = None if self._validation is None else type(self._validation).__qualname__
        others = {"validation": kind, **{f"validation: {name}": value for name, value in validation.items()}}
        return {**self.settings.plain(), **fingerprint(self._train), **others}

    # data

    def setup(self, stage: str) -> None:
        """Take the seed of the first process. Each would draw another one."""
        self._seed = self.trainer.strategy.broadcast(self._seed)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled minibatches of whole groups. Every process gets its share."""
        return self._loader(self._train, self._training_batches)

    def val_dataloader(self) -> DataLoader | list:
        """Return minibatches of the validation data, in order. Every process gets its share."""
        return [] if self._validation is None else self._loader(self._validation, self._validation_batches)

    @cached_property
    def _training_batches(self) -> SharedBatches:
        settings = self.settings
        return SharedBatches(
            self._train.group_sizes, settings.batch_size, self.trainer, self._epoch, self._seed, settings.drop_last,
            settings.batch_members, settings.bucketing,
        )  # fmt: skip

    @cached_property
    def _validation_batches(self) -> SharedBatches:
        assert self._validation is not None
        groups, settings = self._validation, self.settings
        sizes = (groups.context if isinstance(groups, HeldOut) else groups).group_sizes
        return SharedBatches(
            sizes, settings.batch_size, self.trainer, self._epoch, batch_members=settings.batch_members
        )

    def _epoch(self) -> int:
        """The epoch in progress. Workers load its first batches before Lightning counts it."""
        return len(self.history)

    def _loader(self, data: Dataset, batches: SharedBatches) -> DataLoader:
        workers = self.settings.num_workers
        # PyTorch pins the parts of a HeldOutBatch itself, and cannot pin those on a device
        on_cpu = not isinstance(data, HeldOut) or data.x_new.device.type == "cpu"
        # a loader draws its workers' seeds, and must not take them from the generator that draws z
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(
            SeededGroups(data), batch_size=None, sampler=batches, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=on_cpu and self.trainer.strategy.root_device.type == "cuda", generator=generator,
        )  # fmt: skip

    def _shard(self, batches: SharedBatches, batch_index: int, data: Any) -> Shard | None:
        """The share of this process in a minibatch. None if there is one process."""
        if self.trainer.world_size == 1:
            return None
        whole = batches.whole(batch_index)
        sizes = (data.context if isinstance(data, HeldOut) else data).group_sizes
        return Shard(batches.sizes(len(whole)), self.trainer.global_rank, int(sizes[whole].max()))

    # steps

    def on_train_start(self) -> None:
        """Start the clock."""
        self._start, self._first_epoch = time.perf_counter(), self.current_epoch

    def on_train_epoch_start(self) -> None:
        """Seed the epoch."""
        self._seed_generators(self._epoch(), 0)
        self._names, self._sums = (), torch.zeros(0, 2)
        self._validation_means.clear()

    def training_step(self, batch: GroupedBatch, batch_index: int) -> Tensor:
        """Return the objective's loss per member of the dataset.

        Raises:
            NonFiniteError: If it is NaN or infinite.
        """
        self._groups = batch.group_index
        shard = self._shard(self._training_batches, batch_index, self._train)
        try:
            with sharing(shard):
                terms = self.objective.terms(self.model, self.model, batch)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise self._non_finite("posterior", batch) from error
        except NonFiniteError as error:  # of a kernel: only here its epoch is known
            raise self._non_finite(error.term or "posterior", batch, f" {error}") from error
        terms = terms if shard is None else whole_terms(terms, shard)
        terms = terms._replace(num_batches=self._training_batches.weight)
        loss = self.objective.loss_of(self._warmed_up(terms)) / terms.num_dataset_members
        if not bool(torch.isfinite(loss)):
            raise self._non_finite(_first_non_finite(terms), batch)
        self._add_up(self.objective.report(terms))
        self.objective.update(terms)
        # every process holds the whole loss and its own part of the gradient, and DDP takes the mean of the gradients
        return loss * self.trainer.world_size if shard is not None else loss

    def _warmed_up(self, terms: Terms) -> Terms:
        """The terms with the KL times the weight of this step, which rises linearly from 0 to 1."""
        steps = self.settings.kl_warmup_steps
        if steps is None or self.trainer.global_step >= steps:
            return terms
        weight = self.trainer.global_step / steps
        features = None if terms.kl_features is None else weight * terms.kl_features
        return terms._replace(
            kl_local=weight * terms.kl_local, kl_global=weight * terms.kl_global, kl_features=features
        )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run after `max_steps`, also within an epoch. Lightning then validates."""
        if self.settings.max_steps is not None:
            self.trainer.should_stop |= self.trainer.global_step >= self.settings.max_steps

    def _add_up(self, report: dict[str, tuple[Tensor, Tensor]]) -> None:
        parts = [part.to(self.device, torch.float64) for pair in report.values() for part in pair]
        new = torch.stack(parts).unflatten(0, (-1, 2))
        self._sums = new if tuple(report) != self._names else self._sums + new
        self._names = tuple(report)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop before a non-finite gradient reaches the parameters.

        Raises:
            NonFiniteError: If a gradient, or the norm of all gradients, is NaN or infinite.
        """
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if not bool(torch.isfinite(norm)):
            bad = next((n for n, g in gradients.items() if not bool(torch.isfinite(g).all())), "all together")
            raise self._non_finite(f"gradient of {bad}")

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch, and add them to the history."""
        row: dict[str, float] = {"epoch": self._epoch()}
        for name, (total, count) in zip(self._names, self._sums.tolist(), strict=True):
            row[name] = total / count if count else math.nan
            self.log(name, row[name], sync_dist=True, prog_bar=name == "mse")
        row["learning_rate"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("learning_rate", row["learning_rate"])
        self.history.append({**row, **self._validation_means})
        self._judge(len(self.history))
        self.seconds_per_epoch = (time.perf_counter() - self._start) / (self.current_epoch + 1 - self._first_epoch)

    def on_validation_start(self) -> None:
        """Draw the same numbers in every validation, and leave those of training as they are."""
        device = self.trainer.strategy.root_device
        self._random = ExitStack()
        self._random.enter_context(generators_restored([device.index or 0] if device.type == "cuda" else []))
        self._seed_generators(0, 1)

    def on_validation_end(self) -> None:
        """Go on with the numbers of training."""
        self._random.close()

    def validation_step(self, batch: GroupedBatch | HeldOutBatch, batch_index: int) -> None:
        """Add up the squared error at held-out members, or the negative ELBO and squared error of held-out groups."""
        shard = self._shard(self._validation_batches, batch_index, self._validation)
        try:
            with sharing(shard):
                sums = self._validated(batch)
        except NonFiniteError as error:
            own = batch.context if isinstance(batch, HeldOutBatch) else batch
            groups, term = own.group_index.tolist(), error.term or "posterior"
            raise NonFiniteError(
                f"validation stopped: {term} is not finite in epoch {self.current_epoch}, in groups {groups} "
                f"(positions in the validation data).{_where_not_finite(own)} Try other validation data. {error}",
                term=term, epoch=self.current_epoch, groups=groups,
            ) from error  # fmt: skip
        for name, pair in sums.items():
            total = torch.tensor([float(part) for part in pair], dtype=torch.float64)
            weight = 0.0 if shard is not None and shard.is_empty else 1.0  # a repeated group does not count
            self._validation_sums[name] = self._validation_sums.get(name, 0.0) + weight * total

    def _validated(self, batch: GroupedBatch | HeldOutBatch) -> dict[str, tuple[Tensor, Any]]:
        """Sums of a batch and what to divide them by."""
        if isinstance(batch, HeldOutBatch):
            error = batch.masked((self.model.generate(batch.x_new, batch.context) - batch.y_new).square())
            return {"val_mse": (error.sum(), batch.num_elements)}
        terms = self.model.terms(batch)
        return {
            "val_loss": ((terms.kl - terms.log_likelihood).sum(), terms.num_members.sum()),
            "val_mse": (terms.squared_error.sum(), terms.num_elements.sum()),
        }

    def on_validation_epoch_end(self) -> None:
        """Log means over the validation data."""
        for name, sums in self._validation_sums.items():
            total, count = torch.as_tensor(self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum")).tolist()
            self._validation_means[name] = total / count if count else math.nan
            self.log(name, self._validation_means[name], sync_dist=True, prog_bar=True)
        self._validation_sums.clear()
        if self.trainer.sanity_checking and self.settings.restore_best:  # Lightning's word for validation at the start
            self._judge(0)

    def _judge(self, epoch: int) -> None:
        """Remember the state after so many epochs if it is the best one. Of equal ones the first stays."""
        if self.monitor is None:
            return
        value = self._validation_means.get(self.monitor, math.nan)
        value = torch.tensor(value, dtype=torch.float32).item()  # best.ckpt is chosen by this value, too
        if value < self._best_value or epoch == 0:
            self.best_epoch, self._best_value = epoch, math.inf if math.isnan(value) else value
            if self.settings.restore_best:
                self._best_state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore_best(self) -> None:
        """Load the best state into the model if the settings ask for it."""
        if self.settings.restore_best and self._best_state is not None:
            self.model.load_state_dict(dict(self._best_state))

    def _seed_generators(self, epoch: int, purpose: int) -> None:
        numbers = self._seed, epoch, purpose  # another seed for every triple
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    # optimizer and checkpoints

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with a schedule per step if the settings have one.

        Raises:
            ArgumentError: If a function of the settings returns something else.
            CheckpointError: If a resumed run had another optimizer or schedule.
        """
        settings, parameters = self.settings, [p for p in self.model.parameters() if p.requires_grad]
        if settings.optimizer is None:
            optimizer = Adam(parameters, lr=settings.learning_rate, fused=True)
        else:
            hint = "Try lambda parameters: torch.optim.SGD(parameters, lr=1e-3)."
            optimizer = check.instance(settings.optimizer(parameters), "optimizer(parameters)", Optimizer, hint)
        self._compare("settings of the optimizer", optimizer_settings(optimizer))
        steps = self._scheduled_steps()
        if (settings.kl_warmup_steps or 0) > steps:
            raise ArgumentError(
                f"kl_warmup_steps: expected at most {steps}, the steps of the run, got {settings.kl_warmup_steps}: the "
                f"KL would never get its full weight. Try kl_warmup_steps={max(1, steps // 5)}, or more epochs."
            )
        if settings.lr_schedule is None:
            return optimizer
        schedule = _cosine if settings.lr_schedule == "cosine" else settings.lr_schedule
        scheduler = schedule(optimizer, steps)
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise ArgumentError(
                "lr_schedule: expected a function that returns a torch scheduler which is stepped after every batch, "
                f"got a {type(scheduler).__name__} from it. Try lambda optimizer, steps: "
                "torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)."
            )
        self._compare("settings of the schedule", schedule_settings(scheduler))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _scheduled_steps(self) -> int:
        """The steps of `epochs` or `max_steps`, also of a run that something else ends earlier: it may be resumed."""
        trainer, epochs, most = self.trainer, self.settings.epochs, self.settings.max_steps
        trainer.fit_loop.setup_data()
        of_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return min(limit for limit in (most, None if epochs is None else epochs * of_epoch) if limit is not None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the objective's state, the history, the seed, the settings, and what `GroupedVAE.load` needs."""
        checkpoint[KEY] = {**self.description, "state_dict": model_state(self.model)}
        checkpoint["objective"] = self.objective.state_dict()
        checkpoint["history"] = list(self.history)
        checkpoint["seed"] = self._seed
        checkpoint["settings"] = dict(self.record)
        if self.monitor is not None:
            checkpoint["best"] = {"epoch": self.best_epoch, "value": self._best_value, "state": self._best_state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the objective's state, the history and the seed."""
        self.objective.load_state_dict(checkpoint["objective"])
        self.history = list(checkpoint["history"])
        self._seed = checkpoint["seed"]
        best = checkpoint.get("best")
        if best is not None:
            self.best_epoch, self._best_value, self._best_state = best["epoch"], best["value"], best["state"]
        checkpoint["callbacks"].pop("Timer", None)  # max_time is that of this call

    def _compare(self, name: str, mine: dict[str, Any]) -> None:
        """Record settings that only now are known. A checkpoint would silently bring back its own."""
        saved, checkpoint = self.resumed
        if saved.get(name, mine) != mine:
            raise another_run(first_difference(mine, saved[name], name), checkpoint)
        self.record[name] = mine

    def _non_finite(self, term: str, batch: GroupedBatch | None = None, cause: str = "") -> NonFiniteError:
        groups, epoch, source = self._groups.tolist(), self.current_epoch, _SOURCES.get(term, "")
        lost = "" if batch is None else _where_not_finite(batch)
        return NonFiniteError(
            f"training stopped: {term}{source} is not finite in epoch {epoch}, in the batch of groups {groups} "
            f"(positions in the training data).{lost} The last checkpoint is untouched. Try "
            "a smaller learning rate, gradient_clip=, or scaled data: look at y of these groups, and at x where a "
            f"network takes it.{cause}",
            term=term, epoch=epoch, groups=groups,
        )  # fmt: skip


def _cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    # not CosineAnnealingLR, whose state restores the old number of steps when a run is resumed for more epochs
    return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _where_not_finite(batch: GroupedBatch) -> str:
    """What to say of groups whose observed y is not finite, such as those of a file."""
    finite = (torch.isfinite(batch.y) | ~batch.observed).flatten(1).all(1).cpu()
    groups = batch.group_index.cpu()[~finite].tolist()
    return f" y itself has NaN or infinite values in groups {groups}." if groups else ""


def _first_non_finite(terms: Terms) -> str:
    # the KL does not depend on the decoder, so it comes first
    parts = "kl_local", "kl_global", "kl_features", "kl_effects", "log_supervision", "log_likelihood", "log_hyperprior"
    for name in parts:
        value = getattr(terms, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            return name
    return "loss"
