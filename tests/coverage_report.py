"""Which branches of the library no test takes: ``python -m tests.coverage_report coverage.json``.

From ``python -m pytest --cov --cov-report=json`` it writes docs/figures/coverage.json, where what was found out about
a function that is not reached whole stays until it is.
"""

import json
import sys
from pathlib import Path
from typing import Any

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "coverage.json"
COMMAND = "python -m pytest --cov --cov-report=json && python -m tests.coverage_report coverage.json"
NOT_LOOKED_AT = "not looked at"


def missing(region: dict[str, Any]) -> list[str]:
    """The lines that do not run, and of those that do the branches not taken, as "12" and "12->15"."""
    lines = region["missing_lines"]
    branches = [
        f"{start}->{'exit' if end < 0 else end}"
        for start, end in region["missing_branches"]
        if start not in lines and end not in lines
    ]
    return [*map(str, lines), *branches]


def summary(measured: dict[str, Any], findings: dict[tuple[str, str], str]) -> dict[str, Any]:
    """What is written.

    Args:
        measured: the report of coverage as JSON.
        findings: why the functions of an earlier report are not reached, by file and name.
    """
    files = measured["files"]
    totals = measured["totals"]
    unreached = [
        {"file": path, "function": name or "of the file", "lines": missing(region)}
        | {"why": findings.get((path, name or "of the file"), NOT_LOOKED_AT)}
        for path, of_file in files.items()
        for name, region in of_file["functions"].items()
        if missing(region)
    ]
    return {
        "command": COMMAND,
        "branch_percent": round(100 * totals["covered_branches"] / totals["num_branches"], 2),
        "line_percent": round(100 * totals["covered_lines"] / totals["num_statements"], 2),
        "files": {
            path: {"percent": round(of_file["summary"]["percent_covered"], 1), "missing": missing(of_file)}
            for path, of_file in files.items()
        },
        "unreached": unreached,
    }


def main(report: str) -> None:
    """Writes the figure.

    Args:
        report: the file that coverage wrote.
    """
    known = json.loads(FIGURE.read_text())["unreached"] if FIGURE.exists() else []
    findings = {(one["file"], one["function"]): one["why"] for one in known}
    found = summary(json.loads(Path(report).read_text()), findings)
    FIGURE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['branch_percent']} % of the branches, {found['line_percent']} % of the lines")


if __name__ == "__main__":
    main(*sys.argv[1:])
