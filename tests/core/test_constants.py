"""The numbers that Python and the native module share."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest

import splatopt
from splatopt.core import native
from splatopt.core.constants import SH_C0, SH_C1, SH_C2, SH_C3
from splatopt.meta.constants import ROW_FEATURES
from splatopt.raster.constants import SSIM_WINDOW

MAKER = runpy.run_path(str(Path(__file__).parents[2] / "native" / "shared_constants.py"))


@pytest.mark.skipif(not native.available(), reason="the native module is not built")
def test_the_native_module_was_compiled_with_these_numbers() -> None:
    expected = MAKER["shared_numbers"](Path(splatopt.__file__).parent)
    module = native.load()
    assert module is not None
    found = module.shared_constants()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        numbers = value if isinstance(value, tuple) else (value,)
        assert found[name] == [float(np.float32(number)) for number in numbers], f"{name}: build the module anew"
    assert found["kSh0"] == [float(np.float32(SH_C0))]
    assert (found["kWindow"], found["kRowFeatures"]) == ([SSIM_WINDOW], [ROW_FEATURES])


def test_the_header_holds_integers_and_the_nearest_floats() -> None:
    header = MAKER["header"]({"kOne": 1, "kTenth": 0.1, "kTwo": (1.5, -2.0)})
    assert "constexpr int kOne = 1;" in header
    assert "constexpr float kTenth = static_cast<float>(0.1);" in header
    assert "constexpr float kTwo[2] = {static_cast<float>(1.5), static_cast<float>(-2.0)};" in header
    assert '{"kTwo", kTwo[0]},\n    {"kTwo", kTwo[1]}};' in header


def test_the_factors_of_the_spherical_harmonics_are_their_closed_forms() -> None:
    def over_pi(numerator: float, denominator: float) -> float:
        return math.sqrt(numerator / (denominator * math.pi))

    assert pytest.approx(over_pi(1, 4), abs=1e-15) == SH_C0
    assert pytest.approx(over_pi(3, 4), abs=1e-15) == SH_C1
    second = over_pi(15, 4), -over_pi(15, 4), over_pi(5, 16), -over_pi(15, 4), over_pi(15, 16)
    assert pytest.approx(second, abs=1e-15) == SH_C2
    ends, middle = over_pi(35, 32), over_pi(21, 32)
    third = -ends, over_pi(105, 4), -middle, over_pi(7, 16), -middle, over_pi(105, 16), -ends
    assert pytest.approx(third, abs=1e-15) == SH_C3
