"""A small CNN of PyTorch on scikit-learn's handwritten digits. `python digits_model.py` trains it.

That writes `weights.pt` and `digits.npz` into the current folder; the function `network` is what the plan names.
"""

import os

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

NUM_TRAIN, NUM_CALIBRATION = 1000, 200


class Net(nn.Module):
    """(N, 1, 8, 8) in -> scores (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.Hardswish())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.wide = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU())
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores of the ten digits."""
        x = self.stem(image)
        x = self.wide(torch.relu(x + self.body(x)))
        return {"scores": self.head(self.mean(x).flatten(1))}


def network() -> tuple[nn.Module, torch.Tensor]:
    """The trained network, and an input like those that it takes."""
    model = Net()
    model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model.eval(), torch.zeros(1, 1, 8, 8)


def main() -> None:
    """Train for a few seconds, and save."""
    torch.manual_seed(1)
    digits = load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(int(os.environ.get("EPOCHS", "8"))):
        for piece in torch.randperm(NUM_TRAIN).split(50):
            optimizer.zero_grad()
            scores = model(torch.tensor(images[piece]))["scores"]
            nn.functional.cross_entropy(scores, torch.tensor(labels[piece])).backward()
            optimizer.step()
    torch.save(model.state_dict(), "weights.pt")
    end = NUM_TRAIN + NUM_CALIBRATION
    np.savez(
        "digits.npz",
        x_calibration=images[NUM_TRAIN:end],
        x_evaluation=images[end:],
        y_evaluation=labels[end:],
    )


if __name__ == "__main__":
    main()
