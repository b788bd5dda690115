"""Tests all faults: ``python -m tests.faults --json docs/figures/faults.json``; ``--points 2`` tests a part of them."""

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from attn3d import segmentation
from tests.faults.odd import KINDS, odd_inputs
from tests.faults.process import command
from tests.faults.scenes import SCENES, TRAIN, write_inputs
from tests.faults.series import real_series
from tests.faults.sweeps import Row, full_disks, kills


def main() -> int:
    """Returns the exit code: 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the counts to")
    parser.add_argument("--points", type=int, help="number of points to test in each row, spread evenly [all]")
    parser.add_argument("--only", nargs="+", default=[scene.name for scene in SCENES], help="commands to test")
    parser.add_argument("--no-odd", action="store_true", help="leave the odd inputs out")
    parser.add_argument("--series", type=Path, help="folders of DICOM files to compare with dcm2niix")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in segmentation.__all__:
        getattr(segmentation, name)  # imports it once here, and not in every fork
    words = " ".join(["python -m tests.faults", *sys.argv[1:]])
    rows: list[Row] = []

    def keep(row: Row) -> None:
        print(f"{row.what}: {row.tried} tried, {row.recovered} recovered, {row.refused} refused, {row.wrong} wrong")
        for problem in row.problems:
            print(f"  {problem}", flush=True)
        rows.append(row)
        if options.json:
            found = {"command": words, "date": date.today().isoformat(), "rows": [one._asdict() for one in rows]}
            options.json.write_text(json.dumps(found, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder).resolve() / "inputs"
        write_inputs(inputs)
        trained = command(TRAIN, inputs)
        if trained.code:
            sys.exit(f"the training without faults failed: {trained.said}")
        (inputs / "run").rename(inputs / "trained")
        for scene in SCENES:
            if scene.name in options.only:
                for fault in (kills, full_disks):
                    keep(fault(scene, inputs, options.points))
        for kind in KINDS if not options.no_odd else ():
            keep(odd_inputs(kind, inputs, options.points))
    if options.series:
        keep(real_series(options.series))
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
