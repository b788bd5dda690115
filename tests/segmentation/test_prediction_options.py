"""Each option of `predict` has its effect."""

import os

import nibabel as nib
import numpy as np
import pytest
import torch

from attn3d.segmentation import Run, predict, prediction
from attn3d.segmentation.components import components, without_small
from tests.segmentation.runs import Brightness, bright, change_json, make_run, save
from tests.segmentation.volumes import AFFINES


def test_the_best_weights_are_used_with_the_option(tmp_path):
    """The last ones label everything as background here."""
    run = make_run(tmp_path / "run")
    net = run.new_network()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    last = [module for module in net.modules() if isinstance(module, torch.nn.modules.conv._ConvNd)][-1]
    for best, favoured in ((False, 0), (True, 2)):
        torch.nn.init.zeros_(last.bias)
        last.bias.data[favoured] = 9.0
        run.write_network(net, best=best)
    scans = save(tmp_path / "scans", one=bright()[0])
    for best, label in ((False, 0), (True, 5)):
        found = predict(run.folder, scans, tmp_path / str(best), best=best, quiet=True)
        assert set(np.unique(nib.load(found.written["one"]).dataobj)) == {label}


def test_overlap_and_mirrored_axes_reach_the_windows(run, tmp_path, monkeypatch):
    asked, segment = [], prediction.segment

    def watched(inputs, like, **options):
        asked.append({name: options[name] for name in ("overlap", "mirror")})
        return segment(inputs, like, **options)

    monkeypatch.setattr(prediction, "segment", watched)
    scans = save(tmp_path / "scans", one=bright()[0])
    predict(run.folder, scans, tmp_path / "out", overlap=0.25, mirror=[2, 0], quiet=True)
    assert asked == [{"overlap": 0.25, "mirror": (2, 0)}]


def test_runs_with_and_without_windows_do_not_share_a_volume(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "network", lambda self, best: Brightness().eval())
    one = make_run(tmp_path / "one")
    other = make_run(tmp_path / "other")
    change_json(other.folder / "config.json", windows=None)
    scans = save(tmp_path / "scans", one=bright(size=(8, 8, 6))[0])
    maps = []
    for index, runs in enumerate((one.folder, other.folder, [one.folder, other.folder])):
        predict(runs, scans, tmp_path / str(index), probabilities=True, quiet=True)
        maps.append(nib.load(tmp_path / str(index) / "one_probabilities.nii.gz").get_fdata())
    assert np.abs(maps[0] - maps[1]).max() > 0.1
    np.testing.assert_allclose(maps[2], (maps[0] + maps[1]) / 2, atol=1e-6)


def test_a_folder_without_permission_to_write_is_refused_before_the_first_scan(run, tmp_path, monkeypatch):
    scans = save(tmp_path / "scans", one=bright()[0])
    monkeypatch.setattr(prediction.os, "access", lambda path, mode: mode != os.W_OK or path != tmp_path / "out")
    with pytest.raises(ValueError, match=r"`out` .*out cannot be written to; give another folder"):
        predict(run.folder, scans, tmp_path / "out", quiet=True)


def labels_of(found):
    return np.asarray(nib.load(found.written["one"]).dataobj)


def test_pieces_below_the_volume_in_millilitres_are_removed(run, tmp_path):
    data, _ = bright(size=(6, 6, 4))
    data[16:18, 20:22, 9:11] = 190.0
    data[15:19, 2:6, 1:4] = 190.0
    scans = save(tmp_path / "scans", one=data)
    everything = labels_of(predict(run.folder, scans, tmp_path / "all", quiet=True))
    sizes = sorted(components(everything == 2)[1][1:].tolist())
    assert len(sizes) == 3
    for kept, size in ((2, sizes[1]), (1, sizes[1] + 1)):
        for limit in ((size - 0.5) * 8 / 1000, size * 8 / 1000):  # voxels of 8 mm³
            out = tmp_path / f"{limit}"
            found = labels_of(predict(run.folder, scans, out, remove_small=limit, quiet=True))
            assert np.array_equal(found == 2, without_small(everything == 2, size))
            assert len(components(found == 2)[1][1:]) == kept


def test_a_preview_is_centred_on_the_largest_component(run, tmp_path, monkeypatch):
    centers, draw = [], prediction.plot_segmentation

    def watched(*arguments, center, **options):
        centers.append(center)
        return draw(*arguments, center=center, **options)

    monkeypatch.setattr(prediction, "plot_segmentation", watched)
    data, block = bright(place=(2, 3, 1), size=(6, 6, 4))
    data[16:18, 20:22, 9:11] = 190.0
    predict(run.folder, save(tmp_path / "scans", one=data), tmp_path / "out", preview=True, quiet=True)
    voxel = nib.affines.apply_affine(np.linalg.inv(AFFINES["RAS"]), centers[0])
    assert all(part.start <= at < part.stop for part, at in zip(block, voxel, strict=True))
