"""nnU-Net on Task04 Hippocampus in the same time as `attn3d train --minutes`, on the cases of its run.

    pip install nnunetv2==2.8.1
    attn3d train --data Task04_Hippocampus --minutes 30 --out run
    python -m examples.benchmarks.task04_nnunet Task04_Hippocampus run --minutes 30 --out nnunet
    attn3d evaluate nnunet/predictions run/validation/references --labels run --out nnunet_scores

nnU-Net plans, preprocesses, augments and trains by itself (`3d_fullres`). Its learning rate falls to zero over the
given time rather than over its 1,000 epochs. Planning and preprocessing do not count.
"""

import json
import os
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
import typer
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

NAME, CONFIGURATION = "Dataset004_Hippocampus", "3d_fullres"


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Task04_Hippocampus.")],
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A run of attn3d train, whose split is used.")
    ],
    minutes: Annotated[float, typer.Option(min=0, help="Of training.")] = 30.0,
    out: Annotated[Path, typer.Option(help="A folder for everything.")] = Path("nnunet"),
) -> None:
    """Plan, preprocess, train and predict."""
    for folder in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{folder}"] = str(out.resolve() / folder)
    split = json.loads((run / "split.json").read_text())
    prepared = out / "preprocessed" / NAME
    if not (prepared / f"nnUNetPlans_{CONFIGURATION}").exists():
        write_raw(data, out / "raw" / NAME)
        extract_fingerprints([4], num_processes=2)
        plan_experiments([4])
        preprocess([4], configurations=[CONFIGURATION], num_processes=[2])
    (prepared / "splits_final.json").write_text(json.dumps([{"train": split["training"], "val": split["validation"]}]))

    plans, dataset = (json.loads((prepared / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    trainer = nnUNetTrainer({**plans, "continue_training": False}, CONFIGURATION, 0, dataset, torch.device("cpu"))
    train(trainer, minutes)

    scans = [[str(out / "raw" / NAME / "imagesTr" / f"{case}_0000.nii.gz")] for case in split["validation"]]
    (out / "predictions").mkdir(exist_ok=True)
    labels = [str(out / "predictions" / case) for case in split["validation"]]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"))
    predictor.manual_initialization(
        *(trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()]),
        *(dataset, "nnUNetTrainer", None),
    )
    start = time.perf_counter()
    predictor.predict_from_files(scans, labels, num_processes_preprocessing=2, num_processes_segmentation_export=2)
    print(f"{(time.perf_counter() - start) / len(scans):.2f} seconds a case to predict, without mirroring")


def write_raw(data: Path, folder: Path) -> None:
    """Writes the data in the layout of nnU-Net."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    labels = sorted((data / "labelsTr").glob("[!.]*.nii.gz"))
    for label in labels:
        shutil.copy(label, folder / "labelsTr" / label.name)
        shutil.copy(data / "imagesTr" / label.name, folder / "imagesTr" / label.name.replace(".nii", "_0000.nii"))
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": len(labels),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def train(trainer: nnUNetTrainer, minutes: float) -> None:
    """Trains for some time, with nnU-Net's polynomial decay over it."""
    trainer.on_train_start()
    trainer.network.train()
    start = time.monotonic()
    for step in count(1):
        used = (time.monotonic() - start) / (60 * minutes)
        if used >= 1:
            break
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - used) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        if step % 10 == 0:
            print(f"step {step}, {60 * minutes * used:.0f} seconds, loss {loss:.3f}", flush=True)
    trainer.set_deep_supervision_enabled(False)
    trainer.on_train_end()
    print(f"{step - 1} steps")


if __name__ == "__main__":
    typer.run(main)
