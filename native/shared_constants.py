"""Write the C++ header of the numbers that Python and C++ share; the build runs this, with no package but Python's own.

Usage: python native/shared_constants.py src/splatopt HEADER
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

SHARED = {
    "core/constants.py": {
        "SH_C0": "kSh0",
        "SH_C1": "kSh1",
        "SH_C2": "kSh2",
        "SH_C3": "kSh3",
        "MAX_LOG_SCALE": "kMaxLogScale",
        "MAX_LOG_RATIO": "kMaxLogRatio",
        "MAX_COORDINATE": "kMaxCoordinate",
    },
    "raster/constants.py": {"SSIM_WINDOW": "kWindow"},
    "meta/constants.py": {
        "ROW_FEATURES": "kRowFeatures",
        "AGES": "kAges",
        "MIN_SQUARE": "kMinSquare",
        "MAX_LOG_GATE": "kMaxLogGate",
        "TILE_OUTPUTS": "kTileOutputs",
        "LANES": "kLanes",
    },
}
"""The shared numbers' names in C++, by file of the package and name in Python."""


def shared_numbers(package: Path) -> dict[str, int | float | tuple[float, ...]]:
    """Return the numbers by their names in C++.

    Args:
        package: The folder of the package's sources.
    """
    numbers = {}
    for file, names in SHARED.items():
        found = runpy.run_path(str(package / file))
        numbers |= {in_cpp: found[name] for name, in_cpp in names.items()}
    return numbers


def header(numbers: dict[str, int | float | tuple[float, ...]]) -> str:
    """Return the header: integers as int, others as the float32 nearest to Python's, and all of them listed."""
    lines = ["// Made by native/shared_constants.py from the package's sources.", "#pragma once", ""]
    lines += ["namespace splatopt {", ""]
    listed = []
    for name, value in numbers.items():
        if isinstance(value, tuple):
            entries = ", ".join(f"static_cast<float>({entry!r})" for entry in value)
            lines.append(f"constexpr float {name}[{len(value)}] = {{{entries}}};")
            listed += [f'{{"{name}", {name}[{i}]}}' for i in range(len(value))]
        else:
            lines.append(
                f"constexpr int {name} = {value};"
                if isinstance(value, int)
                else f"constexpr float {name} = static_cast<float>({value!r});"
            )
            listed.append(f'{{"{name}", {name}}}')
    entries = ",\n    ".join(listed)
    lines += ["", "// The entries of arrays one after the other, under one name.", "struct SharedNumber {"]
    lines += ["    const char* name;", "    double value;", "};"]
    lines += [f"constexpr SharedNumber kSharedNumbers[] = {{\n    {entries}}};", "", "}  // namespace splatopt", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    package, out = map(Path, sys.argv[1:])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(header(shared_numbers(package)))
