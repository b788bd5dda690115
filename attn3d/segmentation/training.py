"""The command ``train``: from a folder of scans to a run folder."""

import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from attn3d.segmentation.callbacks import Best, BudgetBar, Checkpoint, Epochs, Minutes, WholeCheckpoints
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import Case, Dataset, find_dataset, read_fold, split_cases
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.evaluation import evaluate
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.locks import LOCK, locked
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.prediction import predict_held_out
from attn3d.segmentation.pretrained import start_from
from attn3d.segmentation.runs import PARTS, Run
from attn3d.segmentation.settings import Configuration, settings_from
from attn3d.segmentation.simulation import simulate
from attn3d.segmentation.task import SegmentationTask

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
    **settings: Any,
) -> Run:
    """Trains a network with attention on a data set, and scores it on the cases that were held out.

    Spacing, intensity windows, patch size, strides and kernels follow from a fingerprint of the training cases; every
    one of them can be set. The last weights are kept, and beside them those of the best validation. After every epoch
    a checkpoint is written, from which ``resume`` goes on as if nothing had happened: same patches, same weights,
    unless a clock ends the training (``minutes``). It runs on the GPUs there are, by Lightning also on several
    (``torchrun``), and otherwise on the CPU.

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
        **settings: of `attn3d.segmentation.Settings`; they win over those of ``config``.

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
    with locked(out, _PARTS) if _is_first_process() else nullcontext():
        if resume:
            if run.finished:
                return run
            dataset = run.dataset()
            training, validation = run.cases("training", dataset), run.cases("validation", dataset)
        else:
            run, dataset, training, validation = _new_run(data, out, config, (folds, fold), settings, quiet)
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
    net = run.new_network()
    if run.config.start_from is not None and not run.checkpoint.exists():
        start_from(net, run.config.start_from)
    task = SegmentationTask(net, run.config)
    if not run.weights.exists():
        patches = PatchData(run.config, dataset, training, validation, run.folder / "prepared", workers, quiet)
        _fit(run, task, patches, devices, quiet)
    if _is_first_process():
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
) -> tuple[Run, Dataset, list[Case], list[Case]]:
    """Looks at the data and settles how it is trained on: the run, and the cases to train and to validate on.

    The folder may hold a cohort that was simulated into it, and what a training wrote that was killed before it was a
    run.
    """
    settings = settings_from(None if config is None else Path(config), given)
    first = _is_first_process()
    if first and {path.name for path in out.iterdir()} - {LOCK, "cohort", *PARTS[:-1]}:
        raise ValueError(f"`out` {out} is in use; give a new folder, or resume what is in it (--resume)")
    if data is None:
        if not first:
            raise ValueError("`data` must be given to several processes; write a cohort with `attn3d simulate` first")
        dataset = simulate(out / "cohort", quiet=quiet)
    else:
        dataset = find_dataset(data, labelled=True)
    if not dataset.labels.names:
        raise FileError(dataset.folder, "says of no label what it means; add a dataset.json")
    if first and not quiet:
        print(dataset)
    elif first:
        for problem in dataset.problems:
            logger.warning("left out: %s", problem)
    if folds[0] is None:
        training, validation = split_cases(dataset.cases, settings.held_out, settings.split_seed, dataset.validation)
    else:
        training, validation = read_fold(folds[0], folds[1], dataset.cases)
    images = len(dataset.cases[0].images)
    if odd := [case for case in dataset.cases if len(case.images) != images]:
        raise FileError(odd[0].images[0], f"its case has {len(odd[0].images)} images, others have {images}")

    fingerprint = take_fingerprint(dataset, training, quiet=quiet or not first)
    configuration = configure(dataset, images, fingerprint, settings)
    run = Run(out, configuration)
    net = run.new_network()  # what cannot be built, or started from, is said before anything is written
    if configuration.start_from is not None:
        start_from(net, configuration.start_from)
    if first:
        split = {"training": [case.name for case in training], "validation": [case.name for case in validation]}
        Run.create(out, configuration, asdict(fingerprint), split)
        if not quiet:
            print(_summary(configuration))
    return run, dataset, training, validation


def _is_first_process() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]  # which Lightning sets from elsewhere


def _summary(configuration: Configuration) -> str:
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
        f"{configuration.network}, {attention}; {configuration.budget}\n"
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
    config = run.config
    callbacks = [Epochs(run.folder), Best(run), Checkpoint(run.checkpoint)]
    if config.minutes is not None:
        callbacks.insert(0, Minutes(config.minutes))
    if not quiet:
        callbacks.append(BudgetBar())
    with _without_advice():
        trainer = Trainer(
            max_epochs=-1 if config.epochs is None else config.epochs,
            devices=devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
            strategy="ddp" if several else "auto",
            precision="bf16-mixed" if on_gpu else "32-true",
            gradient_clip_val=config.gradient_clip or None,
            callbacks=callbacks,
            logger=TensorBoardLogger(run.folder, "tensorboard", "") if find_spec("tensorboard") else False,
            plugins=[WholeCheckpoints()],
            enable_checkpointing=False,  # `Checkpoint` keeps the one that is needed
            check_val_every_n_epoch=config.validate_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,  # `BudgetBar` spans the epochs
            enable_model_summary=False,
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
        run.write_network(task.trained)
    trainer.strategy.barrier()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without what Lightning advises about loaders: reading a patch takes less than handing it over."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for advice in ("does not have many workers", "smaller than the logging interval", "LeafSpec"):
                warnings.filterwarnings("ignore", message=f".*{advice}.*")
            yield
    finally:
        log.setLevel(level)
