"""The steps of training and validation, as a Lightning module."""

import math
import secrets
import time
from functools import cached_property
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fgp_gpytorch import _checks as check
from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOutBatch
from fgp_gpytorch.errors import ArgumentError, NonFiniteError
from fgp_gpytorch.models import FGPVAE, Terms
from fgp_gpytorch.models.saving import KEY, model_state, pack_model
from fgp_gpytorch.training.settings import RunSettings, fingerprint

_KL = " (of the encoder's mean and variance, and the kernels)"
_SOURCES = {"posterior": " (of the encoder's mean and variance)", "kl_local": _KL, "kl_global": _KL}


class TrainingModule(lightning.LightningModule):
    """Training and validation steps of a model under an objective.

    All randomness of an epoch follows from (seed, epoch, process). An epoch that was interrupted therefore runs again
    bit for bit.
    """

    def __init__(self, model: FGPVAE, settings: RunSettings, train: GroupedDataset, validation: Dataset | None) -> None:
        super().__init__()
        self.model, self.objective, self.settings = model, settings.objective, settings
        self.history: list[dict[str, float]] = []  # one entry per epoch; checkpoints contain it
        self.seconds_per_epoch = math.nan  # of the epochs trained by this call
        self._train, self._validation = train, validation
        self._seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
        self._start, self._first_epoch = math.nan, 0
        self._groups = torch.empty(0)  # of the current batch
        self._parts: list[dict[str, Tensor]] = []  # of the epoch's steps
        self._validation_sums: dict[str, Tensor] = {}  # a sum and its count
        self._validation_means: dict[str, float] = {}

    @cached_property
    def description(self) -> dict[str, Any]:
        """The description of the model that `FGPVAE.load` reads."""
        return pack_model(self.model, warn=False)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The settings and a fingerprint of the training data, as plain values. A resumed run is compared with it."""
        return {**self.settings.plain(), **fingerprint(self._train)}

    # data

    def train_dataloader(self) -> DataLoader:
        """Return shuffled minibatches of whole groups. Every process gets its share."""
        sampler = DistributedSampler(
            self._train, self.trainer.world_size, self.trainer.global_rank, shuffle=True, seed=self._seed
        )
        # Lightning sets the epoch before each one, but workers may fetch the first batches before that
        sampler.set_epoch(self.trainer.current_epoch)
        return self._loader(self._train, sampler)

    def val_dataloader(self) -> DataLoader | list:
        """Return minibatches of the validation data, in order."""
        return [] if self._validation is None else self._loader(self._validation, None)

    def _loader(self, data: Dataset, sampler: DistributedSampler | None) -> DataLoader:
        workers = self.settings.num_workers
        # a loader draws its workers' seeds, and must not take them from the generator that draws z
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(
            data, self.settings.batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
            pin_memory=self.trainer.strategy.root_device.type == "cuda", generator=generator,
        )  # fmt: skip

    # steps

    def on_train_start(self) -> None:
        """Start the clock."""
        self._start, self._first_epoch = time.perf_counter(), self.current_epoch

    def on_train_epoch_start(self) -> None:
        """Seed the epoch."""
        numbers = self._seed, self.current_epoch, self.global_rank  # another seed for every triple
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        self._parts.clear()
        self._validation_means.clear()

    def training_step(self, batch: GroupedBatch, batch_index: int) -> Tensor:
        """Return the objective's loss per member of the dataset.

        Raises:
            NonFiniteError: If it is NaN or infinite.
        """
        self._groups = batch.group_index
        try:
            terms = self.objective.terms(self.model, self.model, batch)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise self._non_finite("posterior") from error
        loss = self.objective.loss_of(terms) / terms.num_dataset_members
        if not bool(torch.isfinite(loss)):
            raise self._non_finite(_first_non_finite(terms))
        self._parts.append(self.objective.report(terms))
        self.objective.update(terms)
        return loss

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
        row: dict[str, float] = {"epoch": self.current_epoch}
        for name in self._parts[0] if self._parts else ():
            mean = torch.stack([parts[name].double().to(self.device) for parts in self._parts]).mean()
            row[name] = float(self.trainer.strategy.reduce(mean, reduce_op="mean"))
            self.log(name, row[name], sync_dist=True, prog_bar=name == "mse")
        row["learning_rate"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("learning_rate", row["learning_rate"])
        self.history.append({**row, **self._validation_means})
        self.seconds_per_epoch = (time.perf_counter() - self._start) / (self.current_epoch + 1 - self._first_epoch)

    def validation_step(self, batch: GroupedBatch | HeldOutBatch, batch_index: int) -> None:
        """Add up the squared error at held-out members, or the negative ELBO and squared error of held-out groups."""
        if isinstance(batch, HeldOutBatch):
            error = batch.masked((self.model.generate(batch.x_new, batch.context) - batch.y_new).square())
            sums = {"val_mse": (error.sum(), batch.num_elements)}
        else:
            terms = self.model.terms(batch)
            sums = {"val_loss": ((terms.kl - terms.log_likelihood).sum(), terms.num_members.sum())}
            sums["val_mse"] = terms.squared_error.sum(), terms.num_elements.sum()
        for name, pair in sums.items():
            total = torch.tensor([float(part) for part in pair], dtype=torch.float64)
            self._validation_sums[name] = self._validation_sums.get(name, 0.0) + total

    def on_validation_epoch_end(self) -> None:
        """Log means over the validation data."""
        for name, sums in self._validation_sums.items():
            total, count = torch.as_tensor(self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum"))
            self._validation_means[name] = (total / count).item()
            self.log(name, self._validation_means[name], sync_dist=True, prog_bar=True)
        self._validation_sums.clear()

    # optimizer and checkpoints

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with a schedule per step if the settings have one.

        Raises:
            ArgumentError: If a function of the settings returns something else.
        """
        settings, parameters = self.settings, [p for p in self.model.parameters() if p.requires_grad]
        if settings.optimizer is None:
            optimizer = Adam(parameters, lr=settings.learning_rate, fused=True)
        else:
            hint = "Try lambda parameters: torch.optim.SGD(parameters, lr=1e-3)."
            optimizer = check.instance(settings.optimizer(parameters), "optimizer(parameters)", Optimizer, hint)
        if settings.lr_schedule is None:
            return optimizer
        schedule = _cosine if settings.lr_schedule == "cosine" else settings.lr_schedule
        scheduler = schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
            raise ArgumentError(
                "lr_schedule: expected a function that returns a torch scheduler which is stepped after every batch, "
                f"got a {type(scheduler).__name__} from it. Try lambda optimizer, steps: "
                "torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the objective's state, the history, the seed, the settings, and what `FGPVAE.load` needs."""
        checkpoint[KEY] = {**self.description, "state_dict": model_state(self.model)}
        checkpoint["objective"] = self.objective.state_dict()
        checkpoint["history"] = list(self.history)
        checkpoint["seed"] = self._seed
        checkpoint["settings"] = dict(self.record)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the objective's state, the history and the seed."""
        self.objective.load_state_dict(checkpoint["objective"])
        self.history = list(checkpoint["history"])
        self._seed = checkpoint["seed"]

    def _non_finite(self, term: str) -> NonFiniteError:
        groups, epoch, source = self._groups.tolist(), self.current_epoch, _SOURCES.get(term, "")
        return NonFiniteError(
            f"training stopped: {term}{source} is not finite in epoch {epoch}, in the batch of groups {groups} "
            "(positions in the training data). The last checkpoint is untouched. Try a smaller learning rate, "
            "gradient_clip=, or scaled data: look at y of these groups, and at x where a network takes it.",
            term=term, epoch=epoch, groups=groups,
        )  # fmt: skip


def _cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    # not CosineAnnealingLR, whose state restores the old number of steps when a run is resumed for more epochs
    return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))


def _first_non_finite(terms: Terms) -> str:
    # the KL does not depend on the decoder, so it comes first
    for name in ("kl_local", "kl_global", "kl_features", "log_supervision", "log_likelihood", "log_hyperprior"):
        value = getattr(terms, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            return name
    return "loss"
