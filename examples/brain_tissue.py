"""Segment the tissues of a brain MRI with a MONAI network that has attention inserted.

    python examples/brain_tissue.py
    python examples/brain_tissue.py --attention none --out plain
    python examples/brain_tissue.py --data my_t1.nii.gz my_tissues.nii.gz

A real T1 MRI, the MNI152 template, is written to NIfTI files and read like a scan of your own. The network is trained
on the posterior 60 % of the brain and tested on the anterior 40 %, for the original scan and for a degraded copy. The
baseline is a Gaussian mixture of intensities that is given the brain mask, so the labels of the network are also scored
within this mask. The labels of the template come from maps made with it, so the scores show that the pipeline works.
They say nothing about patients.
"""

import csv
import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torchio as tio
import typer
from nibabel import Nifti1Image, io_orientation
from nibabel.affines import apply_affine
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.mixture import GaussianMixture

import attn3d
from attn3d import plotting, segmentation
from attn3d.segmentation import TISSUES, finished_file

PATCH_SIZE = (48, 48, 48)
BATCH_SIZE = 2
HELD_OUT = 0.4
TOLERANCE = 2.0  # mm, for the surface Dice


def main(
    attention: Annotated[str, typer.Option(help=f"One of {', '.join(attn3d.list_attention())}; or none.")] = "eca",
    at: Annotated[str, typer.Option(help="Kinds of site, separated by commas: encoder, decoder, ..")] = "encoder",
    network: Annotated[str, typer.Option(help=f"One of {', '.join(segmentation.NETWORKS)}.")] = "ResidualUNet",
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Training time (default: 150 if no limit is given).")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    resolution: Annotated[int, typer.Option(min=1, help="Voxel size of the working grid in mm.")] = 2,
    seed: Annotated[int, typer.Option(help="The same seed and --iterations give the same weights.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("brain_tissue"),
    data: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="IMAGE LABEL", help="Your own scan and its label: 0 background, 1 CSF, 2 grey, 3 white matter."
        ),
    ] = None,
) -> None:
    """Train a network to segment CSF, grey and white matter, and test it on the held-out part of the brain."""
    start, console = time.perf_counter(), Console()
    warnings.simplefilter("ignore", FutureWarning)  # raised by libraries about other libraries
    spec = {"network": network, "attention": attention, "at": [kind.strip() for kind in at.split(",")]}

    with one_line_errors():
        named = None if attention == "none" else attention
        segmentation.create_network(network, 1, 4, attention=named, at=spec["at"])  # raises before anything is written
        image_path, label_path = data or segmentation.write_mni152(out, resolution)
        image = segmentation.read_image(image_path)
        label = segmentation.read_segmentation(label_path, image, values=[0, *TISSUES])
        if not np.asarray(label.dataobj).any():
            raise segmentation.FileError(label_path, "the label is empty; give one with voxels that are not 0")
        posterior, anterior = hold_out_anterior(label, HELD_OUT)
        write_parts(out / "data", image, label, {"posterior": posterior, "anterior": anterior})
        (out / "folds.json").write_text(json.dumps([{"train": ["posterior"], "val": ["anterior"]}]))
        segmentation.write_image(out / "degraded.nii.gz", np.asarray(degrade(image).dataobj), image.affine, "mni")

        budget = {"minutes": (seconds or 150.0) / 60, "patches_per_case": 96}
        if iterations is not None:
            budget = {"epochs": 1, "patches_per_case": BATCH_SIZE * iterations}
        run = segmentation.train(
            out / "data",
            out=out / "run",
            folds=out / "folds.json",
            **spec,
            **budget,
            spacing=(float(resolution),) * 3,
            patch_size=PATCH_SIZE,
            strides=((2, 2, 2),) * 3,
            batch_size=BATCH_SIZE,
            around_labels=0.0,  # tissue is everywhere, and patches of air are needed too
            warped=0.0,  # the held-out part is of the same head, and CSF is too thin for rotated labels
            brightness=0.2,  # for the degraded scan
            learning_rate=6e-3,
            validate_every=1,
            seed=seed,
        )
        scans = {"clean": image_path, "degraded": out / "degraded.nii.gz"}
        for scan, path in scans.items():
            segmentation.predict(
                run.folder, path, out / "found" / scan, format="nii.gz", mirror=(0,), keep_largest=True
            )

    reference = np.asarray(label.dataobj)
    scores, found = {}, {}
    with console.status("scoring"):
        for scan, path in scans.items():
            (segmented,) = (out / "found" / scan).glob("*.nii.gz")
            found[scan] = np.asarray(segmentation.read_segmentation(segmented).dataobj)
            methods = {
                "network": found[scan],
                "network, masked": np.where(reference > 0, found[scan], 0),
                "mixture, masked": gaussian_mixture(segmentation.read_image(path), label, posterior),
            }
            scores[scan] = {
                method: segmentation.score(labels[anterior], reference[anterior], image.affine, TISSUES, TOLERANCE)
                for method, labels in methods.items()
            }

        held_out = np.zeros(image.shape, bool)
        held_out[anterior] = True
        places = apply_affine(image.affine, np.argwhere(held_out & (reference > 0)))
        figure = plotting.plot_segmentation(
            np.asarray(image.dataobj),
            {"reference": reference, "network": found["clean"]},
            TISSUES,
            image.affine,
            center=np.percentile(places, 60, axis=0),  # a little off the midline
            outlines={"held out from training": held_out},
        )
    steps = int(list(csv.DictReader((run.folder / "metrics.csv").open()))[-1]["step"])
    results = {
        "settings": spec | {"seed": seed, "resolution_mm": resolution, "data": [str(image_path), str(label_path)]},
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "surface_tolerance_mm": TOLERANCE,
        "held_out": scores,
    }
    with one_line_errors():
        with finished_file(out / "metrics.json") as path:
            path.write_text(json.dumps(results, indent=2) + "\n")
        with finished_file(out / "overlay.png") as path:
            figure.savefig(path, dpi=120)
        segmentation.write_label(out / "segmentation.nii.gz", found["clean"], like=image)

    console.print(table(scores))
    console.print(f"{steps} steps, {time.perf_counter() - start:.0f} s in all; results in {out}/")


