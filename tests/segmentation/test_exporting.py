"""Exported networks give the labels of `predict` in MONAI's bundles and ONNX Runtime."""

import ast
import json
import logging
import os
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged

from attn3d.segmentation import NETWORKS, FileError, export, grid, portable, predict
from attn3d.segmentation.inference import NetworkInput, segment
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.networks import shape_multiple, uses_strides
from attn3d.segmentation.portable import (
    Prepared,
    SaveLabels,
    ToScan,
    WindowInferer,
    find_images,
    on_grid,
    to_channels,
    window_size,
)
from tests.segmentation.runs import make_run
from tests.segmentation.volumes import AFFINES, head, scan

ROOT = Path(__file__).parents[2]
NEAR = 2e-3  # `predict` sums windows in half precision, so classes with closer probabilities may differ


LABELS = Labels.of({2: "inner", 5: "outer"})
REGIONS = Labels(("all of it", "inner"), ((2, 5), (5,)), (2, 5), ignore=7)


def random_run(folder, modality, images=1, network="UNet", labels=LABELS, **settings):
    """A run whose network has random weights."""
    given = {"windows": ((100.0, 400.0), (200.0, 100.0)) if modality == "CT" else None, "attention": "cbam"}
    given |= {"network": network, "spacing": (2.0, 2.0, 4.0), "patch_size": (24, 24, 12), "width": 4}
    given |= {"strides": [[2, 2, 1], [2, 2, 2]]} if uses_strides(network) else {}
    run = make_run(folder, images, labels, modality, **given | settings)
    torch.manual_seed(0)
    run.write_network(run.new_network())
    return run


def scan_file(path, geometry, shift=0.0):
    image, _ = head(AFFINES[geometry], millimetres=90.0)
    nib.save(scan(image + shift, AFFINES[geometry]), path)
    return path


def assert_same_labels(found, predicted, probabilities, regions=False):
    """Compares labels, except where two classes are almost equally probable."""
    found, predicted = nib.load(found), nib.load(predicted)
    np.testing.assert_allclose(found.affine, predicted.affine, atol=1e-4)
    labels, expected = (np.asarray(one.dataobj) for one in (found, predicted))
    assert len(np.unique(expected)) > 1, "the comparison needs labels"
    best = np.sort(np.asarray(nib.load(probabilities).dataobj), axis=-1)
    doubt = np.abs(best - 0.5).min(axis=-1) if regions else best[..., -1] - best[..., -2]
    differ = labels != expected
    assert differ.mean() < 1e-3
    assert doubt[differ].max(initial=0) < NEAR


def called(command, **options):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, **options)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_bundle_finds_the_labels_of_predict(tmp_path):
    """With MONAI's command and sliding windows, also for a sagittal scan and for one slice."""
    run = random_run(tmp_path / "run", "CT")
    bundle = export(run.folder, tmp_path / "bundle")
    paths = {"case": scan_file(bundle / "data" / "case_0000.nii.gz", "LAS, 5 mm slices")}
    paths["sagittal"] = scan_file(bundle / "data" / "sagittal.nii", "permuted")
    paths["slice"] = bundle / "data" / "slice.nii.gz"
    nib.save(nib.load(paths["case"]).slicer[:, :, 9:10], paths["slice"])
    called([sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"], cwd=bundle)
    for name, path in paths.items():
        expected = predict(run.folder, path, tmp_path / "out", probabilities=True, quiet=True).written[name]
        found = bundle / "eval" / f"{name}_seg.nii.gz"
        assert_same_labels(found, expected, expected.with_name(f"{name}_probabilities.nii.gz"))
        assert nib.load(found).get_data_dtype() == np.uint8

    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    outputs = meta["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "1": "inner", "2": "outer"}
    image = meta["network_data_format"]["inputs"]["image"]
    assert (image["format"], image["modality"]) == ("hounsfield", "CT")


def test_a_bundle_finds_the_regions_of_predict(tmp_path):
    """With the parts of the bundle, without MONAI's command."""
    run = random_run(tmp_path / "run", "CT", labels=REGIONS)
    path = scan_file(tmp_path / "case.nii.gz", "LAS, 5 mm slices")
    expected = predict(run.folder, path, tmp_path / "out", probabilities=True, quiet=True).written["case"]
    bundle = export(run.folder, tmp_path / "bundle")
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    after = parser["postprocessing"]["transforms"][0]
    assert after.pop("_target_") == "scripts.portable.ToScan"
    before = portable.Prepared("image", run.config.spacing, run.config.windows)
    data = before({"image": LoadImage(ensure_channel_first=True)(path)})
    inferer = portable.WindowInferer(run.config.patch_size, shape_multiple("UNet", run.config.strides))
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], run.network())[0]
    found = portable.ToScan(after.pop("keys"), **after)(data)["pred"]
    nib.save(nib.Nifti1Image(found[0].numpy(), found.affine.numpy()), tmp_path / "found.nii.gz")
    probabilities = expected.with_name("case_probabilities.nii.gz")
    assert_same_labels(tmp_path / "found.nii.gz", expected, probabilities, regions=True)
    meta = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "all of it", "1": "inner"}


