"""A batch over two processes: each case is processed once, and results are printed once."""

import csv
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import distributed

from attn3d.segmentation import predict, processes
from tests.segmentation.runs import SHAPE, bright, make_run, save
from tests.segmentation.volumes import AFFINES, scan

OPTIONS = ["--statistics", "--uncertainty", "--quiet"]


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """The results of batch_worker.py in each of its two processes."""
    folder = tmp_path_factory.mktemp("batches")
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # like the store of torchrun
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.segmentation.batch_worker", str(folder)]
    started = [subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank)}) for rank in range(2)]
    try:
        codes = [one.wait(timeout=300) for one in started]
    finally:
        for one in started:
            one.kill()
    assert codes == [0, -9]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("batch", ["shared", "again"])
def test_each_case_is_processed_once(batch, batches):
    first, second = batches[0][batch]
    assert batches[1][batch] == [first, second]
    assert sorted(first + second) == list(range(20))
    assert first == sorted(first)


def test_an_error_in_one_process_is_raised_in_all_and_printed_by_the_first(batches):
    assert [one["disagreed"] for one in batches] == [
        ["FileError", "there.nii.gz: is torn"],
        ["ReportedByFirst", "there.nii.gz: is torn"],
    ]


def test_an_existing_process_group_is_kept(batches):
    assert batches[0]["after training"] == batches[1]["after training"]
    first, second, there = batches[0]["after training"]
    assert sorted(first + second) == [0, 1, 2, 3]
    assert there


def test_waiting_for_a_silent_process_times_out(batches):
    assert batches[0]["silent"].startswith(
        "another process of the batch ended, or did not answer for 5 seconds; finished"
    )


def test_after_a_process_is_killed_the_other_cases_are_done(batches):
    """The loss is reported long before the timeout."""
    taken, message = batches[0]["killed"]
    assert taken == [1, 2, 3, 4, 5]
    assert message.startswith("another process of the batch ended")


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "attn3d"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def test_two_processes_predict_the_same_as_one_and_print_it_once(tmp_path):
    """Some scans cannot be used; for one of them, only the process that reads it finds out."""
    run = make_run(tmp_path / "run")
    run.write_network(run.new_network())
    blocks = {f"case{size}": bright(size=(size, size, 4))[0] for size in range(4, 9)}
    scans = save(tmp_path / "scans", flat=np.zeros(SHAPE, np.float32), **blocks)
    (scans / "torn.nii.gz").write_bytes(b"torn")
    alone = predict(run.folder, scans, tmp_path / "alone", uncertainty=True, statistics=True, quiet=True)
    result = torchrun("predict", run.folder, "-i", scans, "-o", tmp_path / "out", *OPTIONS)
    assert result.returncode == 1, result.stderr[-3000:]
    assert result.stdout.count("segmented, in") == 1
    assert "5 scans segmented, in" in result.stdout
    said = [line for line in result.stderr.splitlines() if line.startswith("attn3d predict: ")]
    assert said == [f"attn3d predict: {path}: {problem}" for path, problem in alone.failed.items()]
    assert [path.rsplit("/", 1)[1] for path in alone.failed] == ["flat.nii.gz", "torn.nii.gz"]
    for name in ("statistics.csv", "uncertainty.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        assert [row["case"] for row in csv.DictReader((tmp_path / "out" / name).open())] == sorted(blocks)
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in (name for name in names if name.endswith(".nii.gz")):
        one, other = (nib.load(tmp_path / folder / name).get_fdata() for folder in ("alone", "out"))
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.nightly
def test_an_input_error_is_printed_once(tmp_path):
    (tmp_path / "scans").mkdir()
    nib.save(scan(bright()[0], AFFINES["RAS"]), tmp_path / "scans" / "one.nii.gz")
    result = torchrun("predict", tmp_path / "run", "-i", tmp_path / "scans", "-o", tmp_path / "out", *OPTIONS)
    assert result.returncode == 1, "torchrun exits with 1, whatever the exit code of attn3d"
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("attn3d predict: ")]
    assert "config.json: does not exist" in line


@pytest.mark.parametrize(("place", "gpu"), [({"LOCAL_RANK": "1", "RANK": "5"}, 1), ({"RANK": "5"}, 2), ({}, 0)])
def test_each_process_of_a_machine_takes_its_own_gpu(place, gpu, monkeypatch):
    taken = []
    for name in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    processes._take_gpu()
    assert taken == [gpu]
