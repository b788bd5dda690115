"""The command line: its output, and its errors."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import attn3d
from attn3d.cli import app
from attn3d.cli.app import one_line_errors
from attn3d.cli.costs import in_units
from tests.segmentation.runs import SMALL
from tests.segmentation.volumes import AFFINES, head, scan

pytestmark = pytest.mark.usefixtures("signals")

RUNNER = CliRunner()
FOUR_AXES = {"spatial_dims": 4, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def run(*arguments):
    return RUNNER.invoke(app, [str(one) for one in arguments])


def lines(result):
    return result.stderr.strip().splitlines()


def test_plan_prints_a_table():
    result = run("plan", "--shape", 8, 8, 8, "--channels", 8, "--memory", "1MiB")
    assert result.exit_code == 0
    for word in ("global", "window 8, shifted", "chunked", "math", "yes", "no", "8 x 8 x 8"):
        assert word in result.stdout


@pytest.mark.parametrize("arguments", [("plan", "--shape", 8, 16), ("list", "--shape", 8, 16)])
def test_a_missing_size_is_named(arguments):
    result = run(*arguments, "--channels", 4)
    assert result.exit_code == 2
    text = " ".join(result.stderr.replace("│", " ").split())
    assert "'--shape': must be three sizes such as 96 96 96, got '--channels' as one of them" in text


def test_python_m_prints_errors_in_one_line():
    command = [sys.executable, "-m", "attn3d", "plan", "--shape", "8", "8", "8", "--channels", "8", "--memory", "lots"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert not result.stdout
    (line,) = result.stderr.strip().splitlines()
    assert "`memory` must be bytes" in line


def test_list_has_every_mechanism_with_its_cost():
    result = run("list", "--channels", 16, "--shape", 8, 8, 8)
    assert result.exit_code == 0
    for name in attn3d.list_attention():
        parameters = sum(one.numel() for one in attn3d.create_attention(name, spatial_dims=3, channels=16).parameters())
        row = next(line for line in result.stdout.splitlines() if line.split()[:1] == [name])
        assert f" {parameters:,} " in row


def test_sites_of_a_network_by_name_and_by_module():
    assert "model.1.submodule.0" in run("sites", "UNet").stdout
    options = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    result = run("sites", "monai.networks.nets:BasicUNet", "--options", json.dumps(options), "--shape", "1,1,32,32")
    assert "upcat_4" in result.stdout
    assert "32 x 32" in result.stdout


def test_sites_of_a_network_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "of_the_user.py").write_text(
        "import torch\n\nbuild = lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3))"
    )
    (tmp_path / "incomplete.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    result = run("sites", "of_the_user:build")
    assert result.exit_code == 0, result.stderr
    assert "path" in result.stdout
    assert "No module named 'nowhere_to_be_found'" in run("sites", "incomplete:build").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sites", "UNett"], "`network` must be a name"),
        (["sites", "UNet", "--options", "{"], "`options` must be JSON"),
        (["sites", "unet"], "`network` must be a name of monai.networks.nets or module:callable, got 'unet'"),
        (["sites", "..:UNet"], "`network` must be a name"),
        (["sites", "UNet", "--options", "3"], "`options` must be JSON"),
        (["sites", "SwinUNETR"], "`network` SwinUNETR needs other --options: TypeError: "),
        (["sites", "UNet", "--options", json.dumps(FOUR_AXES)], "`network` UNet needs other --options: IndexError: "),
        (["sites", "os:getcwd"], "`net` must be a torch.nn.Module, got '/"),
        (["sites", "UNet", "--shape", "64"], "`shape` must be batch"),
        (["train", "--attention", '["cbam"'], "`attention` must be a name or JSON"),
        (["train", "--devices", "none"], "`devices` must be auto"),
        (["train", "--resume", "--epochs", "3"], "leave out epochs"),
        (["train", "--data", "nowhere", "--out", "new"], "nowhere: is not a folder"),
        (["train", "--data", "nowhere", "--out", "new", "--folds", "3"], "nowhere: is not a folder"),
        (
            ["train", "--data", "nowhere", "--out", "new", "--folds", "my.json"],
            "my.json: does not exist; give the number of folds, from 2, or a file with a split for each",
        ),
        (
            ["train", "--folds", "3", "--fold", "1"],
            "`fold` needs `folds` to be a file with splits, got `fold` 1 and `folds` 3",
        ),
        (["train", "--folds", "3", "--devices", "2"], "`folds` are trained one after the other"),
        (["predict", "nowhere", "-i", "scan.nii.gz", "-o", "new"], "config.json: does not exist"),
        (["predict", "nowhere", "-i", "scan.nii.gz", "-o", "new", "--mirror", "0,x"], "got [0, 'x']"),
        (["evaluate", "nowhere", "nothing"], "does not exist"),
        (["report", "nowhere"], "does not exist"),
        (["compare", "--mechanisms", "cbm", "--out", "new"], "did you mean 'cbam'"),
        (["compare", "--mechanisms", "se, cbam", "--at", "skip, Encoder", "--out", "new"], "`at` got 'Encoder'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_of_the_user_are_printed_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = lines(result)
    assert line.startswith(f"attn3d {arguments[0]}: ")
    assert message in line
    assert not list(tmp_path.iterdir()), "no files must be left"


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for command in (["train", "--data", tmp_path], ["compare", "--mechanisms", "se"]):
        for out in (file, file / "new"):
            result = run(*command, "--out", out)
            assert result.exit_code == 2
            assert lines(result) == [f"attn3d {command[0]}: {out}: it or its parent is a file; give a folder"]
    result = run("report", file)
    assert lines(result) == [
        f"attn3d report: {file / 'config.json'}: does not exist; give the folder of a run of `attn3d train`"
    ]


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    from attn3d import segmentation

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "run"))

    monkeypatch.setattr(segmentation, "simulate", full)
    result = run("simulate", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert lines(result) == [f"attn3d simulate: {tmp_path / 'run'}: No space left on device"]


def test_from_scans_to_a_report(tmp_path):
    """All commands one after another, on a folder of scans."""
    for index, name in enumerate(("RAS", "oblique", "LAS, 5 mm slices")):
        image, labels = head(AFFINES[name], seed=index)
        for part, array in (("images", image), ("labels", labels.astype(np.uint8))):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            nib.save(scan(array, AFFINES[name]), tmp_path / "data" / part / f"case{index}.nii.gz")
    (tmp_path / "data" / "images" / "torn.nii.gz").write_bytes(b"torn")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({name: value for name, value in SMALL.items() if name not in ("quiet", "attention")}))

    result = run(
        *("train", "--data", tmp_path / "data", "--out", tmp_path / "run", "--config", config, "--quiet"),
        *("--attention", '["cbam", {"reduction": 2}]', "--epochs", 1),
    )
    assert result.exit_code == 0, result.stderr
    assert "Held-out cases" in result.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["attention"] == ["cbam", {"reduction": 2}]

    result = run(
        *("train", "--data", tmp_path / "data", "--out", tmp_path / "folds", "--config", config, "--quiet"),
        *("--folds", 2, "--epochs", 1, "--from", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.stderr
    assert "All cases, each predicted by the fold that held it out" in result.stdout
    assert "averages its 2 runs" in result.stdout

    result = run(
        *("predict", tmp_path / "run", "-i", tmp_path / "data" / "images", "-o", tmp_path / "found", "--quiet"),
        *("--statistics", "--probabilities"),
    )
    assert result.exit_code == 1, "one scan cannot be read"
    assert "3 scans segmented" in result.stdout
    (line,) = lines(result)
    assert "torn.nii.gz: " in line

    result = run(
        *("evaluate", tmp_path / "found", tmp_path / "data" / "labels", "-o", tmp_path / "scores", "--quiet"),
        *("--lesions", "--probabilities"),
    )
    assert result.exit_code == 0, result.stderr
    assert "label 1" in result.stdout
    assert "Lesions of all cases, matched" in result.stdout
    assert re.search(r"Within 5 mm .* calibration error 0\.\d+, AUC of entropy for errors 0\.\d+", result.stdout)
    written = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert written == ["calibration.png", "lesions.csv", "scores.csv", "scores.json"]

    result = run("report", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert run("report", tmp_path / "run").exit_code == 2, "files must not be overwritten without --overwrite"


@pytest.mark.parametrize("command", ["train", "predict"])
def test_the_documentation_has_every_option_and_no_other(command):
    page = (Path(attn3d.__file__).parents[1] / "docs" / "from-files-to-a-report.md").read_text()
    (section,) = [one for one in page.split("\n## ") if one.startswith(f"`attn3d {command}")]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    documented = {option for row in rows for option in re.findall(r"--[a-z-]+[a-z]", row)}
    options = set(re.findall(r"--[a-z-]+[a-z]", run(command, "--help").stdout)) - {"--help"}
    assert documented | {"--quiet"} == options


def test_a_comparison_is_a_table_and_a_line_about_noise(monkeypatch):
    """Each mechanism has a line about noise, which needs three seeds; the plain network has none."""
    from attn3d import segmentation

    common = {"mean": 0.8125, "interval": [0.7125, 0.9125], "parameters": 1_234_567, "seconds": 5.4}
    found = {
        "none": common | {"mean": 0.75, "interval": [0.625, 0.875]},
        "cbam": common | {"difference": 0.0625, "difference_interval": [0.0375, 0.0875], "inside_noise": False},
        "attention_gate": common | {"difference": -0.01, "difference_interval": [-0.2, 0.18], "inside_noise": True},
        "se": common | {"difference": 0.02, "difference_interval": None, "inside_noise": None, "interval": None},
        "eca": common | {"difference": 0.1, "difference_interval": [0.05, 0.15], "inside_noise": None},
    }
    asked = {}

    def fake(data, **settings):
        asked.update(settings, data=data)
        return {"simulated": True, "level": 0.95, "mechanisms": found}

    monkeypatch.setattr(segmentation, "compare", fake)
    monkeypatch.setenv("COLUMNS", "80")
    result = run(
        "compare", "--mechanisms", "cbam,attention_gate,se", "--out", "new", "--at", "skip,encoder", "--epochs", 3
    )
    assert result.exit_code == 0, result.stderr
    assert asked == {
        "data": None, "out": Path("new"), "mechanisms": ["cbam", "attention_gate", "se"], "at": ["skip", "encoder"],
        "seeds": 5, "config": None, "workers": None, "quiet": False, "epochs": 3,
    }  # fmt: skip
    assert "Mean Dice (simulated scans)" in result.stdout
    rows = {words[0]: words[1:] for words in map(str.split, result.stdout.splitlines()) if words}
    assert rows["none"] == ["0.750", "±", "0.125", "1,234,567", "5"]
    assert rows["cbam"] == ["0.812", "±", "0.100", "+0.062", "±", "0.025", "1,234,567", "5"]
    assert rows["attention_gate"] == ["0.812", "±", "0.100", "-0.010", "±", "0.190", "1,234,567", "5"]
    assert rows["se"] == ["0.812", "+0.020", "1,234,567", "5"]
    assert result.stdout.strip().splitlines()[-4:] == [
        "cbam: the difference is beyond the noise",
        "attention_gate: the difference is inside the noise",
        "se: one seed is not enough to estimate the noise",
        "eca: two seeds are not enough to estimate the noise",
    ]


def test_a_stopped_training_prints_how_to_resume_and_exits_with_130(monkeypatch):
    from attn3d import segmentation

    def stopped(*_, **__):
        raise segmentation.Interrupted("continue with --resume")

    monkeypatch.setattr(segmentation, "train", stopped)
    result = run("train", "--out", "new")
    assert result.exit_code == 130
    assert lines(result)[-1] == "attn3d train: continue with --resume"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (2**20, "1.0 MiB"),
        (2**30 - 1, "1,024.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (3 * 2**50, "3,072.0 TiB"),
    ],
)
def test_bytes_are_printed_in_the_largest_unit(count, text):
    assert in_units(count) == text


def test_names_are_printed_literally(monkeypatch):
    """Without markup or emoji, and with backslashes for bytes that are not UTF-8."""
    from attn3d import segmentation

    names = ["[red]a", ":smile:", "caf\udce9"]

    def fake(*_, **__):
        written = {name: Path(name) for name in names}
        return segmentation.Prediction(
            written, {}, {names[2]: "is odd"}, {name: {"[b]": 1.0} for name in names[:2]}, {}
        )

    monkeypatch.setattr(segmentation, "predict", fake)
    result = run("predict", "run", "-i", "scans", "-o", "found", "--statistics")
    assert result.exit_code == 1
    for name in (*names[:2], "[b]"):
        assert name in result.stdout
    assert lines(result) == ["attn3d predict: caf\\udce9: is odd"]


def test_uncertainty_is_a_table_with_dashes_for_missing_values(monkeypatch):
    from attn3d import segmentation

    def fake(*_, mirror, uncertainty, **__):
        assert (mirror, uncertainty) == ([0, 2], True)
        return segmentation.Prediction({}, {}, {}, {}, {"one": {"entropy": 0.25}, "two": {"entropy": float("nan")}})

    monkeypatch.setattr(segmentation, "predict", fake)
    result = run("predict", "run", "-i", "scans", "-o", "found", "--uncertainty", "--mirror", "0,2")
    assert re.search(r"one +0\.250\s+two +–", result.stdout)


def test_ctrl_c_is_one_line(monkeypatch):
    from attn3d import segmentation

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(segmentation, "evaluate", stopped)
    result = run("evaluate", "a", "b")
    assert result.exit_code == 130
    assert lines(result) == ["attn3d evaluate: stopped; all files that were written are complete"]


def test_errors_are_printed_to_a_redirected_stream():
    with redirect_stderr(io.StringIO()) as said, pytest.raises(typer.Exit) as stopped, one_line_errors("train"):
        raise ValueError("two\nlines")
    assert said.getvalue() == "attn3d train: two lines\n"
    assert stopped.value.exit_code == 2


def test_no_table_is_printed_without_statistics(monkeypatch):
    import attn3d.segmentation as segmentation
    from attn3d.segmentation.prediction import Prediction

    failed = Prediction({}, {}, {"one.nii.gz": "is no scan"}, {}, {})
    monkeypatch.setattr(segmentation, "predict", lambda *_, **__: failed)
    result = run("predict", "run", "-i", "scans", "-o", "out", "--statistics")
    assert result.stdout == "0 scans segmented, in out/\n"
    assert result.exit_code == 1
    assert "one.nii.gz" in result.stderr


def test_help_has_no_brackets():
    """Rich would drop text in brackets, such as ``[a cohort]``, as markup."""
    texts = {
        f"{command.name} {parameter.name}": parameter.help
        for command in typer.main.get_command(app).commands.values()
        for parameter in command.params
        if getattr(parameter, "help", None)
    }
    assert len(texts) > 60
    assert not [name for name, text in texts.items() if "[" in text]
    assert "(default: a simulated cohort)" in " ".join(run("train", "--help").stdout.replace("│", " ").split())


def test_evaluate_prints_means_over_the_cases_with_the_label(tmp_path):
    for part in ("found", "true"):
        (tmp_path / part).mkdir()
        for case, labelled in (("one", True), ("none", part == "found")):
            values = np.zeros((8, 8, 8), np.uint8)
            values[2:5] = labelled
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / part / f"{case}.nii.gz")
    printed = run("evaluate", tmp_path / "found", tmp_path / "true", "--quiet").stdout
    (row,) = (line.split() for line in printed.splitlines() if "label 1" in line)
    assert row == [*("label", "1", "1", "of", "2"), *("1.000", "0.0", "1.000"), *("1", "of", "1", "1")]


def test_evaluate_reads_regions_and_ignored_values(tmp_path):
    """From a dataset.json of nnU-Net. Without one, every value is a label."""
    for part in ("found", "true"):
        (tmp_path / part).mkdir()
        values = np.zeros((8, 8, 8), np.uint8)
        values[:4], values[:2] = 1, 2
        values[6:] = 3 if part == "true" else 1
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / part / "case.nii.gz")
    description = {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    folders = tmp_path / "found", tmp_path / "true"
    result = run("evaluate", *folders, "--labels", tmp_path / "dataset.json", "-o", tmp_path / "out", "--quiet")
    assert result.exit_code == 0
    overall = json.loads((tmp_path / "out" / "scores.json").read_text())["overall"]
    assert {name: one["dice_with"] for name, one in overall.items()} == {"whole": 1.0, "core": 1.0}
    assert "label 3" in run("evaluate", *folders, "--quiet").stdout
    result = run("evaluate", *folders, "--labels", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere: does not exist; give a dataset.json, or the folder" in result.stderr

    description["regions_class_order"] = [2, 1]
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    result = run("evaluate", *folders, "--labels", tmp_path / "dataset.json")
    assert result.exit_code == 2
    (line,) = lines(result)
    assert line.startswith(
        f"attn3d evaluate: {tmp_path / 'dataset.json'}: `regions_class_order` [2, 1] writes 1 for 'core'"
    )


def test_a_table_wider_than_the_terminal_has_all_columns(monkeypatch):
    """A pipe or a log has 80 columns. Digits must not be cut."""
    from attn3d import segmentation

    names = [f"structure number {index}" for index in range(12)]
    volumes = {"a case with a long name": {name: 1234.5 + index for index, name in enumerate(names)}}
    monkeypatch.setattr(segmentation, "predict", lambda *_, **__: segmentation.Prediction({}, {}, {}, volumes, {}))
    monkeypatch.setenv("COLUMNS", "80")
    printed = run("predict", "run", "-i", "scans", "-o", "found", "--statistics").stdout
    (heading,) = (line for line in printed.splitlines() if "Case" in line)
    (row,) = (line for line in printed.splitlines() if "long name" in line)
    assert all(name in heading for name in names)
    assert row.split()[-12:] == [f"{1234.5 + index:.1f}" for index in range(12)]


def test_small_volumes_are_not_zero(monkeypatch):
    from attn3d import segmentation

    volumes = {"one": {"lesion": 0.04, "brain": 1234.56, "nothing": 0.0}}
    monkeypatch.setattr(segmentation, "predict", lambda *_, **__: segmentation.Prediction({}, {}, {}, volumes, {}))
    assert re.search(
        r"one +0\.04 +1234\.6 +0\.0", run("predict", "run", "-i", "scans", "-o", "out", "--statistics").stdout
    )


def test_scores_of_simulated_scans_say_so(tmp_path, monkeypatch):
    from attn3d import segmentation

    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:5] = 1
    for part in ("found", "labelsTr"):
        (tmp_path / part).mkdir()
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / part / "case.nii.gz")
    folders = tmp_path / "found", tmp_path / "labelsTr"
    assert "simulated" not in run("evaluate", *folders, "--quiet").stdout
    (tmp_path / "dataset.json").write_text(json.dumps({"simulated": {"seed": 0}}))
    assert "All cases (simulated)" in run("evaluate", *folders, "-o", tmp_path, "--quiet").stdout
    trained = SimpleNamespace(finished=True, scores=tmp_path / "scores.json", folder=tmp_path)
    monkeypatch.setattr(segmentation, "train", lambda *_, **__: trained)
    printed = run("train", "--out", "new").stdout
    assert "Held-out cases (simulated)" in printed
    assert printed.count("(simulated)") == 1
