"""Photographs on a device: fetched ahead by one thread, kept within a budget, errors where they are asked for."""

from __future__ import annotations

import threading

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.data.prefetch import DeviceImages

SIZE = 4 * 5 * 3


class Host:
    """Photographs whose value is their index; notes who asks, and may be held up."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()

    def __getitem__(self, index: int) -> torch.Tensor:
        self.open.wait(10)
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        if index == 13:
            raise InputError("image 13.png is truncated")
        return torch.full((4, 5, 3), index, dtype=torch.uint8)


@pytest.fixture
def host():
    return Host()


def make(host: Host, images: int = 3, device: str = "cpu") -> DeviceImages:
    return DeviceImages(host, torch.device(device), images * SIZE)


def test_what_is_expected_is_fetched_by_one_other_thread_in_order(host):
    images = make(host)
    images.expect((4, 2, 4, 7))
    for view in (4, 2, 7):
        assert images[view].unique().tolist() == [view]
    assert host.asked == [4, 2, 7]
    assert host.threads == {"photographs_0"}
    images.close()


def test_expecting_waits_for_nothing(host):
    images = make(host)
    host.open.clear()
    images.expect((1, 2))
    assert host.asked == []
    host.open.set()
    assert images[2].unique().tolist() == [2]
    images.close()


def test_the_least_recently_used_leave_and_come_again(host):
    images = make(host)
    for view in (0, 1, 2, 0, 3, 0, 1):
        assert images[view].unique().tolist() == [view]
    assert host.asked == [0, 1, 2, 3, 1]
    images.close()


def test_what_does_not_fit_is_not_fetched_ahead(host):
    images = make(host, images=2)
    images[9]
    images.expect((1, 2, 3, 4))
    images[2]
    images.close()
    assert host.asked == [9, 1, 2]


def test_one_photograph_is_always_kept(host):
    images = make(host, images=0)
    assert images[5].unique().tolist() == [5]
    images.close()


def test_a_photograph_that_cannot_be_read_is_said_when_it_is_asked_for_each_time(host):
    images = make(host)
    images.expect((13, 1))
    assert images[1].unique().tolist() == [1]
    for _ in range(2):
        with pytest.raises(InputError, match=r"13\.png is truncated"):
            images[13]
    images.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_they_come_to_the_gpu(host):
    images = make(host, device="cuda")
    images.expect((1, 2))
    for view in (1, 2, 5, 6, 1):
        assert images[view].is_cuda
        assert images[view].unique().tolist() == [view]
    images.close()
