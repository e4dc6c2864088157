"""A campaign of faults for as long as one likes: kills, and whatever else the tests beside this file can count.

``python tests/faults/campaign.py --hours 1`` ends with 1 where anything went wrong, and prints counts.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
OTHERS = ("faults.test_run_files", "faults.test_readers")
"""Tests with a function ``campaign(count, seed)`` that tries so many damaged files and returns its counts by name."""

_ROUND = 500
_SHARE_OF_KILLS = 0.7


def kills(hours: float, seed: int, least: int = 1) -> dict:
    """Return the counts of :mod:`faults.kills`, which runs as a process of its own."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = subprocess.run(
        [sys.executable, "-m", "faults.kills", "--hours", str(hours), "--kills", str(least), "--seed", str(seed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not ended.stdout:
        raise RuntimeError(f"the campaign of kills ended with code {ended.returncode} and said nothing")
    return json.loads(ended.stdout)


def others(hours: float, seed: int) -> dict:
    """Return the counts of OTHERS, as far as there are any, each for an even share of the time."""
    found = [name for name in OTHERS if importlib.util.find_spec(name)]
    counts = {}
    for name in found:
        deadline, number = time.monotonic() + 3600 * hours / len(found), 0
        counts[name] = []
        while number == 0 or time.monotonic() < deadline:
            counts[name].append(importlib.import_module(name).campaign(_ROUND, seed + number))
            number += 1
    return counts


def main() -> int:
    """Run a campaign; 1 where there was a fault. What OTHERS find, they raise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="how long; 0 for one round of each")
    parser.add_argument("--seed", type=int, default=0, help="decides on everything")
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    counts = {"faults.kills": kills(_SHARE_OF_KILLS * given.hours, given.seed)}
    counts |= others((1 - _SHARE_OF_KILLS) * given.hours, given.seed)
    print(json.dumps(counts, indent=1))
    return 1 if counts["faults.kills"]["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
