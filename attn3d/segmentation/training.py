"""The command ``train``: from a folder of scans to a run folder."""

import io
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from monai.losses import DiceCELoss

from attn3d.segmentation.configuration import configure, settings_from
from attn3d.segmentation.datasets import Case, Dataset, find_dataset, read_fold, split_cases
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.evaluation import evaluate
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.fitting import QUIET, BudgetBar, SegmentationTask, without_advice
from attn3d.segmentation.locks import LOCK, locked
from attn3d.segmentation.networks import not_finite
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.prediction import predict_held_out
from attn3d.segmentation.runs import PARTS, Run
from attn3d.segmentation.simulation import simulate
from attn3d.segmentation.writing import finished_file, write_table

logger = logging.getLogger("attn3d")
_PARTS = ("prepared", "validation", "validation/references")  # of a run folder


class Interrupted(KeyboardInterrupt):
    """The training was stopped before its end; it can be resumed."""


def train(
    data: Path | str | None = None,
    *,
    out: Path | str,
    config: Path | str | None = None,
    folds: Path | str | None = None,
    fold: int = 0,
    resume: bool = False,
    devices: int | str = "auto",
    workers: int | None = None,
    quiet: bool = False,
    network: str | None = None,
    attention: Any = None,
    at: Sequence[str] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    **settings: Any,
) -> Run:
    """Trains a network with attention on a data set, and scores it on the cases that were held out.

    Spacing, intensity windows, patch size, strides and kernels follow from a fingerprint of the training cases; every
    one of them can be set. The weights of the last epoch are kept. After every epoch a checkpoint is written, from
    which ``resume`` goes on as if nothing had happened: same patches, same weights. It runs on the GPUs there are, by
    Lightning also on several (``torchrun``), and otherwise on the CPU.

    Args:
        data: the folder of a data set (see `find_dataset`); without one, a simulated cohort is written into ``out``.
            To resume, where it is now, if it was moved.
        out: the run folder to make.
        config: a YAML or JSON file of settings.
        folds: a JSON file of given splits, as nnU-Net's ``splits_final.json``; without one the split is drawn.
        fold: which of them.
        resume: go on with the training in ``out``; all settings are those that it has.
        devices: how many GPUs, or processes on the CPU.
        workers: processes that load patches; by default 4 for a GPU, and none on the CPU. They hand patches over in
            shared memory, of which docker gives little.
        quiet: no progress bars; a line for each epoch goes to the logger "attn3d".
        network: a key of `NETWORKS`.
        attention: a spec for `attn3d.insert_attention`, or "none".
        at: kinds of site.
        epochs: passes over the training cases.
        seed: of weights and patches.
        **settings: any other key of `attn3d.segmentation.configuration.DEFAULTS`.

    Returns:
        The finished run.

    Raises:
        FileError: when a file cannot be used.
        ValueError: when a setting is wrong, or ``out`` is in use, by another process or by another training.
        Diverged: when loss, output or weights are not finite any more; the last good checkpoint is kept.
        Interrupted: when it was stopped by Ctrl-C.
    """
    out = Path(out)
    if workers is not None and workers < 0:
        raise ValueError(f"`workers` must be 0 or more, got {workers}")
    if resume:
        run = Run.open(out, data)
    # Of several processes the first one owns the folder for all.
    with locked(out, _PARTS) if rank_zero_only.rank == 0 else nullcontext() as abandoned:
        if resume:
            if run.finished:
                return run
            dataset = run.dataset()
            training, validation = run.cases("training", dataset), run.cases("validation", dataset)
        else:
            given = {"network": network, "attention": attention, "at": at, "epochs": epochs, "seed": seed, **settings}
            run, dataset, training, validation = _new_run(
                data, out, config, (folds, fold), given, quiet, PARTS[:-1] if abandoned else ()
            )
        try:
            _train(run, dataset, training, validation, devices, workers, quiet)
        except KeyboardInterrupt as stopped:
            raise Interrupted(str(stopped) or f"stopped; go on with --resume --out {run.folder}") from stopped
    return run


def _train(
    run: Run,
    dataset: Dataset,
    training: list[Case],
    validation: list[Case],
    devices: int | str,
    workers: int | None,
    quiet: bool,
) -> None:
    """Does what is left of a run to be done."""
    seed_everything(run.config.seed, verbose=False)
    task = SegmentationTask(
        run.new_network(),
        run.config.learning_rate,
        run.config.patch_size,
        [*run.config.labels.values()],
        # Of the batch as one volume: a label that a patch lacks would else cost 1 for a single voxel.
        DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True),
    )
    if not run.weights.exists():
        patches = PatchData(run.config, dataset, training, validation, run.folder / "prepared", workers, quiet)
        _fit(run, task, patches, devices, quiet)
    if rank_zero_only.rank == 0:
        predict_held_out(run, dataset, quiet=quiet)
        folder = run.scores.parent
        evaluate(folder, folder / "references", folder, labels=run.config.labels, overwrite=True, quiet=quiet)


