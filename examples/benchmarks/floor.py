"""The bytes that a mechanism must move, whoever writes it: how often something of its map's size is read or written.

What does not wait for anything else shares one pass over the map, what can be computed anew is not stored, and what is
small (a value per channel or per voxel) costs nothing. Times the size of the map over the bandwidth of a copy of the
same size, that is the least time of a forward and a backward pass. The case of each mechanism counts its passes.
"""

from tests.mechanisms.cases import CASES

PASSES = {name: case.floor for name, case in CASES.items()}
