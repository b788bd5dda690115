"""Callbacks of a training: its budget, its progress bar, its checkpoints and its table.

Where ``task`` has the type Any, it is a `SegmentationTask`.
"""

import io
import logging
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from attn3d.segmentation.io.writing import finished_file, write_table
from attn3d.segmentation.networks import not_finite
from attn3d.segmentation.runs import Run

logger = logging.getLogger("attn3d")
_VALIDATIONS = 5  # number of validations in a budget of minutes
_SHARE = 0.05  # largest fraction of the time for validations


class Minutes(Timer):
    """Ends a training after a number of minutes, including the last validation, and schedules the validations.

    The time before a resumption counts too. All ranks use the clock of the first rank.

    Args:
        minutes: training time, counted from the first step.
    """

    def __init__(self, minutes: float):
        super().__init__()
        self.total = 60 * minutes
        self.seconds = 0.0  # time until this step
        self.validation = 0.0  # seconds of the longest validation, so that `used` never falls
        self._last = 0.0  # time at the end of the last validation

    @property
    def used(self) -> float:
        """The fraction of the budget that is used, 0 to 1; the time of a last validation is reserved."""
        return min(1.0, self.seconds / max(self.total - self.validation, 1e-9))

    def _read(self, trainer: Trainer) -> None:
        self.seconds = trainer.strategy.broadcast(self.time_elapsed())

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Checks whether the training must stop, and whether this epoch ends with a validation."""
        self._read(trainer)
        trainer.should_stop = self.used >= 1
        due = self.seconds - self._last >= max(self.total / _VALIDATIONS, self.validation / _SHARE)
        trainer.check_val_every_n_epoch = 1 if due or trainer.should_stop else sys.maxsize

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Records the duration of the validation."""
        super().on_validation_end(trainer, task)
        self._read(trainer)
        self.validation = max(self.validation, trainer.strategy.broadcast(self.time_elapsed("validate")))
        self._last = self.seconds

    def state_dict(self) -> dict[str, Any]:
        """Returns the time so far."""
        return {**super().state_dict(), "validation": self.validation, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the time of the checkpoint."""
        super().load_state_dict(state)
        self.seconds, self.validation, self._last = self.time_elapsed(), state["validation"], state["last"]


def budget_used(trainer: Trainer) -> float:
    """The fraction of a training that is finished, 0 to 1, for a budget of epochs or minutes."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set dynamically by Lightning
    for clock in (callback for callback in callbacks if isinstance(callback, Minutes)):
        return clock.used
    return min(1.0, trainer.global_step / trainer.estimated_stepping_batches)


class BudgetBar(Callback):
    """One progress bar for the whole training, with the loss, steps per second and the remaining time."""

    def __init__(self) -> None:
        columns = ("training", BarColumn(), TaskProgressColumn(), "{task.fields[state]}", TimeRemainingColumn(), "left")
        self._progress = Progress(*columns)
        self._loss: float | None = None

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Shows the progress bar."""
        self._first = trainer.global_step
        self._bar = self._progress.add_task("training", total=1.0, state="")
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Updates the bar. The loss is averaged over about 20 steps, because it differs much between patches."""
        loss = float(outputs["loss"])
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = (trainer.global_step - self._first) / (self._progress.tasks[self._bar].elapsed or 1e-9)
        dice = f"  Dice {task.dice['dice']:.3f}" if task.dice else ""
        state = f"loss {self._loss:.3f}{dice}  step {trainer.global_step} ({rate:.1f}/s)"
        self._progress.update(self._bar, completed=budget_used(trainer), state=state)

    def on_train_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Stops the bar and leaves it on the screen."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, task: LightningModule, exception: BaseException) -> None:
        """Stops the bar."""
        self._progress.stop()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints completely or not at all. Lightning's own class uses the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces the checkpoint."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with finished_file(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())


class Checkpoint(Callback):
    """Saves a checkpoint for resuming after every epoch."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        """Replaces the checkpoint of the last epoch, unless weights are not finite."""
        if name := not_finite(task.network.state_dict()):
            task.stop(f"the weights {name!r} are not finite")
        trainer.save_checkpoint(self.path)  # all ranks call it, the first one writes


class Best(Callback):
    """Saves the weights of the validation with the highest mean Dice."""

    def __init__(self, run: Run):
        self.run, self.dice = run, -1.0

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        """Saves the weights if their Dice is the highest so far."""
        if task.dice["dice"] <= self.dice:
            return
        self.dice = task.dice["dice"]
        if trainer.is_global_zero:
            self.run.write_network(deepcopy(task.trained), best=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns the highest Dice so far."""
        return {"dice": self.dice}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the highest Dice of the checkpoint."""
        self.dice = state["dice"]


class Epochs(Callback):
    """Writes a row for each epoch to ``metrics.csv``. The checkpoint has the rows too, for resuming."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._dice: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Resets the clock and the losses."""
        self._start, self._losses, self._dice = time.perf_counter(), [], {}

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Records the loss of a step."""
        self._losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        """Records the Dice."""
        self._dice = task.dice

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        """Adds the row of the epoch and writes the file."""
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        measured = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(before + time.perf_counter() - self._start, 2),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": torch.stack(self._losses).mean().item(),
        }
        row = measured | self._dice
        self.rows.append(row)
        if trainer.is_global_zero:
            logger.info("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
            columns = [*measured, "dice", *(f"dice {name}" for name in task.names)]
            write_table(self.path, pd.DataFrame(self.rows, columns=columns))

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the rows of the checkpoint."""
        self.rows = state["rows"]
