"""Comparison of mechanisms, and of the plain network, with the same budget."""

import json
import shutil
from types import SimpleNamespace

import pytest

from attn3d.segmentation import FileError, compare, comparison, series
from attn3d.segmentation.io.writing import read_json
from attn3d.segmentation.settings import settings_from
from tests.segmentation.runs import SMALL

SETTINGS = {name: value for name, value in SMALL.items() if name not in ("attention", "at", "quiet")} | {"epochs": 1}


def test_it_trains_all_runs_and_can_be_resumed(data, tmp_path, monkeypatch):
    trained = []
    train = series.train

    def stopped(*args, **settings):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(settings["out"].name)
        return train(*args, **settings)

    arguments = {"out": tmp_path / "all", "mechanisms": ["eca"], "at": ["encoder"], "seeds": 2, "quiet": True}
    monkeypatch.setattr(series, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(data, **arguments, **SETTINGS)
    assert trained == ["none-0", "eca-0", "none-1"]
    assert not (tmp_path / "all" / "comparison.json").exists()
    first = (tmp_path / "all" / "none-0" / "model.safetensors").stat().st_mtime_ns

    monkeypatch.setattr(series, "train", train)
    found = compare(data, **arguments | {"mechanisms": iter(["eca"])}, **SETTINGS)
    assert (tmp_path / "all" / "none-0" / "model.safetensors").stat().st_mtime_ns == first
    assert found == json.loads((tmp_path / "all" / "comparison.json").read_text())
    plain, eca = found["mechanisms"]["none"], found["mechanisms"]["eca"]
    assert len(plain["dice"]) == len(eca["dice"]) == 2
    assert eca["parameters"] - plain["parameters"] > 0
    assert eca["memory_bytes"] > 0
    folders = [tmp_path / "all" / f"eca-{seed}" for seed in range(2)]
    seconds = [float((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[2]) for folder in folders]
    assert eca["seconds"] == pytest.approx(sum(seconds) / 2)  # the median of two
    difference = sum(one - other for one, other in zip(eca["dice"], plain["dice"], strict=True)) / 2
    assert eca["difference"] == pytest.approx(difference)
    low, high = eca["difference_interval"]
    assert low < eca["difference"] < high
    assert eca["inside_noise"] is None, "two seeds are not enough"
    splits = {(tmp_path / "all" / name / "split.json").read_text() for name in ("none-0", "eca-0", "none-1", "eca-1")}
    assert len(splits) == 1
    assert (tmp_path / "all" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "all" / "comparison.csv").read_text().splitlines()) == 3

    with pytest.raises(FileError, match=r"other settings \(at\)"):
        compare(data, **(arguments | {"at": ["skip"]}), **SETTINGS)
    monkeypatch.setattr(comparison, "find_dataset", None)  # nothing is left to train, so no data are read
    assert compare(data, **arguments, **SETTINGS)["mechanisms"] == found["mechanisms"]
    (tmp_path / "all" / "splits.json").unlink()
    with pytest.raises(FileError, match="was removed; give another --out"):
        compare(data, **arguments, **SETTINGS)


def test_a_changed_file_of_settings_is_refused(data, tmp_path, monkeypatch):
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"epochs": 3}))
    asked = []

    def stopped(*_, out, config, **given):
        (out / "config.json").parent.mkdir(parents=True)
        (out / "config.json").write_text("{}")
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(series, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(data, out=tmp_path / "all", mechanisms=["eca"], config=config, quiet=True)
    assert asked == [config]
    config.write_text(json.dumps({"epochs": 4}))
    with pytest.raises(FileError, match="has other settings"):
        compare(data, out=tmp_path / "all", mechanisms=["eca"], config=config, quiet=True)


def test_unknown_mechanisms_and_sites_are_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'cbam'"):
        compare(data, out=tmp_path / "all", mechanisms=["cbm"], quiet=True)
    with pytest.raises(ValueError, match="`at` got 'Skip'; did you mean 'skip'"):
        compare(data, out=tmp_path / "all", mechanisms=["cbam"], at=["Skip"], quiet=True)
    with pytest.raises(ValueError, match=r"`at` must be a list of kinds of site, got \[3\]"):
        compare(data, out=tmp_path / "all", mechanisms=["cbam"], at=[3], quiet=True)
    with pytest.raises(TypeError, match=r"`mechanisms` must be a list of names, such as \['cbam'\], got 'cbam'"):
        compare(data, out=tmp_path / "all", mechanisms="cbam", quiet=True)
    for name, value in (("seed", 1), ("attention", "se")):
        with pytest.raises(ValueError, match=f"`{name}` is set by the comparison, got {value!r}; use `[sm]e"):
            compare(data, out=tmp_path / "all", mechanisms=["cbam"], quiet=True, **{name: value})
    assert not (tmp_path / "all").exists()


def test_a_folder_in_use_is_left_alone(data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`out` .* already has '.*'; move it"):
        compare(data, out=tmp_path, mechanisms=["eca"], quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_without_data_a_cohort_is_simulated_beside_the_runs(tmp_path, monkeypatch):
    class Simulated(Exception):
        pass

    def fake(folder, **_):
        raise Simulated(folder)

    monkeypatch.setattr(series, "simulate", fake)
    with pytest.raises(Simulated) as raised:
        compare(out=tmp_path / "all", mechanisms=["eca"], quiet=True)
    assert raised.value.args == (tmp_path / "all" / "cohort",)


def test_runs_without_a_label_to_score_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "mean_dice", lambda scores: None)
    settings = {"out": tmp_path / "all", "mechanisms": [], "at": ["encoder"], "seeds": 1, "quiet": True}
    with pytest.raises(FileError, match="no held-out case has a label; hold out more"):
        compare(data, **settings, **SETTINGS)


def test_moved_data_are_accepted_and_other_data_are_not(data, tmp_path, monkeypatch):
    def fake(data, *, out, **_):
        out.mkdir(exist_ok=True)
        (out / "config.json").touch()

    monkeypatch.setattr(series, "train", fake)
    monkeypatch.setattr(comparison, "_report", lambda *_: {})
    arguments = {"out": tmp_path / "all", "mechanisms": ["eca"], "seeds": 1, "quiet": True}
    shutil.copytree(data, tmp_path / "before")
    compare(tmp_path / "before", **arguments)
    with pytest.raises(FileError, match="other settings"):
        compare(data, **arguments)
    (tmp_path / "before").rename(tmp_path / "after")
    compare(tmp_path / "after", **arguments)
    (tmp_path / "all" / "settings.json").write_text("{}")
    with pytest.raises(FileError, match=r"settings\.json: has no 'data'"):
        compare(data, **arguments)
    for changed in ({"data": 3, "settings": {}}, {"data": None, "settings": "epochs"}):
        (tmp_path / "all" / "settings.json").write_text(json.dumps(changed))
        with pytest.raises(FileError, match=r"settings\.json: was changed: its 'settings' or 'data' are not"):
            compare(data, **arguments)


def test_a_single_mechanism_is_compared_with_none_and_has_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_measure", lambda runs: {"dice": [0.5, 0.75]})
    run = SimpleNamespace(config=SimpleNamespace(simulated=False, network="UNet"))
    report = comparison._report(tmp_path, {"none": [run, run]}, ["skip"], 2)
    assert report["mechanisms"]["none"]["mean"] == 0.625
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.csv", "comparison.json"]


def test_three_seeds_are_enough_to_estimate_the_noise(tmp_path, monkeypatch):
    dice = {"none": [0.5, 0.6, 0.7], "se": [0.6, 0.7, 0.81], "eca": [0.4, 0.7, 0.7]}
    config = SimpleNamespace(simulated=False, network="UNet")
    runs = {name: [SimpleNamespace(name=name, config=config)] for name in dice}
    monkeypatch.setattr(comparison, "_measure", lambda of: {"dice": dice[of[0].name], "parameters": 1})
    found = comparison._report(tmp_path, runs, ["skip"], 3)["mechanisms"]
    assert [found[name]["inside_noise"] for name in ("se", "eca")] == [False, True]


def test_all_trainings_have_the_split_that_was_drawn_first(data, tmp_path):
    """Also if cases are added; a case that is lost is an error."""
    grown, out = shutil.copytree(data, tmp_path / "grown"), tmp_path / "all"
    arguments = {"out": out, "mechanisms": [], "quiet": True}
    compare(grown, seeds=1, **arguments, **SETTINGS)
    for part in ("images", "labels"):
        for name in ("a", "b", "c"):
            shutil.copy(data / part / "case0.nii.gz", grown / part / f"{name}.nii.gz")
    compare(grown, seeds=2, **arguments, **SETTINGS)
    splits = [json.loads((out / f"none-{seed}" / "split.json").read_text()) for seed in range(2)]
    assert splits[0] == splits[1]
    lost = splits[0]["training"][0]
    (grown / "images" / f"{lost}.nii.gz").unlink()
    with pytest.raises(FileError, match=rf"splits\.json: fold 0 has the unknown case '{lost}'"):
        compare(grown, seeds=3, **arguments, **SETTINGS)


@pytest.mark.parametrize(
    ("mechanism", "at", "says"),
    [("attention_gate", "encoder", "attention_gate|AttentionGate"), ("eca", "path:nowhere", "nowhere")],
)
def test_a_mechanism_that_does_not_fit_is_found_first(mechanism, at, says, data, tmp_path, monkeypatch):
    monkeypatch.setattr(series, "train", lambda *_, **__: pytest.fail("nothing may be trained"))
    with pytest.raises(ValueError, match=says):
        compare(data, out=tmp_path / "all", mechanisms=["eca", mechanism], at=[at], quiet=True, **SETTINGS)
    assert not [*(tmp_path / "all").glob("*/config.json")], "settings can be changed"


def test_the_file_of_settings_can_set_the_sites_but_no_seed_or_mechanism(data, tmp_path, monkeypatch):
    config, asked = tmp_path / "settings.yml", []

    def stopped(*_, config, folds, fold=0, devices=1, out, workers, quiet, **given):
        asked.append(settings_from(config, given | {"attention": "eca"}).at)
        raise KeyboardInterrupt

    monkeypatch.setattr(series, "train", stopped)
    config.write_text(json.dumps({"at": ["encoder"]} | SETTINGS))
    for given in ({}, {"at": ["decoder"]}):
        with pytest.raises(KeyboardInterrupt):
            compare(data, out=tmp_path / "all", mechanisms=["eca"], config=config, quiet=True, **given)
        assert read_json(tmp_path / "all" / "settings.json")["settings"]["at"] == list(asked[-1])
    assert asked == [("encoder",), ("decoder",)]
    for name, value, instead in (("seed", 7, "seeds"), ("attention", "se", "mechanisms")):
        config.write_text(f"{name}: {value}")
        with pytest.raises(FileError, match=rf"settings\.yml: `{name}` is set by .*, got {value!r}; use `{instead}`"):
            compare(data, out=tmp_path / "none", mechanisms=["eca"], config=config, quiet=True)
    assert not (tmp_path / "none").exists()