@pytest.mark.parametrize(
    "labels", [LABELS, pytest.param(REGIONS, marks=pytest.mark.nightly)], ids=["labels", "regions"]
)
def test_onnx_runtime_finds_the_labels_of_predict(labels, tmp_path, recwarn, caplog):
    """With the script in examples/, for a scan of two normalised images. The export has no messages of PyTorch."""
    run = random_run(tmp_path / "run", "MRI", images=2, labels=labels)
    (tmp_path / "scans").mkdir()
    paths = [scan_file(tmp_path / "scans" / f"case_000{one}.nii.gz", "oblique", 50.0 * one) for one in range(2)]
    expected = predict(run.folder, tmp_path / "scans", tmp_path / "out", probabilities=True, quiet=True).written["case"]
    recwarn.clear()
    exported = export(run.folder, tmp_path / "exported", format="onnx")
    assert not list(recwarn)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    called([sys.executable, ROOT / "examples" / "onnx_runtime.py", exported, tmp_path / "found.nii.gz", *paths])
    probabilities = expected.with_name("case_probabilities.nii.gz")
    assert_same_labels(tmp_path / "found.nii.gz", expected, probabilities, regions=labels.regions)

    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for shape in ((1, 2, 24, 24, 12), (3, 2, 4, 12, 10)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        (logits,) = session.run(None, {"image": x.numpy()})
        np.testing.assert_allclose(logits, run.network()(x).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_bundle_builds_every_network(network, tmp_path):
    """From plain data, with a bitwise equal output."""
    patch = {"patch_size": (32, 32, 16)} if network == "BasicUNet" else {"patch_size": (24, 24, 16)}
    run = random_run(tmp_path / "run", "CT", network=network, **patch)
    bundle = export(run.folder, tmp_path / "bundle")
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    x = torch.randn(1, 2, *patch["patch_size"], generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.eval()(x), run.network()(x))


@pytest.mark.nightly
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_exported_for_any_size(network, tmp_path):
    patch = (32, 32, 16) if network == "BasicUNet" else (24, 24, 16)
    run = random_run(tmp_path / "run", "CT", network=network, patch_size=patch)
    exported = export(run.folder, tmp_path / "exported", format="onnx")
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    x = torch.randn(1, 2, 48, 32, 32, generator=torch.Generator().manual_seed(0))
    (logits,) = session.run(None, {"image": x.numpy()})
    np.testing.assert_allclose(logits, run.network()(x).detach().numpy(), atol=1e-4)


def test_errors_of_export(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", "CT")
    with pytest.raises(ValueError, match="`format` must be one of bundle, onnx, got 'torchscript'"):
        export(run.folder, tmp_path / "new", format="torchscript")
    (tmp_path / "file").touch()
    for there in (tmp_path / "run", tmp_path / "new" / ".." / "run", tmp_path / "file"):
        with pytest.raises(FileError, match=f"{there.name}: already exists; choose a new or empty folder"):
            export(run.folder, there)
    (tmp_path / "bundle").mkdir()
    export(run.folder, tmp_path / "bundle")
    (tmp_path / "bundle" / "data" / "scan.nii.gz").touch()
    with pytest.raises(FileError, match="bundle: already exists"):
        export(run.folder, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "data" / "scan.nii.gz").exists()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"`format` onnx needs onnxscript; python -m pip install 'attn3d\[onnx\]'"):
        export(run.folder, tmp_path / "new", format="onnx")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("module", [grid, portable])
def test_the_scripts_need_few_libraries(module):
    """The documentation lists them."""
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"nibabel", "numpy", "torch", "monai"}


def test_a_network_without_attention_needs_no_attn3d(tmp_path):
    bundle = export(random_run(tmp_path / "run", "CT", attention="none").folder, tmp_path / "bundle")
    assert json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]["_target_"] == "UNet"
    assert "attn3d." not in "".join(path.read_text() for path in (bundle / "scripts").iterdir())


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 1)])
@pytest.mark.parametrize("codes", [(1, 2), (0, 0)])
def test_a_bundle_writes_labels_in_every_orientation(shape, codes, tmp_path):
    """With the affine of the scan and its codes."""
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag(signs) * (1, 2, 3))[:, order]
        scan_image = nib.Nifti1Image(np.ones(shape, np.int16), affine)
        scan_image.set_qform(affine, codes[0])
        scan_image.set_sform(affine, codes[1])
        nib.save(scan_image, tmp_path / "a.b_0000.nii.gz")
        given = loaded([tmp_path / "a.b_0000.nii.gz"])["image"]
        labels = torch.randint(0, 9, (1, *shape), dtype=torch.uint8)
        meta = {"filename_or_obj": given.meta["filename_or_obj"]}
        SaveLabels("pred", str(tmp_path / "eval"))({"pred": MetaTensor(labels, affine=given.affine, meta=meta)})
        found, scan_image = nib.load(tmp_path / "eval" / "a.b_seg.nii.gz"), nib.load(tmp_path / "a.b_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), labels[0])
        np.testing.assert_allclose(found.affine, scan_image.affine, atol=1e-5)
        assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == codes
        assert found.header.get_xyzt_units()[0] == "mm"


def loaded(paths):
    return LoadImaged("image", ensure_channel_first=True)({"image": [str(path) for path in paths]})


@pytest.mark.parametrize(("modality", "images"), [("CT", 1), ("MRI", 2)])
def test_a_bundle_prepares_scans_as_training_does(modality, images, tmp_path):
    """With intensity windows or normalised, bitwise equal."""
    config = random_run(tmp_path / "run", modality, images).config
    paths = [scan_file(tmp_path / f"case_000{one}.nii.gz", "oblique", 50.0 * one) for one in range(images)]
    given = loaded(paths)
    found = Prepared("image", config.spacing, config.windows)(given)["image"]
    expected = on_grid([nib.load(path) for path in paths], config.spacing, config.windows)
    assert torch.equal(found.as_tensor(), to_channels(expected.as_tensor(), config.windows))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.affine, expected.affine)
    assert found.meta["filename_or_obj"] == given["image"].meta["filename_or_obj"]
    assert tuple(given["image"].shape[1:]) == found.meta["scan_shape"] == nib.load(paths[0]).shape
    np.testing.assert_allclose(found.meta["scan_affine"], nib.load(paths[0]).affine, atol=1e-5)


