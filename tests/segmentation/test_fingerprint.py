"""Settings that follow from the data: spacing, patches, strides and kernels."""

import nibabel as nib
import numpy as np
import pytest

import attn3d
from attn3d.segmentation import Run
from attn3d.segmentation.configuration import completed, configure
from attn3d.segmentation.datasets import Case, Dataset, find_dataset, read_case_label
from attn3d.segmentation.errors import FileError
from attn3d.segmentation.fingerprint import Fingerprint, propose_geometry, propose_kernels, take_fingerprint
from attn3d.segmentation.labels import Labels
from attn3d.segmentation.settings import settings_from


def fingerprint(shape, spacing, smallest=None):
    spread = tuple(zip(smallest or spacing, spacing, strict=True))
    return Fingerprint(10, shape, spacing, spread, ({},), {}, {})


def test_thick_slices_are_not_pooled_until_the_spacing_is_near_isotropic():
    """nnU-Net's plan for 0.9 x 0.9 x 5 mm: kernels (3, 3, 1) until 5 mm is less than twice the plane's spacing."""
    geometry = propose_geometry(fingerprint((230, 230, 34), (0.9, 0.9, 5.0)), patch_voxels=2**20)
    assert geometry.strides[:2] == ((2, 2, 1), (2, 2, 1))
    assert geometry.strides[2] == (2, 2, 2)
    kernels = propose_kernels(geometry.strides, geometry.spacing)
    assert kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert len(kernels) == len(geometry.strides) + 1


def test_an_axis_that_can_no_longer_be_halved_does_not_keep_the_others_fine():
    """As in nnU-Net: the finest spacing is that of the axes that are still halved, and a kernel stays at 3."""
    geometry = propose_geometry(fingerprint((64, 64, 30), (1.0, 1.0, 1.0)), patch_voxels=2**17)
    assert geometry.strides == ((2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))
    assert propose_kernels(geometry.strides, geometry.spacing) == ((3, 3, 3),) * 5


def test_isotropic_scans_are_halved_along_all_axes():
    geometry = propose_geometry(fingerprint((180, 220, 180), (1.0, 1.0, 1.0)), patch_voxels=2**18)
    assert set(geometry.strides) == {(2, 2, 2)}
    assert geometry.patch_size == (64, 64, 64)
    assert geometry.spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.45, 0.45, 5.0), (5.0, 0.6, 0.6), (2.0, 2.0, 4.9)], ids=str)
@pytest.mark.parametrize("voxels", [2**12, 2**17, 2**21])
@pytest.mark.parametrize("shape", [(512, 512, 30), (60, 70, 60), (9, 200, 3)], ids=str)
def test_a_patch_is_a_multiple_of_the_strides_and_about_as_large_as_asked(shape, voxels, spacing):
    geometry = propose_geometry(fingerprint(shape, spacing), voxels)
    multiple = np.prod([(1, 1, 1), *geometry.strides], axis=0)
    assert not (np.array(geometry.patch_size) % multiple).any()
    assert np.prod(geometry.patch_size) <= 2.5 * voxels
    assert (np.array(geometry.patch_size) < np.array(shape) + multiple).all()


def test_slices_of_different_thickness_get_a_finer_spacing():
    """If slices are three times as thick as pixels: a tenth of the way from the smallest to the median spacing."""
    mixed = fingerprint((512, 512, 30), (0.5, 0.5, 5.0), smallest=(0.4, 0.4, 3.0))
    assert propose_geometry(mixed, 2**17).spacing == (0.5, 0.5, 3.2)
    thin = fingerprint((512, 512, 30), (1.0, 1.0, 5.0), smallest=(1.0, 1.0, 0.4))
    assert propose_geometry(thin, 2**17).spacing == (1.0, 1.0, 1.0), "not finer than the pixels"


def test_given_settings_are_kept():
    geometry = propose_geometry(fingerprint((100, 100, 40), (0.5, 0.5, 5.0)), 2**17, (1.0, 1.0, 3.0), (64, 64, 16))
    assert (geometry.spacing, geometry.patch_size) == ((1.0, 1.0, 3.0), (64, 64, 16))
    assert geometry.strides[0] == (2, 2, 1)


