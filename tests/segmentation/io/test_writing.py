"""Writing of files: complete or not at all, errors with the file name, locks, and removal of leftovers."""

import csv
import errno
import json
import os
import platform
import subprocess
import sys

import pandas as pd
import pytest

from attn3d.segmentation import FileError, finished_file
from attn3d.segmentation.errors import failing_as, failure_noted
from attn3d.segmentation.io import writing
from attn3d.segmentation.io.locks import LOCK, locked
from attn3d.segmentation.io.writing import finished_folder, read_json, read_table, sweep, write_json, write_table


def dead_process():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("wrong")])
def test_a_failed_write_keeps_the_old_file(failure, tmp_path):
    path = tmp_path / "result.json"
    path.write_text("before")

    def write():
        with finished_file(path) as unfinished:
            unfinished.write_text("half")
            raise failure

    with pytest.raises(type(failure)) as raised:
        write()
    if isinstance(failure, OSError):
        assert raised.value.filename == str(path), "the error must name the file"
        assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "before"
    with finished_file(path) as unfinished:
        unfinished.write_text("whole")
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["result.json"]


def test_temporary_names_are_short_and_not_in_errors(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    write_table(path, pd.DataFrame({"a": []}))
    assert names(tmp_path) == [path.name]
    missing = tmp_path / "nowhere" / "result.csv"
    with pytest.raises(FileNotFoundError) as raised:
        write_table(missing, pd.DataFrame({"a": []}))
    assert raised.value.filename == str(missing)
    with pytest.raises(FileNotFoundError) as raised, finished_folder(tmp_path / "folder") as unfinished:
        (unfinished / "none" / "file").write_text("")
    assert raised.value.filename == str(tmp_path / "folder" / "none" / "file")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_sets_the_permissions(umask, tmp_path):
    before = os.umask(umask)
    try:
        with finished_file(tmp_path / "file") as unfinished:
            unfinished.touch(0o600)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_is_written_completely_or_not_at_all(tmp_path):
    def write(failure=None):
        with finished_folder(tmp_path / "cohort") as unfinished:
            (unfinished / "one").touch()
            if failure is not None:
                raise failure

    with pytest.raises(ValueError, match="wrong"):
        write(ValueError("wrong"))
    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert names(tmp_path) == []
    (tmp_path / "cohort").mkdir()
    write()
    assert names(tmp_path / "cohort") == ["one"]
    assert names(tmp_path) == ["cohort"]


def test_a_folder_with_content_is_not_replaced(tmp_path):
    """Not even at a path through a missing folder, where the operating system reports that nothing exists."""
    kept = tmp_path / "kept" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    for path in (tmp_path / "kept", tmp_path / "none" / ".." / "kept", kept):
        with pytest.raises(OSError, match=r"not empty|Not a directory") as raised, finished_folder(path) as unfinished:
            (unfinished / "one").touch()
        assert raised.value.filename == str(path.resolve())
    assert kept.read_text() == "mine"
    assert names(tmp_path) == ["kept"]


def test_long_names_of_several_bytes_per_character(tmp_path):
    path = tmp_path / ("名" * 75 + ".nii.gz")
    write_table(path, pd.DataFrame({"a": []}))
    assert names(tmp_path) == [path.name]


def test_a_machine_may_have_hyphens_in_its_name(tmp_path, monkeypatch):
    """As names in other scripts do. This process counts as an earlier one."""
    monkeypatch.setattr(platform, "node", lambda: "xn--bcher-kva")
    writing._temporary(tmp_path / "cohort").mkdir()
    writing._temporary(tmp_path / "a.csv").touch()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_only_files_of_ended_processes_are_swept(tmp_path):
    here, dead = platform.node(), dead_process()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for name in (f"{here}@{dead}-a.csv", f"{here}@{process.pid}-a.csv", f"elsewhere@{dead}-a.csv"):
            (tmp_path / f".unfinished-{name}").touch()
        (tmp_path / f".unfinished-{here}@{dead}-folder[1]").mkdir()
        (tmp_path / "mine").touch()
        sweep(tmp_path)
        assert names(tmp_path) == [
            f".unfinished-elsewhere@{dead}-a.csv",
            f".unfinished-{here}@{process.pid}-a.csv",
            "mine",
        ]
        sweep(tmp_path, alone=True)
        assert names(tmp_path) == ["mine"]
    finally:
        process.communicate(b"\n")


def test_a_folder_has_one_owner_and_errors_name_it(tmp_path):
    code = "import sys; from attn3d.segmentation.io.locks import locked\n"
    code += "with locked(sys.argv[1]): print('here', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(ValueError, match=f"is in use by process {process.pid} on "), locked(tmp_path / "run"):
            pass
    finally:
        process.kill()
        process.communicate()
    assert names(tmp_path / "run") == [LOCK]
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} ")
    assert names(tmp_path / "run") == []
    with locked(tmp_path / "new"):
        pass
    assert names(tmp_path) == ["run"], "an empty folder must be removed"


