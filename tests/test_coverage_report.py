"""The report of what no test reaches, on a planted measurement."""

from tests.coverage_report import NOT_LOOKED_AT, missing, summary

REGION = {"missing_lines": [4, 5], "missing_branches": [[2, 4], [4, 5], [7, -1]]}
WHOLE = {"missing_lines": [], "missing_branches": []}
MEASURED = {
    "totals": {"covered_branches": 5, "num_branches": 8, "covered_lines": 9, "num_statements": 12},
    "files": {
        "a.py": REGION | {"summary": {"percent_covered": 66.66}, "functions": {"f": REGION, "g": WHOLE, "": WHOLE}},
        "b.py": WHOLE | {"summary": {"percent_covered": 100.0}, "functions": {"h": WHOLE}},
    },
}


def test_a_branch_of_a_line_that_does_not_run_is_not_told_twice():
    """Nor one that leads to such a line."""
    assert missing(REGION) == ["4", "5", "7->exit"]


def test_the_share_is_that_of_the_branches():
    found = summary(MEASURED, {})
    assert found["branch_percent"] == 62.5
    assert found["line_percent"] == 75.0
    assert found["files"]["a.py"] == {"percent": 66.7, "missing": missing(REGION)}
    assert found["files"]["b.py"] == {"percent": 100.0, "missing": []}


def test_what_was_found_out_about_a_function_stays():
    lines = {"file": "a.py", "function": "f", "lines": missing(REGION)}
    assert summary(MEASURED, {("a.py", "f"): "needs a GPU"})["unreached"] == [lines | {"why": "needs a GPU"}]
    assert summary(MEASURED, {("a.py", "g"): "nothing"})["unreached"] == [lines | {"why": NOT_LOOKED_AT}]