def test_a_bundle_refuses_a_scan_that_is_not_finite(tmp_path):
    path = scan_file(tmp_path / "case.nii.gz", "oblique")
    data = nib.load(path).get_fdata(dtype=np.float32)
    data[:2, 3, 4] = np.nan, np.inf
    nib.save(scan(data, AFFINES["oblique"]), path)
    with pytest.raises(ValueError, match=r"case.nii.gz: 2 voxels are NaN or infinite; replace them"):
        Prepared("image", (2.0, 2.0, 4.0))(loaded([path]))


@pytest.mark.parametrize("geometry", ["permuted", "LAS, 5 mm slices"])
def test_a_bundle_resamples_labels_as_predict_does(geometry, tmp_path):
    """Label values on the grid of the scan, except where two classes are almost equally probable."""
    run = random_run(tmp_path / "run", "CT", spacing=(3.0, 3.0, 3.0))
    path = scan_file(tmp_path / "case.nii.gz", geometry)
    network, config = run.network(), run.config
    prepared = Prepared("image", config.spacing, config.windows)(loaded([path]))
    with torch.no_grad():
        logits = WindowInferer(config.patch_size, (2, 4, 4))(prepared["image"].as_tensor()[None], network)[0]
    window = window_size(config.patch_size, (2, 4, 4), logits.shape[1:])
    found = ToScan("pred", "image", (0, 2, 5))(prepared | {"pred": logits})
    assert found["image"] is prepared["image"]
    labels = found["pred"]

    scan_image = nib.load(path)
    volume = on_grid([scan_image], config.spacing, config.windows)
    given = NetworkInput(network, volume, window, config.labels, config.windows)
    expected = segment([given], scan_image, keep=True)
    differ = labels[0].numpy() != expected.labels
    assert labels.dtype == torch.uint8
    assert labels.shape == (1, *scan_image.shape)
    assert len(labels.unique()) == 3, "the comparison needs labels"
    best = np.sort(expected.probabilities, axis=-1)
    assert differ.mean() < 1e-3
    assert (best[..., -1] - best[..., -2])[differ].max(initial=0) < NEAR
    np.testing.assert_allclose(labels.affine, scan_image.affine, atol=1e-5)
    assert labels.meta["filename_or_obj"] == prepared["image"].meta["filename_or_obj"]


def test_a_bundle_lists_the_cases_of_several_images(tmp_path):
    """It finds the other images of a case by the name of the first, and 4-D files. Without any, it does not run."""
    bundle = export(random_run(tmp_path / "run", "MRI", images=2).folder, tmp_path / "bundle")
    images = json.loads((bundle / "configs" / "inference.json").read_text())["images"]
    assert images == {"_target_": "scripts.portable.find_images", "folder": "@dataset_dir", "images": 2}
    data = bundle / "data"
    (data / ".b_0000.nii.gz").touch()
    with pytest.raises(
        FileNotFoundError, match=r"data: has no NIfTI file of a case of 2 images: case_0000 to case_0001"
    ):
        find_images(str(data), 2)
    for name in ("b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nii", "a_0001.nii", "c.nii.gz", "c.nii.gz.md5"):
        (data / name).touch()
    assert find_images(str(data), 2) == [
        {"image": [str(data / "a_0000.nii"), str(data / "a_0001.nii")]},
        {"image": [str(data / "b_0000.nii.gz"), str(data / "b_0001.nii.gz")]},
        {"image": [str(data / "c.nii.gz")]},
    ]
    assert [len(case["image"]) for case in find_images(str(data), 1)] == [1] * 5


def test_two_scans_of_one_name_are_refused(tmp_path):
    for name in ("a.nii", "a_0000.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="has two scans of the name 'a'"):
        portable.find_images(str(tmp_path), 1)
