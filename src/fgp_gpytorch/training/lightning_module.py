"""The model as Lightning sees it."""

import json
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fgp_gpytorch.data import GroupedBatch, GroupedDataset, HeldOutBatch
from fgp_gpytorch.errors import DataError, NonFiniteError
from fgp_gpytorch.models import Terms
from fgp_gpytorch.models.saving import KEY, model_state, pack_model
from fgp_gpytorch.objectives import Objective

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
ScheduleFactory = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]


class TrainingModule(lightning.LightningModule):
    """Training and validation steps of a model under an objective.

    All randomness of an epoch follows from (seed, epoch, process), so an epoch that was cut runs again bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None,
        train: GroupedDataset,
        validation: Dataset | None,
        batch_size: int,
        num_workers: int,
        seed: int,
        settings: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model: Any = model  # a module with `terms` and `generate`
        self.objective = objective
        self._optimizer, self._schedule = optimizer, schedule
        self._train, self._validation = train, validation
        self._batch_size, self._num_workers, self._seed = batch_size, num_workers, seed
        self._settings = settings  # what a resumed run must agree on
        self._clock, self._first_epoch = math.nan, 0
        self.seconds_per_epoch = math.nan  # of the epochs trained here
        self.history: list[dict[str, float]] = []  # a row per epoch; checkpoints carry it
        self._parts: list[dict[str, Tensor]] = []
        self._validation_sums: dict[str, tuple[float, float]] = {}  # sum and count
        self._validation_means: dict[str, float] = {}
        self._description: dict[str, Any] | None = None

    # data

    def train_dataloader(self) -> DataLoader:
        """Shuffled minibatches of whole groups; every process gets its share."""
        sampler = DistributedSampler(
            self._train, self.trainer.world_size, self.trainer.global_rank, shuffle=True, seed=self._seed
        )
        # Lightning sets the epoch before each one, but workers may fetch the first batches before that
        sampler.set_epoch(self.trainer.current_epoch)
        return self._loader(self._train, sampler)

    def val_dataloader(self) -> DataLoader | list:
        """Minibatches of the validation data, in order."""
        return [] if self._validation is None else self._loader(self._validation, None)

    def _loader(self, data: Dataset, sampler: DistributedSampler | None) -> DataLoader:
        pin = self.trainer.strategy.root_device.type == "cuda"
        # a loader draws its workers' seeds: not from the generator that z is drawn from
        generator = torch.Generator().manual_seed(self._seed)
        return DataLoader(
            data, self._batch_size, sampler=sampler, num_workers=self._num_workers, pin_memory=pin,
            persistent_workers=self._num_workers > 0, generator=generator,
        )  # fmt: skip

    # steps

    def on_train_start(self) -> None:
        """Start the clock."""
        self._clock, self._first_epoch = time.perf_counter(), self.current_epoch

    def on_train_epoch_start(self) -> None:
        """Seed the epoch."""
        torch.manual_seed(hash_seed(self._seed, self.current_epoch, self.global_rank))
        self._parts.clear()
        self._validation_means.clear()

    def training_step(self, batch: GroupedBatch, batch_index: int) -> Tensor:
        """The objective's loss per member of the dataset."""
        try:
            terms = self.objective.terms(self.model, self.model, batch)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise NonFiniteError(self._stopped("posterior (the encoder's mean or variance)", batch)) from error
        loss = self.objective.loss_of(terms) / terms.num_dataset_members
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(self._stopped(_first_non_finite(terms), batch))
        self._parts.append(self.objective.report(terms))
        self.objective.update(terms)
        self._last_batch = batch
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop before a non-finite gradient reaches the parameters."""
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
        if not bool(torch.isfinite(norm)):
            bad = next((n for n, g in gradients.items() if not bool(torch.isfinite(g).all())), "all together")
            raise NonFiniteError(self._stopped(f"gradient of {bad}", self._last_batch))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means, and add its row to the history."""
        row: dict[str, float] = {"epoch": self.current_epoch}
        for name in self._parts[0] if self._parts else ():
            mean = torch.stack([parts[name].double().to(self.device) for parts in self._parts]).mean()
            mean = self._over_processes(mean, "mean")
            self.log(name, mean, sync_dist=True, prog_bar=name == "mse")
            row[name] = mean.item()
        row["learning_rate"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("learning_rate", row["learning_rate"])
        self.history.append({**row, **self._validation_means})
        epochs = self.current_epoch + 1 - self._first_epoch
        self.seconds_per_epoch = (time.perf_counter() - self._clock) / epochs

    def on_validation_epoch_start(self) -> None:
        """Clear the sums."""
        self._validation_sums = {}

    def validation_step(self, batch: GroupedBatch | HeldOutBatch, batch_index: int) -> None:
        """Error at held-out members, or the negative ELBO of held-out groups."""
        if isinstance(batch, HeldOutBatch):
            generated = self.model.generate(batch.x_new, batch.context)
            error = batch.masked((generated - batch.y_new).square())
            sums = {"val_mse": (error.sum().item(), batch.num_elements)}
        else:
            terms = self.model.terms(batch)
            elbo = (terms.log_likelihood - terms.kl).sum().item()
            sums = {
                "val_loss": (-elbo, terms.num_members.sum().item()),
                "val_mse": (terms.squared_error.sum().item(), terms.num_elements.sum().item()),
            }
        for name, (value, count) in sums.items():
            before = self._validation_sums.get(name, (0.0, 0.0))
            self._validation_sums[name] = (before[0] + value, before[1] + count)

    def on_validation_epoch_end(self) -> None:
        """Log means over the validation data."""
        for name, sums in self._validation_sums.items():
            total, count = self._over_processes(torch.tensor(sums, dtype=torch.float64, device=self.device), "sum")
            self._validation_means[name] = (total / count).item()
            self.log(name, self._validation_means[name], sync_dist=True, prog_bar=True)

    # optimizer and checkpoints

    def configure_optimizers(self) -> Any:
        """The optimizer, with a schedule per step if there is one."""
        optimizer: Any = self._optimizer([p for p in self.model.parameters() if p.requires_grad])
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise DataError(
                f"optimizer: expected a function that returns a torch optimizer, got a {type(optimizer).__name__} "
                "from it. Try lambda parameters: torch.optim.SGD(parameters, lr=1e-3)."
            )
        if self._schedule is None:
            return optimizer
        scheduler: Any = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if plateau or not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
            raise DataError(
                "lr_schedule: expected a function that returns a torch scheduler which is stepped after every batch, "
                f"got a {type(scheduler).__name__} from it. Try lambda optimizer, steps: "
                "torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)."
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the objective's state, the history, the seed, and what `FGPVAE.load` needs."""
        if self._description is None:
            self._description = pack_model(self.model, warn=False)
        checkpoint[KEY] = {**self._description, "state_dict": model_state(self.model)}
        checkpoint["objective"] = self.objective.state_dict()
        checkpoint["history"] = list(self.history)
        checkpoint["seed"] = self._seed
        checkpoint["settings"] = dict(self._settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the objective's state, the history and the seed."""
        self.objective.load_state_dict(checkpoint["objective"])
        self.history = list(checkpoint["history"])
        self._seed = checkpoint["seed"]

    def differences(self, checkpoint: dict[str, Any], seed: int | None) -> list[str]:
        """What a checkpoint and this run do not agree on, in words; a seed of None agrees with any."""
        found = []
        described = pack_model(self.model, warn=False)
        if described["class"] != checkpoint[KEY]["class"]:
            found.append(f"model {described['class']}, there {checkpoint[KEY]['class']}")
        elif described["parts"] != checkpoint[KEY]["parts"]:
            mine, theirs = (json.loads(parts) for parts in (described["parts"], checkpoint[KEY]["parts"]))
            found += [f"{name} is another" for name in mine if mine[name] != theirs.get(name)]
        state, saved = self.state_dict(), checkpoint["state_dict"]
        names = [k for k in sorted(set(state) ^ set(saved)) if not k.endswith("_labels_digest")] or [
            k for k in state if k in saved and state[k].shape != saved[k].shape
        ]
        found += [f"{name} differs" for name in names]
        for name, value in self._settings.items():
            if name in checkpoint["settings"] and checkpoint["settings"][name] != value:  # older ones have fewer
                found.append(f"{name} {value}, there {checkpoint['settings'][name]}")
        if seed is not None and seed != checkpoint["seed"]:
            found.append(f"seed {seed}, there {checkpoint['seed']}")
        return found

    def _over_processes(self, value: Tensor, operation: Literal["mean", "sum"]) -> Tensor:
        reduced = self.trainer.strategy.reduce(value, reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced

    def _stopped(self, term: str, batch: GroupedBatch) -> str:
        groups = batch.group_index.tolist()
        return (
            f"training stopped: {term} is not finite in epoch {self.current_epoch}, in the batch of groups {groups} "
            "(positions in the training data). The last checkpoint is untouched. Try a smaller learning rate, "
            "gradient_clip=, or look at these groups' y (and x, "
            "where a network is told x): are they scaled?"
        )


def hash_seed(*numbers: int) -> int:
    """A seed for `torch.manual_seed` that differs for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, dtype=np.uint64)[0] >> np.uint64(1))


def _first_non_finite(terms: Terms) -> str:
    for name in ("kl_local", "kl_global"):  # which know nothing of the decoder, so they come first
        if not bool(torch.isfinite(getattr(terms, name)).all()):
            return f"{name} (of the encoder's mean and variance, and the kernels)"
    for name in ("kl_features", "log_supervision", "log_likelihood", "log_hyperprior"):
        value = getattr(terms, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            return name
    return "loss"