def write_parts(folder: Path, image: Nifti1Image, label: Nifti1Image, parts: dict[str, tuple[slice, ...]]) -> None:
    """Writes parts of a scan as the cases of a data set in nnU-Net's layout."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        scan = image.slicer[part]
        segmentation.write_image(
            folder / f"imagesTr/{name}_0000.nii.gz", scan.get_fdata(dtype="f4"), scan.affine, "mni"
        )
        labels = np.asarray(label.slicer[part].dataobj)
        segmentation.write_image(folder / f"labelsTr/{name}.nii.gz", labels, scan.affine, "mni")
    description = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0} | {tissue: value for value, tissue in TISSUES.items()},
        "numTraining": len(parts),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def table(scores: dict) -> Table:
    """The scores of the held-out part, with a row for each scan, method and tissue."""
    title = f"Held-out anterior {HELD_OUT:.0%} of the brain"
    rows = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("Scan", "Method", "Tissue"):
        rows.add_column(heading, no_wrap=True)
    for heading in ("Dice", "HD95\nmm", f"Surface\nDice {TOLERANCE:g} mm", "Found\nml", "True\nml"):
        rows.add_column(heading, justify="right", no_wrap=True)
    for scan, methods in scores.items():
        for method, tissues in methods.items():
            for index, (tissue, score) in enumerate(tissues.items()):
                numbers = [f"{score['dice']:.3f}", f"{score['hd95_mm']:.1f}", f"{score['surface_dice']:.3f}"]
                volumes = [f"{score['volume_ml']:.0f}", f"{score['reference_ml']:.0f}"]
                rows.add_row(*(("", "") if index else (scan, method)), tissue, *numbers, *volumes)
            rows.add_section()
    return rows


def hold_out_anterior(label: Nifti1Image, fraction: float) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Divides the labelled extent along the anterior-posterior axis, to train on one part and test on the other.

    Args:
        label: from `read_segmentation`, in any orientation.
        fraction: the fraction of the labelled extent that is in the anterior part.

    Returns:
        Slices of the posterior and of the anterior part, for arrays and for ``image.slicer``.

    Raises:
        ValueError: when one part would have no label.
    """
    axes, directions = io_orientation(label.affine).T
    axis = int(np.flatnonzero(axes == 1)[0])
    forwards = directions[axis] > 0  # whether the index increases towards the front
    labelled = np.flatnonzero(np.asarray(label.dataobj).any(axis=tuple({0, 1, 2} - {axis})))
    extent = labelled[-1] + 1 - labelled[0]
    cut = int(labelled[0] + round((1 - fraction if forwards else fraction) * extent))
    if not labelled[0] < cut <= labelled[-1]:
        raise ValueError(f"`label` must span more voxels from back to front to be cut in two, got {extent}")
    before, after = [slice(None)] * 3, [slice(None)] * 3
    before[axis], after[axis] = slice(None, cut), slice(cut, None)
    return (tuple(before), tuple(after)) if forwards else (tuple(after), tuple(before))


def degrade(image: Nifti1Image) -> Nifti1Image:
    """Simulates a worse scanner by a bias field and noise, which are the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = tio.RandomBiasField(coefficients=0.3)(torch.from_numpy(image.get_fdata(dtype=np.float32))[None])
        data = tio.RandomNoise(std=(0.3, 0.3))(segmentation.normalise(data))[0]
    return Nifti1Image(data.numpy(), image.affine, image.header)


def gaussian_mixture(image: Nifti1Image, label: Nifti1Image, training_part: tuple[slice, ...]) -> np.ndarray:
    """Segments a scan by a mixture of Gaussians with the same variance, one component for each label.

    Unlike the network, it is given the voxels that have a label. The components start at the mean intensities of the
    labels in the training part. The fit does not use the labels.

    Args:
        image: from `read_image`.
        label: its reference, from `read_segmentation`.
        training_part: the part of the scan whose labels are used for the start.

    Returns:
        uint8 labels, 0 where ``label`` is 0.
    """
    intensities, reference = np.asarray(image.dataobj), np.asarray(label.dataobj)
    known = reference[training_part]
    values = np.unique(known[known > 0])
    starts = [intensities[training_part][known == value].mean(keepdims=True) for value in values]
    voxels = intensities[reference > 0][:, None].astype(np.float64)
    mixture = GaussianMixture(len(values), covariance_type="tied", means_init=starts, random_state=0)
    mixture.fit(voxels[:: 1 + len(voxels) // 200_000])
    labels = np.zeros(reference.shape, np.uint8)
    labels[reference > 0] = values[mixture.predict(voxels)]
    return labels


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints errors that the user can correct in one line, and exits with code 2."""
    try:
        yield
    except ValueError as error:
        problem = " ".join(str(error).split())
    except OSError as error:  # of writing; errors of reading are `FileError`, a ValueError
        problem = f"{error.filename}: {error.strerror}; choose another folder with --out"
    else:
        return
    print("brain_tissue:", problem, file=sys.stderr)
    raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
