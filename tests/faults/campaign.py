"""A campaign of faults for as long as one likes: kills, and whatever else the tests beside this file can count.

``python tests/faults/campaign.py --hours 1`` ends with 1 where anything went wrong, and prints counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
OTHERS = ("faults.run_file_campaign", "faults.reader_campaign")
"""Programs that damage COUNT files by SEED, print their counts as JSON, and end with 1 where anything failed."""

_ROUND = 500
_SHARE_OF_KILLS = 0.7


def counted(program: str, *words: str) -> tuple[dict, bool]:
    """Run one of the campaigns, a process of its own; returns its counts, and whether nothing failed."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    ended = subprocess.run(
        [sys.executable, "-m", program, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not ended.stdout:
        raise RuntimeError(f"{program} ended with code {ended.returncode} and said nothing")
    return json.loads(ended.stdout), ended.returncode == 0


def kills(hours: float, seed: int, min_kills: int = 1) -> dict:
    """Return the counts of :mod:`faults.kills`."""
    words = ("--hours", str(hours), "--kills", str(min_kills), "--seed", str(seed))
    return counted("faults.kills", *words)[0]


def damages(program: str, hours: float, seed: int) -> tuple[list[dict], bool]:
    """Return the counts of rounds of one of OTHERS for so long, and whether nothing failed."""
    deadline, rounds, fine = time.monotonic() + 3600 * hours, [], True
    while not rounds or time.monotonic() < deadline:
        counts, whole = counted(program, str(_ROUND), str(seed + len(rounds)))
        rounds.append(counts)
        fine = fine and whole
    return rounds, fine


def main() -> int:
    """Run a campaign; 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="how long; 0 for one round of each")
    parser.add_argument("--seed", type=int, default=0, help="decides on everything")
    given = parser.parse_args()
    counts: dict = {"faults.kills": kills(_SHARE_OF_KILLS * given.hours, given.seed)}
    fine = not counts["faults.kills"]["faults"]
    for program in OTHERS:
        counts[program], whole = damages(program, (1 - _SHARE_OF_KILLS) * given.hours / len(OTHERS), given.seed)
        fine = fine and whole
    print(json.dumps(counts, indent=1))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
