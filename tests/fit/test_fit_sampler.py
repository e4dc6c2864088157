"""The sampler of a fit's examples."""

from __future__ import annotations

import json

import pytest
import torch

from splatopt.core.checks import InputError
from splatopt.fit.sampler import ExampleSampler


def test_an_epoch_has_every_example_once_and_the_next_another_order():
    sampler = ExampleSampler(23, 5, torch.Generator().manual_seed(0))
    assert sampler.per_epoch == 5
    epochs = [[sampler.draw() for _ in range(5)] for _ in range(2)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
        assert sorted(torch.cat(batches).tolist()) == list(range(23))
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))


def test_a_batch_of_everything_is_in_order():
    sampler = ExampleSampler(4, 100, torch.Generator())
    assert sampler.draw().tolist() == sampler.draw().tolist() == [0, 1, 2, 3]
    assert sampler.per_epoch == 1


def test_a_sampler_goes_on_where_it_was_and_shuffles_when_told():
    generator = torch.Generator().manual_seed(0)
    sampler = ExampleSampler(10, 3, generator)
    sampler.draw()
    state, drawn = json.loads(json.dumps(sampler.state())), generator.get_state()
    expected = [sampler.draw().tolist() for _ in range(9)]
    again = ExampleSampler(10, 3, torch.Generator())
    again.load_state(state)
    again._generator.set_state(drawn)
    assert [again.draw().tolist() for _ in range(9)] == expected
    again.shuffle()
    assert again.state()["position"] == 10


def test_shuffling_makes_another_order_even_where_none_was_begun():
    """A checkpoint of step 0, or of an epoch's end, is followed by a new order anyway, which must be another."""
    usual, shuffled, again = (ExampleSampler(20, 20 - 1, torch.Generator().manual_seed(0)) for _ in range(3))
    shuffled.shuffle()
    again.shuffle()
    drawn = shuffled.draw()
    assert not torch.equal(drawn, usual.draw())
    assert torch.equal(drawn, again.draw())


def test_a_sampler_refuses_a_state_of_other_examples():
    state = ExampleSampler(10, 3, torch.Generator()).state()
    with pytest.raises(InputError, match="written with 10 examples in batches of 3"):
        ExampleSampler(10, 4, torch.Generator()).load_state(state)
