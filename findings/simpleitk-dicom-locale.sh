#!/usr/bin/env bash
# Writing a DICOM slice with SimpleITK changes the locale of the whole process to "C".
#
# SimpleITK 2.5.7 (its GDCM), Linux. Writing a slice without a position does not change the locale. If the slice has the
# tag Image Position (Patient), like every CT and MR slice, the locale of the process is "C" afterwards, for numbers and
# characters. Python's open() takes its default encoding from the locale, so a report that is written next cannot contain
# "mm³". Reading the slice does not change the locale. Workaround: restore the locale, and pass encodings explicitly.
#
# Seen:
#   before            C.UTF-8 UTF-8
#   without position  C.UTF-8 UTF-8
#   with position     C ANSI_X3.4-1968
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q SimpleITK==2.5.7
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import locale

import SimpleITK as sitk


def state():
    with open("a.txt", "w") as file:
        return locale.setlocale(locale.LC_ALL), file.encoding


locale.setlocale(locale.LC_ALL, "C.UTF-8")
before = state()
print("before", *before)
image = sitk.Image(4, 4, sitk.sitkInt16)
sitk.WriteImage(image, "without.dcm")
print("without position", *state())
assert state() == before
image.SetMetaData("0020|0032", "0\\0\\5")
sitk.WriteImage(image, "with.dcm")
print("with position", *state())
assert state()[0] == "C" and state()[1].upper() != "UTF-8", "the behaviour has changed"
locale.setlocale(locale.LC_ALL, "C.UTF-8")
sitk.ReadImage("with.dcm")
assert state() == before, "reading changes it too now"
END
