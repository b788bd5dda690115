"""The command ``export``: writes a trained network for use without this application."""

import io
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import monai
import numpy as np
import torch
from torch import nn

import attn3d
from attn3d.segmentation import grid, portable
from attn3d.segmentation.advice import without_advice
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.io.writing import finished_folder, write_json, write_text
from attn3d.segmentation.networks import network_arguments, shape_multiple
from attn3d.segmentation.runs import Run
from attn3d.segmentation.settings import Configuration

_FORMATS = ("bundle", "onnx")
_MOST = 4096  # largest batch, and largest number of the network's steps along an axis
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def export(run: Path | str, out: Path | str, *, format: Literal["bundle", "onnx"] = "bundle") -> Path:
    """Writes a trained network to a folder for use in other programs.

    - ``"bundle"``: a MONAI Bundle. In its folder, ``python -m monai.bundle run --config_file configs/inference.json``
      segments the scans in ``data/``. It needs ``attn3d[bundle]`` and nibabel.
    - ``"onnx"``: ``model.onnx`` with dynamic batch and size, and ``metadata.json`` with the parameters of the
      preprocessing and postprocessing. It does not need attn3d.

    Both have ``scripts/`` with the preprocessing of the training.

    Args:
        run: the folder of a finished training.
        out: the folder to write; it must be new or empty.
        format: ``"bundle"`` or ``"onnx"``.

    Returns:
        The absolute path of ``out``.

    Raises:
        FileError: when the run cannot be used, or ``out`` is a file or a folder that is not empty.
        ValueError: when ``format`` is unknown, or needs a library that is not installed.
    """
    if format not in _FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(_FORMATS)}, got {format!r}")
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileError(out, "already exists; choose a new or empty folder")
    opened = Run.open(run)
    net, config = opened.network(), opened.config
    write = _write_onnx if format == "onnx" else _write_bundle
    with finished_folder(out) as unfinished:
        (unfinished / "scripts").mkdir()
        for module in (grid, portable):
            shutil.copy(str(module.__file__), unfinished / "scripts")
        write_text(unfinished / "scripts" / "__init__.py", '"""Preprocessing and postprocessing of the network."""\n')
        write(net, config, unfinished)
    return out


def _write_onnx(net: nn.Module, config: Configuration, out: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"`format` onnx needs {error.name}; python -m pip install 'attn3d[onnx]'") from error
    multiple = shape_multiple(config.network, config.strides)
    # Sizes must be multiples of the network's steps.
    sides = {2 + axis: steps * torch.export.Dim(f"side_{axis}", max=_MOST) for axis, steps in enumerate(multiple)}
    # At least two steps along each axis and a batch of two, since a size of 1 in the example would become fixed.
    size = [max(side, 2 * steps) for side, steps in zip(config.patch_size, multiple, strict=True)]
    example = torch.zeros(2, config.in_channels, *size)
    with without_advice("torch.onnx", "LeafSpec", level=logging.ERROR):  # it names absent libraries that are not used
        torch.onnx.export(
            net,
            (example,),
            str(out / "model.onnx"),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", max=_MOST), **sides},),
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    write_json(out / "metadata.json", _facts(config))


def _facts(config: Configuration) -> dict[str, Any]:
    """The parameters of preprocessing and postprocessing, with the names of `portable`."""
    facts = config.model_dump(include={"images", "modality", "spacing", "windows", "patch_size", "simulated"})
    labels, multiple = config.labels, shape_multiple(config.network, config.strides)
    facts |= {"multiple": multiple, "values": labels.written, "regions": labels.regions, "labels": labels.as_dict()}
    return facts


def _write_bundle(net: nn.Module, config: Configuration, out: Path) -> None:
    for folder in ("configs", "data", "models"):
        (out / folder).mkdir()
    content = io.BytesIO()  # on a full disk, torch.save raises an error that does not name the file
    torch.save(net.state_dict(), content)
    (out / "models" / "model.pt").write_bytes(content.getbuffer())
    write_json(out / "configs" / "inference.json", _inference(config))
    write_json(out / "configs" / "metadata.json", _metadata(config))


def _network(config: Configuration) -> dict[str, Any]:
    """The network as a component of a MONAI configuration."""
    kind, arguments = network_arguments(config.network, **config.network_shape)
    net = {"_target_": kind, **arguments}
    if config.attention is None:
        return net
    return {"_target_": "attn3d.insert_attention", "net": net, "spec": config.attention, "at": config.at}


def _inference(config: Configuration) -> dict[str, Any]:
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "images": {"_target_": "scripts.portable.find_images", "folder": "@dataset_dir", "images": config.images},
        "network_def": _network(config),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {
                    "_target_": "scripts.portable.Prepared",
                    "keys": "image",
                    "spacing": config.spacing,
                    "windows": config.windows,
                },
            ],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "scripts.portable.ToScan",
                    "keys": "pred",
                    "image": "image",
                    "values": config.labels.written,
                    "regions": config.labels.regions,
                },
                {"_target_": "scripts.portable.SaveLabels", "keys": "pred", "folder": "@output_dir"},
            ],
        },
        "inferer": {
            "_target_": "scripts.portable.WindowInferer",
            "patch_size": config.patch_size,
            "multiple": shape_multiple(config.network, config.strides),
        },
        "dataset": {"_target_": "Dataset", "data": "@images", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": [
                {
                    "_target_": "CheckpointLoader",
                    "load_path": "$@bundle_root + '/models/model.pt'",
                    "load_dict": {"model": "@network"},
                    "map_location": "@device",
                }
            ],
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(config: Configuration) -> dict[str, Any]:
    """The metadata that MONAI's schema requires."""
    labels = ", ".join(config.labels.names)
    patch = {
        "type": "image",
        "spatial_shape": config.patch_size,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    seen = {str(index): f"channel {index}" for index in range(config.in_channels)}
    return {
        "schema": _SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by attn3d"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            "attn3d": attn3d.__version__,
            "nibabel": config.versions["nibabel"],
            "pytorch-ignite": "0.5.5",
        },
        "name": f"{config.network} for {labels}",
        "task": f"Segmentation of {labels}",
        "description": f"Trained by attn3d on {'simulated scans' if config.simulated else config.layout}",
        "authors": "",
        "copyright": "",
        "data_type": "nifti",
        "intended_use": "Research, not for clinical use",
        "network_data_format": {
            "inputs": {
                "image": {
                    **patch,
                    "format": "hounsfield" if config.modality == "CT" else "magnitude",
                    "modality": config.modality,
                    "num_channels": config.in_channels,
                    "channel_def": seen,
                }
            },
            "outputs": {
                "pred": {
                    **patch,
                    "format": "segmentation",
                    "num_channels": config.out_channels,
                    "channel_def": {str(index): name for index, name in enumerate(config.labels.channels)},
                }
            },
        },
        "attn3d": _facts(config),
    }
