"""The number of passes over the map (reads or writes of its size) that every implementation of a mechanism needs.

Operations that do not wait for each other share one pass, results that can be recomputed are not stored, and tensors
with one value per channel or per voxel are not counted. The number of passes, times the size of the map, divided by the
bandwidth of a copy of this size, is the minimum time of a forward and a backward pass. The test case of each mechanism
lists its passes.
"""

from tests.mechanisms.cases import CASES

PASSES = {name: case.floor for name, case in CASES.items()}
