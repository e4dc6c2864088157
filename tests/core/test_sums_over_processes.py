"""What two processes of gloo tell each other."""

from __future__ import annotations

import pytest

from core.process_group import finish, start

ASK = """
import torch
from splatopt.core.processes import find_launch, join
processes = join(find_launch(), 60)
found = torch.tensor([[0.5, -1.0, 2.0], [0.25, -3.0, 7.5]][processes.rank])
masks = torch.tensor([[True, False], [False, False]][processes.rank])
processes.max([found])
processes.any([masks])
print(found.tolist(), masks.tolist())
processes.leave()
"""


@pytest.mark.slow
def test_two_processes_have_the_greatest_of_both() -> None:
    for code, said, problem in finish(start(2, ["-c", ASK])):
        assert code == 0, problem
        assert said.strip() == "[0.5, -1.0, 7.5] [True, False]"
