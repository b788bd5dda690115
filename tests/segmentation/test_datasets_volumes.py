"""Several modalities in one 4-D file, as in the Decathlon, equal the same modalities in separate files."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from attn3d.segmentation import FileError, evaluate, find_dataset, predict, report, train
from attn3d.segmentation.datasets import find_scans, read_case_image
from tests.segmentation.runs import SMALL
from tests.segmentation.volumes import AFFINES, head, scan

AFFINE = AFFINES["LAS, 5 mm slices"]
NAMES = {"0": "FLAIR", "1": "T1w", "2": "T2w"}


def write(folder, description):
    """Writes labels and a description; yields the path and the channels of three training cases and a test case."""
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(description))
    for index in range(4):
        part = "Ts" if index == 3 else "Tr"
        image, labels = head(AFFINE, millimetres=40.0, seed=index)
        noise = np.random.default_rng(index).normal(0, 20, (*image.shape, 2))
        channels = np.stack([image, -image + noise[..., 0], 2 * image + noise[..., 1]], axis=-1).astype(np.float32)
        (folder / f"images{part}").mkdir(exist_ok=True)
        (folder / f"labels{part}").mkdir(exist_ok=True)
        nib.save(scan((labels > 1).astype(np.uint8), AFFINE), folder / f"labels{part}" / f"brain{index}.nii.gz")
        yield folder / f"images{part}" / f"brain{index}.nii.gz", channels


def decathlon(folder):
    """One 4-D file per case."""
    pairs = [
        {"image": f"./imagesTr/brain{index}.nii.gz", "label": f"./labelsTr/brain{index}.nii.gz"} for index in range(3)
    ]
    description = {"modality": NAMES, "labels": {"0": "background", "1": "tumour"}}
    for path, channels in write(folder, description | {"training": pairs, "test": ["./imagesTs/brain3.nii.gz"]}):
        nib.save(scan(channels, AFFINE), path)
    return folder


def nnunet(folder):
    """The same channels in separate files."""
    description = {"channel_names": NAMES, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}
    for path, channels in write(folder, description):
        for channel in range(3):
            name = path.name.replace(".nii.gz", f"_{channel:04d}.nii.gz")
            nib.save(scan(np.ascontiguousarray(channels[..., channel]), AFFINE), path.with_name(name))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modalities")
    return decathlon(folder / "one file"), nnunet(folder / "a file each")


def test_modalities_of_one_file_are_the_images_of_a_case(folders):
    one, each = (find_dataset(folder, labelled=True) for folder in folders)
    assert (one.layout, one.modality, one.problems) == ("Decathlon", "MRI", {})
    assert "3 images per case" in str(one)
    for case, other in zip(one.cases + one.test_cases, each.cases + each.test_cases, strict=True):
        assert (len(case.images), case.channels, other.channels) == (1, 3, 3)
        for image, same in zip(read_case_image(case), read_case_image(other), strict=True):
            assert image.get_data_dtype() == np.float32
            assert np.asarray(image.dataobj).flags.writeable, "otherwise PyTorch prints a warning"
            np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(same.dataobj))
            np.testing.assert_array_equal(image.affine, same.affine)


def test_training_equals_that_with_separate_files(folders, tmp_path):
    settings = SMALL | {"spacing": (5.0, 5.0, 5.0), "epochs": 1, "patch_size": (8, 8, 8)}
    runs = [train(folder, out=tmp_path / folder.name, **settings) for folder in folders]
    weights = [run.network().state_dict() for run in runs]
    assert runs[0].config.images == 3
    for name, one in weights[0].items():
        torch.testing.assert_close(one, weights[1][name], rtol=0, atol=0)

    scans = (folders[0], folders[0] / "imagesTs", folders[0] / "imagesTs" / "brain3.nii.gz", folders[1] / "imagesTs")
    found = [predict(runs[0].folder, one, tmp_path / f"found {index}", quiet=True) for index, one in enumerate(scans)]
    assert [len(one.written) for one in found] == [4, 1, 1, 1]
    assert not any(one.failed for one in found)
    labels = [nib.load(one.written["brain3"]) for one in found]
    for label in labels[1:]:
        assert label.header == labels[0].header
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(labels[0].dataobj))
    assert evaluate(tmp_path / "found 1", folders[0] / "labelsTs", quiet=True)["failed"] == {}
    assert report(runs[0].folder).exists()


def test_another_number_of_volumes_is_refused(folders, tmp_path):
    folder = decathlon(tmp_path / "data")
    file = folder / "imagesTr" / "brain0.nii.gz"
    image = nib.load(file)
    for data, shape in ((image.dataobj[..., :2], r"\(40, 40, 8, 2\)"), (image.dataobj[..., 0], r"\(40, 40, 8\)")):
        nib.save(scan(np.asarray(data), AFFINE), file)
        with pytest.raises(FileError, match=rf"brain0.nii.gz: must be a 4-D file of 3 volumes, got shape {shape}"):
            train(folder, out=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "config.json").exists()
    cases, failed = find_scans(folders[0], 2)
    assert cases == []
    assert set(failed.values()) == {"its case has 3 images, the network needs 2"}


def test_an_invalid_volume_is_refused_with_its_file(tmp_path):
    folder = decathlon(tmp_path / "data")
    file = folder / "imagesTr" / "brain1.nii.gz"
    data = np.array(nib.load(file).dataobj)
    data[2, 3, 4, 2] = np.nan
    nib.save(scan(data, AFFINE), file)
    with pytest.raises(FileError, match=r"brain1.nii.gz: 1 voxels are NaN"):
        read_case_image(find_dataset(folder).cases[1])


def test_other_four_dimensional_files_are_refused(tmp_path):
    folder, other = decathlon(tmp_path / "series"), nnunet(tmp_path / "mixed")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"modality": {"0": "MRI"}}))
    with pytest.raises(FileError, match=r"must be a 3-D volume, got shape \(40, 40, 8, 3\); .* name its modalities"):
        read_case_image(find_dataset(folder).cases[0])
    file = other / "imagesTr" / "brain0_0001.nii.gz"
    nib.save(nib.load(folder / "imagesTr" / "brain0.nii.gz"), file)
    with pytest.raises(FileError, match=r"brain0_0001.nii.gz: must be a 3-D volume"):
        read_case_image(find_dataset(other).cases[0])
