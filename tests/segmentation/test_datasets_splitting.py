import json
from pathlib import Path

import pytest

from attn3d.segmentation import FileError
from attn3d.segmentation.datasets import Case, read_fold, split_cases

CASES = [Case(f"{number:02d}", (Path(f"{number}.nii.gz"),)) for number in range(10)]


def test_a_split_holds_out_whole_cases_and_is_the_same_in_any_order():
    training, validation = split_cases(CASES, 0.3, seed=1)
    assert (len(training), len(validation)) == (7, 3)
    assert sorted(case.name for case in training + validation) == [case.name for case in CASES]
    assert split_cases(CASES[::-1], 0.3, seed=1) == (training, validation)
    others = {tuple(split_cases(CASES, 0.3, seed=seed)[1]) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(("count", "held_out"), [(2, 0.01), (2, 0.99), (3, 0.1), (10, 0.99)])
def test_both_parts_of_a_split_have_a_case(count, held_out):
    training, validation = split_cases(CASES[:count], held_out)
    assert training
    assert validation
    assert len(training) + len(validation) == count


@pytest.mark.parametrize(
    ("cases", "held_out", "says"),
    [(CASES, 0.0, "`held_out` must be"), (CASES, 1.0, "`held_out` must be"), (CASES[:1], 0.5, "at least 2.*got 1")],
)
def test_an_impossible_split_is_refused(cases, held_out, says):
    with pytest.raises(ValueError, match=says):
        split_cases(cases, held_out)


def test_an_unknown_case_to_hold_out_is_refused():
    with pytest.raises(ValueError, match="`validation` must name some of the 10 cases, got 'typo'"):
        split_cases(CASES, validation={"00", "typo"})


def test_a_fraction_and_a_fold_must_be_numbers(tmp_path):
    with pytest.raises(TypeError, match=r"`held_out` must be a finite number.*, got '0\.2'"):
        split_cases(CASES, "0.2")
    path = tmp_path / "splits.json"
    path.write_text('[{"train": ["00"], "val": ["01"]}]')
    with pytest.raises(TypeError, match="`fold` must be an integer, got '0'"):
        read_fold(path, "0", CASES)


def test_given_folds_are_used(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["00", "01"], "val": ["02"]}, {"train": ["02"], "val": ["01", "00"]}]))
    training, validation = read_fold(path, 1, CASES)
    assert [case.name for case in training] == ["02"]
    assert [case.name for case in validation] == ["01", "00"]


def test_a_missing_fold_is_refused(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text('[{"train": ["00"], "val": ["01"]}]')
    with pytest.raises(FileError, match=r"splits\.json: has the folds 0 to 0, got 1"):
        read_fold(path, 1, CASES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ("[{", "is not valid JSON"),
        ("{}", "a list with a split for each fold"),
        ("[]", "a list with a split for each fold"),
        ('["train"]', "must name cases in `train` and in `val`"),
        ('[{"train": ["00"], "val": []}]', "must name cases in `train` and in `val`"),
        ('[{"train": ["00"], "val": ["x"]}]', "has the unknown case 'x'; the data set has 10 cases"),
        ('[{"train": ["00", "01"], "val": ["01"]}]', "'01' twice; name a case once, in `train` or in `val`"),
        ('[{"train": ["00", "00"], "val": ["01"]}]', "'00' twice; name a case once, in `train` or in `val`"),
        ('[{"train": [{"image": "00"}], "val": ["01"]}]', "unknown case {'image': '00'}"),
    ],
)
def test_folds_that_do_not_fit_are_refused(tmp_path, content, says):
    path = tmp_path / "splits.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileError, match=says) as error:
        read_fold(path, 0, CASES)
    assert str(error.value).startswith(str(path))
