"""Watch the tangent kernel of a network inside a Lightning training loop.

python examples/watch_in_lightning.py [epochs]

A callback of a few lines counts the steps; inr.watch makes a record every so often and leaves the training as it is.
Prints the rank, the share of the trace of each layer and the loss over time, and what watching took. Without Lightning
(pip install lightning) the same network is trained in a plain loop.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import inrfast as inr
from inrfast.signals.image import astronaut

try:
    import lightning
except ImportError:
    lightning = None

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
coords, image = inr.grid((32, 32)), astronaut(32, grey=True).reshape(-1, 1) - 0.5
data = DataLoader(TensorDataset(coords, image), batch_size=256, shuffle=True)
net = inr.INR(2, 1, width=64, hidden_layers=2, activation="sine", omega=15.0, init="siren")
watch = inr.watch(net, coords, every=10, points=256)

if lightning is None:
    print("Lightning is not installed: a plain loop")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss)
else:

    class Field(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return F.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Watching(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            watch.step(outputs["loss"])

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[Watching()], **quiet)
    trainer.fit(Field(), data)

print(watch)
