"""The learned step as native passes; ``features``, ``network`` and ``step`` are the same in PyTorch, and the truth."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from splatopt.core import native
from splatopt.core.objective import Evaluation, Tensors
from splatopt.core.schema import GAUSSIAN_TENSORS
from splatopt.meta.constants import LANES, SCENE_FEATURES, TILE_OUTPUTS
from splatopt.meta.features import history_features
from splatopt.meta.inner import MIN_SHARE, InnerRates, InnerState
from splatopt.meta.network import Block, LearnedNetwork


def fits(parameters: Tensors, gradient: Tensors) -> bool:
    """Whether the native passes take these tensors: float32, contiguous, on the CPU. A run's memory is as they are."""
    return native.available() and all(
        value.dtype == torch.float32 and value.device.type == "cpu" and value.is_contiguous()
        for value in (*parameters.values(), *gradient.values())
    )


class FusedNetwork:
    """A network packed for the native passes, and their buffers, which grow with the scene."""

    def __init__(self, network: LearnedNetwork, threads: int = 0, isa: str = "auto") -> None:
        """Pack the weights as they are now.

        Args:
            network: On the CPU.
            threads: Threads of the passes, 0 for one per processor; the bits do not depend on it.
            isa: Their instruction set.
        """
        shape = network.options
        self._threads, self._isa = threads, isa
        self._passes = native.learned_passes(
            pack(network),
            width=shape.width,
            blocks=shape.blocks,
            latent=shape.latent,
            attention=shape.attention,
            scene=SCENE_FEATURES + 2 * shape.clock,
            attends=shape.neighbours > 0,
            scales=shape.state_scale,
        )

    def step(
        self,
        parameters: Tensors,
        evaluation: Evaluation,
        seen: Bool[Tensor, " n"],
        state: InnerState,
        near: Int[Tensor, "n k"] | None,
        rates: InnerRates,
        length_scale: float,
        clock: Tensor | None = None,
    ) -> None:
        """Take in one evaluation and take the network's step, in place; tensors are those that :func:`fits`.

        As :meth:`InnerState.observe`, ``build_inputs``, ``learned_step`` and ``Step.mended`` in turn; without ``near``,
        as ``adam_changes``.

        Args:
            parameters: The cloud's tensors; written.
            evaluation: Its loss and gradient are read.
            seen: Rows that the step may move.
            state: Written.
            near: Rows of each row's nearest others.
            rates: Adam's rates and decays.
            length_scale: The scene's extent, world units.
            clock: Where in the run the step is, for networks that are told.
        """
        state.count(evaluation.loss)
        handover = 0.0 if near is None else rates.handover
        near = torch.zeros(len(state.age), 0, dtype=torch.int64) if near is None else near
        numbers = native.LearnedNumbers(
            scene=history_features(state) + ([] if clock is None else clock.tolist()),
            rates=[rates.of(name, length_scale) for name in GAUSSIAN_TENSORS],
            ageing=(rates.patience, rates.fall, handover, MIN_SHARE),
            betas=(rates.beta1, rates.beta2, rates.beta_slow),
            epsilon=rates.epsilon,
        )
        workers = native.workers(self._threads, self._isa)
        native.learned_step(
            workers, self._passes, parameters, evaluation.gradient, state, seen, near.contiguous(), numbers
        )


def pack(network: LearnedNetwork) -> Float[Tensor, " floats"]:
    """Return a network's weights in the order in which the native passes read them, float32."""
    parts = [_layer(network.enter)]
    if network.scale is not None:
        hidden, out = network.scale[0], network.scale[2]
        assert isinstance(hidden, nn.Linear)
        assert isinstance(out, nn.Linear)
        parts += [_layer(hidden), _padded(out.weight.mT, TILE_OUTPUTS), out.bias]
    for place in (0, 2):
        linear = network.pool[place]
        assert isinstance(linear, nn.Linear)
        parts += [linear.weight, linear.bias]
    for block in network.blocks:
        assert isinstance(block, Block)
        parts += _block(block)
    for weight, bias in zip(network.latent.weight.chunk(2), network.latent.bias.chunk(2), strict=True):
        parts.append(_tiles(weight, bias))
    parts += [network.norm.weight, network.norm.bias, _layer(network.head)]
    ends = (network.sizes, network.direction)
    parts.append(_tiles(torch.cat([end.weight for end in ends]), torch.cat([end.bias for end in ends])))
    return torch.cat([part.detach().float().reshape(-1) for part in parts])


def _block(block: Block) -> list[Tensor]:
    parts: list[Tensor] = []
    if block.attention is not None and block.attention_norm is not None:
        heads = [_padded(part, LANES) for part in block.attention.query_key_value.weight.chunk(3)]
        weight = torch.cat(heads)
        parts += [block.attention_norm.weight, block.attention_norm.bias, _tiles(weight, weight.new_zeros(len(weight)))]
        parts.append(_layer(block.attention.out))
    parts += [block.norm.weight, block.norm.bias]
    for place in (0, 2):
        linear = block.mlp[place]
        assert isinstance(linear, nn.Linear)
        parts.append(_layer(linear))
    return parts


def _layer(linear: nn.Linear) -> Tensor:
    return _tiles(linear.weight, linear.bias)


def _tiles(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"]) -> Tensor:
    """Return, for each eight outputs, their biases and then their weights input by input."""
    rows = _padded(torch.cat([bias[:, None], weight], dim=1), TILE_OUTPUTS)
    return rows.reshape(-1, TILE_OUTPUTS, rows.shape[1]).mT


def _padded(rows: Float[Tensor, "rows columns"], multiple: int) -> Tensor:
    """Return ``rows`` with rows of zeros, up to a multiple of so many."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % multiple))