def _new_run(
    data: Path | str | None,
    out: Path,
    config: Path | str | None,
    folds: tuple[Path | str | None, int],
    given: Mapping[str, Any],
    quiet: bool,
    left: Sequence[str],
) -> tuple[Run, Dataset, list[Case], list[Case]]:
    """Looks at the data and settles how it is trained on: the run, and the cases to train and to validate on.

    The folder may hold a cohort that was simulated into it, and what is ``left`` of a training that was killed before
    it was one.
    """
    settings = settings_from(None if config is None else Path(config), given)
    first = rank_zero_only.rank == 0
    if first and {path.name for path in out.iterdir()} - {LOCK, "cohort", *left}:
        raise ValueError(f"`out` {out} is in use; give a new folder, or resume what is in it (--resume)")
    if data is None:
        if not first:
            raise ValueError("`data` must be given to several processes; write a cohort with `attn3d simulate` first")
        dataset = simulate(out / "cohort", quiet=quiet)
    else:
        dataset = find_dataset(data, labelled=True)
    if not dataset.labels:
        raise FileError(dataset.folder, "says of no label what it means; add a dataset.json")
    if first and not quiet:
        print(dataset)
    elif first:
        for problem in dataset.problems:
            logger.warning("left out: %s", problem)
    if folds[0] is None:
        training, validation = split_cases(
            dataset.cases, settings["held_out"], settings["split_seed"], dataset.validation
        )
    else:
        training, validation = read_fold(folds[0], folds[1], dataset.cases)
    images = len(dataset.cases[0].images)
    if odd := [case for case in dataset.cases if len(case.images) != images]:
        raise FileError(odd[0].images[0], f"its case has {len(odd[0].images)} images, others have {images}")

    fingerprint = take_fingerprint(dataset, training, quiet=quiet or not first)
    configuration = configure(dataset, images, fingerprint, settings)
    run = Run(out, configuration)
    run.new_network()  # what cannot be built is said before anything is written
    if first:
        split = {"training": [case.name for case in training], "validation": [case.name for case in validation]}
        Run.create(out, configuration, fingerprint.as_dict(), split)
        if not quiet:
            print(_summary(configuration))
    return run, dataset, training, validation


def _summary(configuration: Any) -> str:
    """What follows from the data, in a few lines."""
    spacing = " x ".join(f"{one:.3g}" for one in configuration.spacing)
    patch = " x ".join(map(str, configuration.patch_size))
    shown = "mean 0, deviation 1"
    if configuration.windows is not None:
        shown = ", ".join(f"{level:g}/{width:g}" for level, width in configuration.windows) + " HU"
    attention = "no attention"
    if configuration.attention is not None:
        attention = f"{configuration.attention} at {', '.join(configuration.at)}"
    return (
        f"{configuration.network}, {attention}; {configuration.epochs} epochs\n"
        f"  spacing {spacing} mm, patches {patch}, strides {configuration.strides}, kernels {configuration.kernels}\n"
        f"  intensities {shown}"
    )


def _fit(run: Run, task: SegmentationTask, patches: PatchData, devices: int | str, quiet: bool) -> None:
    """Trains to the last epoch and keeps the weights."""
    on_gpu = torch.cuda.is_available()
    last = run.checkpoint if run.checkpoint.exists() else None
    if last is not None:
        run.check_checkpoint(task)
    started = os.environ.get("LOCAL_WORLD_SIZE")  # by torchrun, so many processes on this machine
    devices = int(started) if started else devices if devices != "auto" or on_gpu else 1
    several = devices != 1 and (devices != "auto" or torch.cuda.device_count() > 1)
    with without_advice():
        trainer = Trainer(
            max_epochs=run.config.epochs,
            devices=devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
            strategy="ddp" if several else "auto",
            precision="bf16-mixed" if on_gpu else "32-true",
            callbacks=[Epochs(run.folder), Checkpoint(run.checkpoint), *([] if quiet else [BudgetBar()])],
            logger=TensorBoardLogger(run.folder, "tensorboard", "") if find_spec("tensorboard") else False,
            plugins=[WholeCheckpoints()],
            enable_checkpointing=False,  # `Checkpoint` keeps the one that is needed
            check_val_every_n_epoch=run.config.validate_every,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            **QUIET,
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(task, patches, ckpt_path=last, weights_only=True)
        except SystemExit:  # Lightning's answer to Ctrl-C, with which it stops listening to it
            signal.signal(signal.SIGINT, on_interrupt)
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise Interrupted(f"stopped in epoch {trainer.current_epoch + 1}; go on with --resume --out {run.folder}")
    if trainer.is_global_zero:
        run.write_network(task.network)
    trainer.strategy.barrier()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all; Lightning's own way leads over the folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replaces what is there."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with finished_file(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())


class Checkpoint(Callback):
    """All that a training needs to go on, after every epoch; whole or not at all."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Replaces the checkpoint of the epoch before, unless the weights are of no use."""
        if name := not_finite(task.network.state_dict()):
            task.stop(f"the weights {name!r} are not finite")
        trainer.save_checkpoint(self.path)  # all ranks take part, the first one writes

    def on_load_checkpoint(self, trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that are of no use."""
        if name := not_finite(checkpoint["state_dict"]):
            raise FileError(self.path, f"its weights {name!r} are not finite; remove it to train from the start")


class Epochs(Callback):
    """A row for each epoch in ``metrics.csv``; kept in the checkpoint, so that a resumed training goes on with it."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_start(self, trainer: Trainer, task: LightningModule) -> None:
        """Starts the clock and the mean of the loss."""
        self._start, self._losses = time.perf_counter(), []

    def on_train_batch_end(
        self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        """Notes the loss of a step."""
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        """Writes the file anew with the epoch's row."""
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "seconds": round(before + time.perf_counter() - self._start, 2),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "loss": torch.stack(self._losses).mean().item(),
            **(task.dice if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0 else {}),
        }
        self.rows.append(row)
        logger.info("  ".join(f"{name} {value:.5g}" for name, value in row.items()))
        if trainer.is_global_zero:
            columns = list(row)[:5] + ["dice", *(f"dice {name}" for name in task.names)]
            write_table(self.path, [columns, *([one.get(name) for name in columns] for one in self.rows)])

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The rows of the checkpoint."""
        self.rows = state["rows"]