@pytest.mark.parametrize(
    ("spacing", "size"), [((1.9, 1.9, 5.0), [8, 8, 3]), ((0.4, 0.4, 5.0), [8, 8, 2]), ((1.0, 1.0, 1.0), [8, 8, 8])]
)
def test_attention_windows_have_about_the_same_width_in_millimetres(spacing, size):
    found = completed(["mhsa", {"pattern": "window", "num_heads": 2}], spacing, 16)
    assert found == ["mhsa", {"pattern": ["window", {"size": size}], "num_heads": 2}]
    attn3d.create_attention(found, spatial_dims=3, channels=8)
    given = ["mhsa", {"pattern": ["window", {"size": 4}]}]
    assert [completed(spec, spacing, 16) for spec in (None, "mhsa", given)] == [None, "mhsa", given]


def test_a_patch_holds_the_median_scan_if_it_is_small_enough():
    """It is rounded up to a multiple of the strides; of a larger scan, a patch holds a part."""
    small = fingerprint((35, 51, 35), (1.0, 1.0, 1.0))
    geometry = propose_geometry(small, 2**17)
    assert geometry.whole
    assert geometry.strides == ((2, 2, 2),) * 3
    assert geometry.patch_size == (40, 56, 40)
    part = propose_geometry(small, 2**15)
    assert not part.whole
    assert np.prod(part.patch_size) < 1.3 * 2**15


@pytest.mark.parametrize("width", [4, 16, 32])
def test_a_squeeze_keeps_eight_units_of_the_narrowest_maps(width):
    for name in ("se", "cbam", "bam", "coord", "sk", "gc"):
        _, options = completed(name, (1.0, 1.0, 1.0), width)
        assert width // options["reduction"] == min(width, 8)
        attn3d.create_attention((name, options), spatial_dims=3, channels=width)
    for given in (None, "eca", "mhsa", ["cbam", {"reduction": 4}]):
        assert completed(given, (1.0, 1.0, 1.0), width) == given


