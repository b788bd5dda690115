"""Every option of a command reaches the function that the command calls."""

import os
import signal
import time
from pathlib import Path

import pytest
import typer

from attn3d import segmentation
from attn3d.cli import app
from tests.test_cli import run

pytestmark = pytest.mark.usefixtures("signals")

CALLS = {
    "predict": (
        "run second -i scans -o new --statistics --preview --probabilities --uncertainty --dicom-seg --format mha "
        "--mirror 0,2 --best --overlap 0.25 --bf16 --keep-largest --remove-small 0.5 --overwrite --quiet",
        ([Path("run"), Path("second")], Path("scans"), Path("new")),
        dict.fromkeys(
            (
                "statistics",
                "preview",
                "probabilities",
                "uncertainty",
                "dicom_seg",
                "best",
                "bf16",
                "keep_largest",
                "overwrite",
                "quiet",
            ),
            True,
        )
        | {"format": "mha", "mirror": [0, 2], "overlap": 0.25, "remove_small": 0.5},
    ),
    "train": (
        "--data d --out new --config c --network UNet --attention eca --at skip,encoder --epochs 2 --minutes 3 "
        "--seed 4 --folds f.json --fold 5 --from w --resume --devices 6 --workers 7 --quiet",
        (Path("d"),),
        {
            "out": Path("new"),
            "config": Path("c"),
            "network": "UNet",
            "attention": "eca",
            "at": ["skip", "encoder"],
            "epochs": 2,
            "minutes": 3.0,
            "seed": 4,
            "folds": "f.json",
            "fold": 5,
            "start_from": Path("w"),
            "resume": True,
            "devices": 6,
            "workers": 7,
            "quiet": True,
        },
    ),
    "evaluate": (
        "p l -o new --labels labels --tolerance 1.5 --lesions --probabilities --overwrite --quiet",
        (Path("p"), Path("l"), Path("new")),
        {
            "labels": "read labels",
            "tolerance": 1.5,
            "lesions": True,
            "probabilities": True,
            "overwrite": True,
            "quiet": True,
        },
    ),
    "report": ("run --data d --overwrite", (Path("run"), Path("d")), {"overwrite": True}),
    "export": ("run -o new --format onnx", (Path("run"), Path("new")), {"format": "onnx"}),
    "simulate": ("-o new --cases 2 --seed 3 --quiet", (Path("new"), 2, 3), {"quiet": True}),
    "compare": (
        "--mechanisms se,eca -o new --at skip --seeds 2 --data d --config c --network UNet --epochs 3 --minutes 4 "
        "--workers 5 --quiet",
        (Path("d"),),
        {
            "out": Path("new"),
            "mechanisms": ["se", "eca"],
            "at": ["skip"],
            "seeds": 2,
            "config": Path("c"),
            "network": "UNet",
            "epochs": 3,
            "minutes": 4.0,
            "workers": 5,
            "quiet": True,
        },
    ),
}


@pytest.mark.parametrize("command", CALLS)
def test_every_option_reaches_the_function(command, monkeypatch):
    words, arguments, options = CALLS[command]
    called = []

    def fake(*given, **named):
        called.append((given, named))
        raise KeyboardInterrupt

    monkeypatch.setattr(segmentation, command, fake)
    monkeypatch.setattr(segmentation, "read_labels", lambda path: f"read {path}")
    result = run(command, *words.split())
    assert called == [(arguments, options)], result.output
    parameters = typer.main.get_command(app).commands[command].params
    missing = [one.name for one in parameters if one.param_type_name == "option" and not {*one.opts} & {*words.split()}]
    assert not missing, "an option without a test"


def test_the_options_of_plan_reach_the_function(monkeypatch):
    called = []

    def fake(*given, **named):
        called.append((given, named))
        raise KeyboardInterrupt

    monkeypatch.setattr("attn3d.planning.plan", fake)
    run("plan", *["--shape", "3", "4", "5", "--channels", "6", "--mechanism", "mhsa", "--memory", "2GiB"])
    assert called == [(((3, 4, 5), 6), {"mechanism": "mhsa", "memory": "2GiB"})]


def test_costs_of_the_list_depend_on_channels_and_shape():
    rows = set()
    for options in ("", "--channels 32", "--shape 16 32 32"):
        lines = run("list", *options.split()).stdout.splitlines()
        rows.update(line for line in lines if line.split()[:1] == ["se"])
    assert len(rows) == 3


def test_a_scheduler_stops_a_batch_like_ctrl_c(monkeypatch):
    def stopped(*_, **__):
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "it would end this process"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(segmentation, "predict", stopped)
    assert run("predict", "run", "-i", "scans", "-o", "out").exit_code == 130
