"""Prints a reproducible random sample of mutants: mutmut run $(python -m tests.mutants 400)

mutmut must have generated its mutants before, as any run of it does.
"""

import json
import random
import sys
from pathlib import Path


def main(count: int) -> None:
    """Prints the names of `count` mutants."""
    files = [*Path("mutants").rglob("*.meta")]
    if not files:
        sys.exit("there are no mutants yet; run mutmut once, such as `mutmut run 'attn3d.layers.gating.*'`")
    names = sorted(name for file in files for name in json.loads(file.read_text()).get("exit_code_by_key", {}))
    print(*sorted(random.Random(0).sample(names, count)), sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
