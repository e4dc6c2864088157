"""A second-order optimizer in PyTorch Lightning: manual optimization, one closure, a scheduler.

``python examples/lightning_esgd.py [EPOCHS]`` fits a small network to a picture of two waves; it takes a few seconds.
Lightning comes with ``pip install pytorch-lightning``.
"""

from __future__ import annotations

import sys

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from splatopt.optim import ESGD


class Waves(lightning.LightningModule):
    """A network that ESGD fits."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # the closure differentiates twice, which Lightning's own loop does not
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        self.epochs, self.losses = epochs, []

    def configure_optimizers(self) -> dict:
        optimizer = ESGD(self.parameters(), lr=0.15)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def training_step(self, batch: list[Tensor], _: int) -> None:
        x, y = batch
        loss = self.optimizers().step(lambda: (self.net(x) - y).square().mean())
        self.losses.append(loss.item())
        self.log("loss", loss.detach(), prog_bar=True)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()


def main(epochs: int = 30) -> None:
    lightning.seed_everything(0, verbose=False)
    x = torch.rand(4096, 2) * 2 - 1
    y = torch.sin(4 * x[:, :1]) * torch.cos(3 * x[:, 1:])
    module = Waves(epochs)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True))
    first, last = (sum(part) / 16 for part in (module.losses[:16], module.losses[-16:]))
    print(f"{trainer.global_step} steps, loss {first:.4f} -> {last:.4f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
