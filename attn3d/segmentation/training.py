"""The command ``train``: trains a network on a folder of scans and writes a run folder."""

import logging
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from attn3d.arguments import natural_number, spec_words
from attn3d.segmentation.advice import without_advice
from attn3d.segmentation.callbacks import Best, BudgetBar, Checkpoint, Epochs, Minutes, WholeCheckpoints
from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import Case, Dataset, Split, find_dataset, read_fold, split_cases
from attn3d.segmentation.errors import FileError, failing_as
from attn3d.segmentation.evaluation import evaluate
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.io.locks import LOCK, locked
from attn3d.segmentation.io.writing import write_json
from attn3d.segmentation.networks import uses_kernels, uses_strides
from attn3d.segmentation.patches import PatchData
from attn3d.segmentation.prediction import predict_held_out
from attn3d.segmentation.preprocessing import PreparedCase
from attn3d.segmentation.pretrained import start_from
from attn3d.segmentation.runs import PARTS, Run
from attn3d.segmentation.settings import Configuration, settings_from
from attn3d.segmentation.simulation import simulate
from attn3d.segmentation.task import SegmentationTask

logger = logging.getLogger("attn3d")
_PARTS = ("prepared", "validation", "validation/references")  # folders inside a run folder


class Interrupted(KeyboardInterrupt):
    """The training was stopped by Ctrl-C. It can be resumed."""


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
    """Trains a network with attention on a data set, and scores it on the held-out cases.

    Spacing, intensity windows, patch size, strides and kernels are derived from a fingerprint of the training cases.
    Each of them can also be set. The last weights and those of the best validation are saved. After every epoch a
    checkpoint is written. ``resume`` continues from it with the same patches and weights as without the interruption,
    except with a budget of ``minutes``. The training runs on the available GPUs, also on several
    (``torchrun``), or on the CPU.

    Args:
        data: the folder of a data set (see `find_dataset`); without it, a simulated cohort is written into ``out``.
            With ``resume``, the new folder of the data set, if it was moved; an unfinished run then keeps the new one.
        out: the run folder to write.
        config: a YAML or JSON file of settings.
        folds: a JSON file of splits, such as nnU-Net's ``splits_final.json``; by default the split is drawn.
        fold: index of the split in ``folds``.
        resume: whether to continue the training in ``out`` with its settings.
        devices: number of GPUs, or of processes on the CPU.
        workers: number of processes that load patches; by default 4 for a GPU and none for the CPU. They pass patches
            through shared memory, which is small in docker containers.
        quiet: whether to show no progress bars; a line for each epoch is written to the logger "attn3d".
        **settings: settings of `attn3d.segmentation.Settings`; they override those of ``config``.

    Returns:
        The finished run.

    Raises:
        FileError: when a file cannot be used.
        ValueError: when a setting is wrong, or ``out`` is in use by another process or has another training.
        Diverged: when the loss, the output or weights are not finite; the last good checkpoint is kept.
        Interrupted: when the training is stopped by Ctrl-C.
    """
    out = Path(out)
    if workers is not None:
        natural_number("workers", workers)
    if resume:
        given = [*settings, *(name for name, path in (("config", config), ("folds", folds)) if path is not None)]
        if given:
            raise ValueError(f"`resume` continues with the settings in `out`; leave out {', '.join(given)}")
        if not (out / PARTS[-1]).exists():
            raise FileError(out, "has no training to resume; start it again without --resume")
        run = Run.open(out, data)
    # Of several processes, only the first one locks the folder.
    with locked(out, _PARTS) if _is_first_process() else nullcontext():
        if resume:
            if run.finished:
                return run
            dataset = run.dataset()
            split = run.cases("training", dataset), run.cases("validation", dataset)
            if run.config.data != Run.open(out).config.data and _is_first_process():
                _check_moved(run, dataset, [*split[0], *split[1]])
                write_json(out / PARTS[-1], run.config.as_dict())
        else:
            run, dataset, split = _new_run(data, out, config, (folds, fold), settings, quiet)
        try:
            _train(run, dataset, split, devices, workers, quiet)
        except KeyboardInterrupt as stopped:
            again = f"continue with `attn3d train --resume --out {shlex.quote(str(run.folder))}`"
            raise Interrupted(f"{str(stopped) or 'stopped'}; {again}") from stopped
    return run


def _check_moved(run: Run, dataset: Dataset, cases: Sequence[Case]) -> None:
    """Raises a `FileError` if a case is not the one that was prepared from the former folder of the data set."""
    for case in cases:
        prepared = PreparedCase(case, run.folder / _PARTS[0])
        if prepared.path.exists():
            with failing_as(case.images[0]):
                prepared.write(dataset, run.config, same=True)


