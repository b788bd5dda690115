#!/usr/bin/env bash
# Writing a DICOM slice with SimpleITK leaves the whole process in the locale "C".
#
# SimpleITK 2.5.7 (its GDCM), Linux. A slice without a position is written and the locale stays. With the tag
# Image Position (Patient), as every CT and MR slice has it, the process is in the locale "C" afterwards, numbers and
# characters both. Python's open() takes the encoding of text from there, so a report written next cannot hold "mm³".
# Reading the slice changes nothing. Whoever uses SimpleITK's writer has to put the locale back, and to name encodings.
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