def test_formulas_and_names_that_are_not_utf8_are_escaped(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    rows = [["=1+1", -1.5], ["-a", None], ["a=b", "+"], [odd, 1]]
    write_table(tmp_path / "table.csv", pd.DataFrame(rows, columns=["@case", "ml"], dtype=object))
    rows = list(csv.reader((tmp_path / "table.csv").open(encoding="utf-8")))
    assert rows == [["'@case", "ml"], ["'=1+1", "-1.5"], ["'-a", ""], ["a=b", "'+"], ["caf\\udce9", "1"]]
    write_json(tmp_path / "names.json", {odd: 1})
    assert read_json(tmp_path / "names.json") == {odd: 1}


def test_json_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8-sig")  # as editors on Windows write it
    assert read_json(tmp_path / "dataset.json") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON: .*recursion"),
        (b"\xff", "is not valid JSON"),
        ("{}", "has no 'overall'"),
        ("3", "has no 'overall'"),
    ],
)
def test_invalid_json_is_named(content, message, tmp_path):
    (tmp_path / "scores.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError, match=f"scores.json: {message}"):
        read_json(tmp_path / "scores.json", "overall")
    with pytest.raises(FileError, match=r"none\.json: is gone"):
        read_json(tmp_path / "none.json", missing="is gone")


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (FileError("label.nii", "is empty"), {"label.nii": "is empty"}),
        (ValueError("is\n not right"), {"scan.nii": "is not right"}),
        (RuntimeError("deviation 0"), {"scan.nii": "RuntimeError: deviation 0"}),
        (OSError(36, "File name too long", "out.nii"), {"out.nii": "File name too long"}),
        (MemoryError(), {"scan.nii": "MemoryError: "}),
    ],
)
def test_an_exception_is_noted_for_its_case(error, noted):
    failed = {}
    with failure_noted("scan.nii", failed):
        raise error
    assert failed == noted
    ((path, problem),) = noted.items()
    with pytest.raises(FileError) as raised, failing_as("scan.nii"):
        raise error
    assert (str(raised.value.path), raised.value.problem) == (path, problem)


def test_keyboard_interrupt_is_not_caught():
    with pytest.raises(KeyboardInterrupt), failure_noted("scan.nii", {}):
        raise KeyboardInterrupt


def test_tables_have_a_row_of_numbers_for_each_case(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, pd.DataFrame([["001", 1, 0.1], ["NA", 2, None]], columns=["case", "epoch", "dice"]))
    assert path.read_text() == "case,epoch,dice\n001,1,0.1\nNA,2,\n"
    table = read_table(path)
    assert table["case"].tolist() == ["001", "NA"]
    assert table["epoch"].tolist() == [1.0, 2.0]
    assert table["dice"].isna().tolist() == [False, True]
    for content in (b"", b"case,ml\na,much", b"\xff\xfe", b"a,b\n1,2,3\n4,5,6,7"):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"table\.csv: is not a table of numbers: "):
            read_table(path)
    with pytest.raises(FileError, match=r"none\.csv: is gone"):
        read_table(tmp_path / "none.csv", "is gone")


def test_json_is_plain(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}


def test_files_of_an_earlier_process_with_our_id_are_swept(tmp_path):
    """Process ids are reused, especially in containers; this process has no unfinished files yet."""
    (tmp_path / f".unfinished-{platform.node()}@{os.getpid()}-a.csv").touch()
    sweep(tmp_path)
    assert names(tmp_path) == []
