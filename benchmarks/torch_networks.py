"""Small networks in the styles that people bring from PyTorch, in torch alone, with weights that are drawn.

Each function returns what ``[model] source = "module:function"`` takes: the module, and example inputs.
"""
# mypy: disable-error-code="misc, no-any-return"

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

Network: TypeAlias = "tuple[nn.Module, Any]"


def drawn(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """The module with batch norms as after a training: statistics that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean = 0.1 * torch.randn(part.num_features, generator=generator)
            part.running_var = 0.5 + torch.rand(part.num_features, generator=generator)
    return module.eval()


def convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with its batch norm."""
    padding = kernel // 2
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out))


class Residual(nn.Module):
    """Two convolutions and what went in, as in ResNet."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, 3, stride)
        self.second = convolution(channels_out, channels_out, 3)
        self.short = convolution(channels_in, channels_out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H / stride, W / stride)."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResidualNetwork(nn.Module):
    """As ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.body = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, 10)
        self.mean = nn.AdaptiveAvgPool2d(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, 10)."""
        x = self.body(self.pool(torch.relu(self.stem(image))))
        return self.head(torch.flatten(self.mean(x), 1))


class SqueezeExcite(nn.Module):
    """Channels scaled by what all positions say."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), as it came."""
        return x * nn.functional.hardsigmoid(self.up(torch.relu(self.down(self.mean(x)))))


class Inverted(nn.Module):
    """Wide, depthwise, narrow, as in MobileNetV3."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels_in
        self.layers = nn.Sequential(
            convolution(channels_in, wide, 1), nn.Hardswish(), convolution(wide, wide, 5, stride, wide), nn.Hardswish(),
            SqueezeExcite(wide), convolution(wide, channels_out, 1),
        )  # fmt: skip
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H / stride, W / stride)."""
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetwork(nn.Module):
    """As MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 16, 3, 2), nn.Hardswish())
        self.body = nn.Sequential(Inverted(16, 16, 1), Inverted(16, 24, 2), Inverted(24, 24, 1))
        self.last = nn.Sequential(convolution(24, 96, 1), nn.Hardswish())
        self.head = nn.Sequential(nn.Linear(96, 64), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(64, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, 10)."""
        return self.head(self.last(self.body(self.stem(image))).mean((2, 3)))


class VisionTransformer(nn.Module):
    """As ViT: patches, a token of the class, attention by torch's own function."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 64) * 0.1)
        self.positions = nn.Parameter(torch.randn(1, 17, 64) * 0.1)
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, 10)."""
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.body(x))[:, 0])


class MaskedEncoder(nn.Module):
    """As BERT: words, a mask of the padding that is minus infinity inside, a mean over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 12) whole numbers, and which of them count, 1 or 0 -> ``logits`` (N, 4)."""
        x = self.body(self.words(ids), src_key_padding_mask=mask == 0)
        weight = mask.unsqueeze(-1).to(x.dtype)
        return {"logits": self.head((x * weight).sum(1) / weight.sum(1))}


class Recurrent(nn.Module):
    """A GRU both ways, then an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 16, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """(N, 10, 8) -> (N, 5)."""
        return self.head(self.lstm(self.gru(series)[0])[0][:, -1])


class Segmentation(nn.Module):
    """Down, and up again by a transposed convolution and by a resize."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(convolution(3, 16, 3, 2), nn.ReLU(), convolution(16, 32, 3, 2), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, 32, 32) -> (N, 3, 32, 32)."""
        x = self.head(self.up(self.down(image)))
        return nn.functional.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=False)


def _of(kind: type[nn.Module], *example: torch.Tensor) -> Network:
    torch.manual_seed(0)
    return drawn(kind()), example


def resnet() -> Network:
    """Residual convolutions."""
    return _of(ResidualNetwork, torch.zeros(2, 3, 32, 32))


def mobilenet() -> Network:
    """Hard swish, depthwise convolutions, squeeze and excite."""
    return _of(MobileNetwork, torch.zeros(1, 3, 32, 32))


def vit() -> Network:
    """Attention over patches."""
    return _of(VisionTransformer, torch.zeros(2, 3, 32, 32))


def encoder() -> Network:
    """Attention under a mask."""
    return _of(MaskedEncoder, torch.zeros(2, 12, dtype=torch.int64), torch.ones(2, 12, dtype=torch.int64))


def recurrent() -> Network:
    """A GRU and an LSTM."""
    return _of(Recurrent, torch.zeros(2, 10, 8))


def segmentation() -> Network:
    """Resize and ConvTranspose."""
    return _of(Segmentation, torch.zeros(2, 3, 32, 32))


NETWORKS = (resnet, mobilenet, vit, encoder, recurrent, segmentation)