@pytest.mark.parametrize(("side", "network"), [(12, "UNet"), (32, "DynUNet"), (400, "UNet")])
def test_the_network_can_be_built_whatever_the_scans_size(side, network, data, tmp_path, monkeypatch):
    """The network keeps full resolution if a patch holds a scan and the scan can be halved twice."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    taken = fingerprint((side,) * 3, (1.0, 1.0, 1.0))
    config = configure(find_dataset(data), 1, taken, settings_from(None, {"width": 4}))
    assert config.network == network
    Run(tmp_path, config).new_network()


def test_it_follows_from_the_files(data):
    dataset = find_dataset(data)
    taken = take_fingerprint(dataset, dataset.cases[:2], quiet=True)
    assert taken.cases == 2
    assert taken.spacing == (1.5, 1.5, 3.5), "the median of 2 mm cubes and of 1 x 1 x 5 mm"
    assert taken.spacing_range == ((1.0, 2.0), (1.0, 2.0), (2.0, 5.0))
    assert set(taken.cases_with.values()) == {2}
    assert taken.intensities[0]["median"] == pytest.approx(200, abs=15), "of the labelled voxels"
    inner = list(taken.volume_ml.values())[-1]
    assert inner == pytest.approx(4 / 3 * np.pi * (64 * 0.24) ** 3 / 1000, rel=0.1)


@pytest.mark.parametrize("bad", [1, 3, 12])
def test_all_files_that_cannot_be_used_are_listed(bad, tmp_path):
    (tmp_path / "scan.nii").write_text("no scan")
    nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2), np.eye(4)), tmp_path / "good.nii")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "label.nii")
    cases = [Case("good", (tmp_path / "good.nii",), (tmp_path / "label.nii",))]
    for number in range(bad):
        cases.append(Case(f"c{number}", (tmp_path / f"c{number}.nii",), (tmp_path / "label.nii",)))
        (tmp_path / f"c{number}.nii").write_text("no scan")
    with pytest.raises(FileError) as raised:
        take_fingerprint(Dataset(tmp_path, labels=Labels.of({1: "one"})), [*cases, cases[0]], quiet=True)
    problem = "is not a NIfTI file; give a .nii or .nii.gz"
    named = "; ".join(f"({number + 1}) {tmp_path}/c{number}.nii: {problem}" for number in range(min(bad, 10)))
    assert (
        str(raised.value)
        == {
            1: f"{tmp_path}/c0.nii: {problem}",
            3: f"{tmp_path}: 3 files cannot be used: {named}",
            12: f"{tmp_path}: 12 files cannot be used: {named}; and 2 more",
        }[bad]
    )


def with_labels(dataset, change, monkeypatch):
    """The fingerprint of a data set with other labels."""

    def read(case, dataset, image):
        label = read_case_label(case, dataset, image)
        return nib.Nifti1Image(change(np.asarray(label.dataobj)), label.affine)

    monkeypatch.setattr("attn3d.segmentation.fingerprint.read_case_label", read)
    return take_fingerprint(dataset, dataset.cases[:2], quiet=True)


def test_cases_without_a_labelled_voxel_are_refused(data, monkeypatch):
    with pytest.raises(FileError, match="no voxel of its 2 training cases is labelled; check the labels"):
        with_labels(find_dataset(data), np.zeros_like, monkeypatch)


def test_a_label_that_no_case_has_is_named(data, monkeypatch, caplog):
    dataset = find_dataset(data)
    first, *others = dataset.labels.names
    with_labels(dataset, lambda labels: (labels == min(labels[labels > 0])).astype(np.uint8), monkeypatch)
    assert caplog.messages == [
        f"No training case has the labels {', '.join(map(repr, others))}, so they cannot be learnt."
    ]
    assert repr(first) not in caplog.text


def test_a_single_label_that_no_case_has_is_named(data, monkeypatch, caplog):
    dataset = find_dataset(data)
    last = max(dataset.labels.present)
    with_labels(dataset, lambda labels: (labels * (labels != last)).astype(np.uint8), monkeypatch)
    assert caplog.messages == [f"No training case has the label {dataset.labels.names[-1]!r}, so it cannot be learnt."]


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (2, {"windows": [[40.0, 80.0]]}, "`windows` are for a CT of one image, got 2 images per case"),
        (1, {"windows": [[40.0, 80.0]], "brightness": 0.2}, "`brightness` must be 0 for a CT with `windows`"),
        (
            1,
            {"class_weights": [1.0, 2.0]},
            r"`class_weights` must have 4 values, for the background and for .*, got \(1",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_data(images, settings, message, data):
    with pytest.raises(ValueError, match=message):
        configure(find_dataset(data), images, fingerprint((40, 40, 20), (2, 2, 4)), settings_from(None, settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"network": "BasicUNet", "strides": [[2, 2, 1]]},
            "`strides` are not used by BasicUNet, which halves all",
        ),
        ({"network": "UNet", "kernels": [[3, 3, 1], [3, 3, 3]]}, "`kernels` are not used by UNet, whose kernels have"),
        ({"network": "DynUNet", "strides": [[2, 2, 1], [2, 2, 2]], "kernels": [[3, 3, 3]] * 2}, "must have 3 entries"),
    ],
)
def test_settings_without_effect_are_refused(settings, message, tmp_path):
    dataset = Dataset(tmp_path, labels=Labels.of({1: "one"}), modality="CT")
    given = settings | {"windows": [[40, 80]], "patch_size": (16, 16, 16)}
    with pytest.raises(ValueError, match=message):
        configure(dataset, 1, fingerprint((64, 64, 20), (1.0, 1.0, 5.0)), settings_from(None, given))


def test_kernels_follow_from_strides_that_are_given(tmp_path):
    dataset = Dataset(tmp_path, labels=Labels.of({1: "one"}), modality="CT")
    given = {"network": "DynUNet", "strides": [[2, 2, 1], [2, 2, 1]], "windows": [[40, 80]], "patch_size": (16, 16, 8)}
    config = configure(dataset, 1, fingerprint((64, 64, 20), (1.0, 1.0, 5.0)), settings_from(None, given))
    assert config.kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


@pytest.mark.parametrize(
    ("windows", "given", "expected"),
    [
        ([[40.0, 80.0]], {}, (0.3, 10.0, 0.1)),
        (None, {}, (0.5, 20.0, 0.2)),
        (None, {"warped": 0.0, "rotation": 5.0}, (0.0, 5.0, 0.2)),
    ],
    ids=["CT", "other", "given"],
)
def test_patches_of_other_scans_than_ct_are_warped_more(windows, given, expected, tmp_path):
    dataset = Dataset(tmp_path, labels=Labels.of({1: "one"}))
    settings = settings_from(None, given | {"windows": windows})
    config = configure(dataset, 1, fingerprint((32, 32, 32), (1.0, 1.0, 1.0)), settings)
    assert (config.warped, config.rotation, config.scaling) == expected