def _train(run: Run, dataset: Dataset, split: Split, devices: int | str, workers: int | None, quiet: bool) -> None:
    """Runs the remaining steps of a run: training, prediction of the held-out cases and scoring."""
    seed_everything(run.config.seed, verbose=False)
    net = run.new_network()
    if run.config.start_from is not None and not run.checkpoint.exists():
        start_from(net, run.config.start_from)
    task = SegmentationTask(net, run.config)
    if not run.weights.exists():
        patches = PatchData(run.config, dataset, *split, run.folder / "prepared", workers, quiet)
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
) -> tuple[Run, Dataset, Split]:
    """Reads the data, creates the run, and returns it with its data set and split.

    The folder may contain a simulated cohort, and files of a training that was killed before its run was complete.
    """
    settings = settings_from(config, given)
    first = _is_first_process()
    if first and (others := sorted({path.name for path in out.iterdir()} - {LOCK, "cohort", *PARTS[:-1]})):
        advice = "resume the training in it (--resume)" if PARTS[-1] in others else "move it"
        raise ValueError(f"`out` {out} already has {others[0]!r}; {advice}, or give a new folder")
    if data is None and first:
        dataset = simulate(out / "cohort", quiet=quiet)
    elif data is None:
        if not (out / "cohort" / "dataset.json").exists():
            raise ValueError("`data` is required with several processes; write a cohort with `attn3d simulate` first")
        dataset = find_dataset(out / "cohort", labelled=True)  # the first process has simulated it
    else:
        dataset = find_dataset(data, labelled=True)
    if not dataset.labels.names:
        raise FileError(dataset.folder, "has no names of labels; add a dataset.json")
    if first and not quiet:
        print(dataset)
    elif first:
        for problem in dataset.left_out:
            logger.warning("left out: %s", problem)
    if folds[0] is None:
        split = split_cases(dataset.cases, settings.held_out, settings.split_seed, dataset.validation)
    else:
        split = read_fold(folds[0], folds[1], dataset.cases)
    images = dataset.images_per_case()

    fingerprint = take_fingerprint(dataset, split[0], quiet=quiet or not first)
    configuration = configure(dataset, images, fingerprint, settings)
    run = Run(out, configuration)
    net = run.new_network()  # errors of the network or its weights are raised before anything is written
    started = None if configuration.start_from is None else start_from(net, configuration.start_from)
    if first:
        training, validation = ([case.name for case in part] for part in split)
        Run.create(out, configuration, asdict(fingerprint), {"training": training, "validation": validation})
        if not quiet:
            print(_summary(configuration))
            if started is not None:
                print(f"  {started}")
        elif started is not None:
            logger.info(started)
    return run, dataset, split


def _is_first_process() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]  # set dynamically by Lightning


def _summary(configuration: Configuration) -> str:
    """The settings that are derived from the data, in a few lines."""
    spacing = " x ".join(f"{one:.3g}" for one in configuration.spacing)
    patch = " x ".join(map(str, configuration.patch_size))
    shown = "mean 0, deviation 1"
    if configuration.windows is not None:
        shown = ", ".join(f"{level:g}/{width:g}" for level, width in configuration.windows) + " HU"
    attention = "no attention"
    if configuration.attention is not None:
        attention = f"{spec_words(configuration.attention)} at {', '.join(configuration.at)}"
    strides = f", strides {configuration.strides}" if uses_strides(configuration.network) else ""
    kernels = f", kernels {configuration.kernels}" if uses_kernels(configuration.network) else ""
    return (
        f"{configuration.network}, {attention}; {configuration.budget}\n"
        f"  spacing {spacing} mm, patches {patch}{strides}{kernels}\n"
        f"  intensities {shown}"
    )


def _devices(asked: int | str) -> int | str:
    """The number of processes on this machine. "auto" is one for each GPU, or one on the CPU."""
    started = os.environ.get("LOCAL_WORLD_SIZE")  # set by torchrun, which has started them
    if started:
        return int(started)
    return max(1, torch.cuda.device_count()) if asked == "auto" else asked


def _fit(run: Run, task: SegmentationTask, patches: PatchData, devices: int | str, quiet: bool) -> None:
    """Trains until the budget is used and saves the weights."""
    on_gpu = torch.cuda.is_available()
    last = run.checkpoint if run.checkpoint.exists() else None
    if last is not None:
        run.check_checkpoint(task)
    config, devices = run.config, _devices(devices)
    callbacks = [Epochs(run.folder), Best(run), Checkpoint(run.checkpoint)]
    if config.minutes is not None:
        callbacks.insert(0, Minutes(config.minutes))
    if not quiet and _is_first_process():
        callbacks.append(BudgetBar())
    # Lightning advises more workers, but passing a patch between processes is slower than reading it.
    advice = ("does not have many workers", "smaller than the logging interval", "LeafSpec")
    with without_advice("lightning.pytorch", *advice):
        trainer = Trainer(
            max_epochs=-1 if config.epochs is None else config.epochs,
            devices=devices,
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
            strategy="auto" if devices == 1 else "ddp",
            precision="bf16-mixed" if on_gpu else "32-true",
            gradient_clip_val=config.gradient_clip or None,
            callbacks=callbacks,
            logger=TensorBoardLogger(run.folder, "tensorboard", "") if find_spec("tensorboard") else False,
            plugins=[WholeCheckpoints()],
            enable_checkpointing=False,  # `Checkpoint` saves the checkpoint
            check_val_every_n_epoch=config.validate_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,  # `BudgetBar` spans the epochs
            enable_model_summary=False,
        )
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(task, patches, ckpt_path=last, weights_only=True)
        except SystemExit:  # raised by Lightning after Ctrl-C; it also changes the signal handler
            signal.signal(signal.SIGINT, on_interrupt)
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise KeyboardInterrupt(f"stopped in epoch {trainer.current_epoch + 1}")
    if trainer.is_global_zero:
        run.write_network(task.trained)
    trainer.strategy.barrier()
