"""Photographs ahead of time: decoded or fetched by threads, kept within a budget, errors where they are asked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.data import image_store
from splatopt.data.image_store import ImageSource, ImageStore, LoadedImage
from splatopt.data.lens import Lens
from splatopt.data.prefetch import DeviceImages, ImagesAhead, ReadAhead

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


# ---------------------------------------------------------------------- decoding ahead


class Files:
    """Stands in for the decoder: a view's value is its index; notes what is decoded, and may be held up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, views: int, kept: int) -> None:
        self.decoded: list[int] = []
        self.open = threading.Event()
        self.open.set()
        lens = Lens("PINHOLE", 5, 4, (5.0, 5.0, 2.5, 2.0))
        sources = [ImageSource(Path(str(index)), lens, 5, 4) for index in range(views)]
        self.store = ImageStore(sources, (0.0, 0.0, 0.0), kept * SIZE)
        monkeypatch.setattr(image_store, "load_image", self.load)

    def load(self, source: ImageSource, background: tuple[float, float, float]) -> LoadedImage:
        self.open.wait(10)
        index = int(source.path.name)
        self.decoded.append(index)
        if index == 13:
            raise InputError("image 13.png is truncated")
        return LoadedImage(torch.full((4, 5, 3), index, dtype=torch.uint8), None)

    def wait_for(self, count: int) -> list[int]:
        """What has been decoded once it is so many, or after a while."""
        end = time.monotonic() + 10
        while len(self.decoded) < count and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(0.02)
        return list(self.decoded)


def test_all_views_of_a_capture_that_fits_are_decoded_ahead_in_order(monkeypatch):
    files = Files(monkeypatch, views=6, kept=6)
    ahead = ReadAhead(files.store, threads=1)
    ahead.expect((4, 2, 5, 0, 1, 3))
    assert files.wait_for(6) == [4, 2, 5, 0, 1, 3]
    ahead.close()
    assert [int(files.store[view].max()) for view in range(6)] == list(range(6))
    assert len(files.decoded) == 6


def test_of_a_larger_capture_half_the_cache_is_read_ahead_and_nothing_twice(monkeypatch):
    files = Files(monkeypatch, views=12, kept=4)
    ahead, order = ReadAhead(files.store, threads=1), tuple(range(12))
    for done, view in enumerate(order):
        ahead.expect(order[done:])
        files.wait_for(min(12, done + 2))
        assert int(files.store[view].max()) == view
    ahead.close()
    assert files.decoded == list(order)


def test_who_asks_for_what_is_under_way_waits_and_decodes_nothing(monkeypatch):
    files = Files(monkeypatch, views=3, kept=3)
    files.open.clear()
    ahead = ReadAhead(files.store, threads=2)
    ahead.expect((1,))
    while not files.store.has(1):
        time.sleep(0.001)
    threading.Timer(0.05, files.open.set).start()
    assert int(files.store[1].max()) == 1
    ahead.close()
    assert files.decoded == [1]


def test_a_file_that_cannot_be_read_is_said_by_whoever_asks_for_it(monkeypatch):
    files = Files(monkeypatch, views=14, kept=14)
    ahead = ReadAhead(files.store, threads=1)
    ahead.expect((13, 1))
    assert files.wait_for(2) == [13, 1]
    with pytest.raises(InputError, match=r"13\.png is truncated"):
        files.store[13]
    ahead.close()


def test_what_waits_is_dropped_when_it_is_closed_and_nothing_is_begun_before(monkeypatch):
    files = Files(monkeypatch, views=6, kept=6)
    unused = ReadAhead(files.store)
    unused.close()
    files.open.clear()
    photographs = ImagesAhead(files.store, torch.device("cpu"))
    assert photographs.images is files.store
    photographs.expect((0,), (1, 2, 3, 4, 5))
    while not files.store.has(1):
        time.sleep(0.001)
    threading.Timer(0.05, files.open.set).start()
    photographs.close()
    assert sorted(files.decoded) == [0, 1]
