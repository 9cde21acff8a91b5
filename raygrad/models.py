"""Models: small frozen dataclasses that build an `nn.Module` for inputs of a shape and a number of classes.

`build(shape, classes)` gets the shape of one example, (C, H, W) for images, and the number of classes (None for
regression, where the output is one number). The initial weights come from torch's global generator, which the caller
seeds.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

from torch import Tensor, nn

from raygrad.errors import BadInput
from raygrad.naming import load_attribute


class Model(Protocol):
    """Builds the experiment's module."""

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module: ...


def _outputs(classes: int | None) -> int:
    return 1 if classes is None else classes


def _image(shape: tuple[int, ...], smallest: int, model: str) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise BadInput(
            f"model {model} takes images of at least {smallest} x {smallest} pixels; the data has shape {shape}"
        )
    return shape  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Linear:
    """A linear map of the flattened input: logistic regression under cross-entropy."""

    bias: bool = True

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), _outputs(classes), bias=self.bias))


@dataclass(frozen=True)
class MLP:
    """Fully connected layers of the given widths with ReLU or tanh between."""

    hidden: tuple[int, ...] = (64,)
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "tanh"):
            raise BadInput(f"model.activation is {self.activation!r}; it must be relu or tanh")
        if any(h < 1 for h in self.hidden):
            raise BadInput(f"model.hidden is {self.hidden}; every width must be >= 1")

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(shape)
        for h in self.hidden:
            layers += [nn.Linear(width, h), nn.ReLU() if self.activation == "relu" else nn.Tanh()]
            width = h
        return nn.Sequential(*layers, nn.Linear(width, _outputs(classes)))


@dataclass(frozen=True)
class DigitsCNN:
    """A small convolutional network for 8 x 8 images: conv 3x3 (16), conv 3x3 (32), pool, linear."""

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        c, h, w = _image(shape, 4, "digits-cnn")
        return nn.Sequential(
            nn.Conv2d(c, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * (h // 2) * (w // 2), _outputs(classes)),
        )  # fmt: skip


@dataclass(frozen=True)
class EMNISTCNN:
    """The gradient alignment paper's network for EMNIST: two 5x5 convolutions (32, 64) with pooling, one linear layer.

    100,271 parameters for 28 x 28 images and 47 classes (arXiv 2106.13897 and its authors' code).
    """

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        c, h, w = _image(shape, 16, "emnist-cnn")
        h, w = ((h - 4) // 2 - 4) // 2, ((w - 4) // 2 - 4) // 2
        return nn.Sequential(
            nn.Conv2d(c, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * h * w, _outputs(classes)),
        )  # fmt: skip


@dataclass(frozen=True)
class CIFARCNN:
    """The gradient alignment paper's network for CIFAR: two 5x5 convolutions (6, 16) with pooling, three linear layers.

    62,006 parameters for 32 x 32 x 3 images and 10 classes (arXiv 2106.13897 and its authors' code).
    """

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        c, h, w = _image(shape, 16, "cifar-cnn")
        h, w = ((h - 4) // 2 - 4) // 2, ((w - 4) // 2 - 4) // 2
        return nn.Sequential(
            nn.Conv2d(c, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * h * w, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, _outputs(classes)),
        )  # fmt: skip


class _Block(nn.Module):
    """A basic residual block with the given normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: "Norm") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = norm(outputs)
        self.skip = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.skip(x)).relu()


class Norm(Protocol):
    """Makes a normalisation layer for a number of channels."""

    def __call__(self, channels: int, /) -> nn.Module: ...


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(32, channels // 2), channels)


def _batch_norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels)


@dataclass(frozen=True)
class ResNet:
    """A ResNet for small images (3x3 stem, four stages of basic blocks); `norm` is group or batch.

    He et al., arXiv 1512.03385; group normalisation as usual in federated learning (Hsieh et al., arXiv 1910.00189).
    The default is ResNet-18.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    norm: str = "group"

    def __post_init__(self) -> None:
        if self.norm not in ("group", "batch"):
            raise BadInput(f"model.norm is {self.norm!r}; it must be group or batch")
        if self.width < 4 or self.width & (self.width - 1):
            raise BadInput(f"model.width is {self.width}; it must be a power of two >= 4")

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        channels, _, _ = _image(shape, 8, "resnet")
        norm: Norm = _group_norm if self.norm == "group" else _batch_norm
        layers: list[nn.Module] = [nn.Conv2d(channels, self.width, 3, 1, 1, bias=False), norm(self.width), nn.ReLU()]
        inputs = self.width
        for stage, count in enumerate(self.blocks):
            outputs = self.width * 2**stage
            for i in range(count):
                layers.append(_Block(inputs, outputs, 2 if stage > 0 and i == 0 else 1, norm))
                inputs = outputs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, _outputs(classes)))


class _CharLSTM(nn.Module):
    """Ids [B, T], as numbers of any type, to logits [B, vocabulary] of what follows."""

    def __init__(self, vocabulary: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        # Examples that are made up to try a model have any byte in place of an id.
        ids = x.round().long() % self.embedding.num_embeddings
        return self.output(self.lstm(self.embedding(ids))[0][:, -1])


@dataclass(frozen=True)
class CharLSTM:
    """The gradient alignment paper's network for Shakespeare: embedded characters, LSTM layers, one linear layer.

    The classes are the vocabulary; the output says which character follows. 135,700 parameters for the 100 printable
    ASCII characters (arXiv 2106.13897 and its authors' code). Its clients run one after another.
    """

    embedding: int = 8
    hidden: int = 100
    layers: int = 2

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "layers"):
            if (value := getattr(self, name)) < 1:
                raise BadInput(f"model.{name} is {value}; it must be >= 1")

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        if len(shape) != 1 or classes is None:
            raise BadInput(
                f"model char-lstm takes rows of ids and predicts one; the data has shape {shape} and "
                f"{classes or 'no'} classes"
            )
        return _CharLSTM(classes, self.embedding, self.hidden, self.layers)


@dataclass(frozen=True)
class Custom:
    """A user's own model: `factory` is `package.module:function`, called with `shape`, `classes` and `options`."""

    factory: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, shape: tuple[int, ...], classes: int | None) -> nn.Module:
        make = load_attribute(self.factory, "model.factory")
        if not callable(make):
            raise BadInput(f"model.factory {self.factory!r} is not callable")
        try:
            module = make(shape=shape, classes=classes, **self.options)
        except Exception as e:  # the user's code may raise anything
            raise BadInput(f"model.factory {self.factory!r} raised {type(e).__name__}: {e}") from e
        if not isinstance(module, nn.Module):
            raise BadInput(f"model.factory {self.factory!r} returned {type(module).__name__}, not a torch.nn.Module")
        return module


MODELS: dict[str, type] = {
    "linear": Linear,
    "mlp": MLP,
    "digits-cnn": DigitsCNN,
    "emnist-cnn": EMNISTCNN,
    "cifar-cnn": CIFARCNN,
    "resnet": ResNet,
    "char-lstm": CharLSTM,
    "custom": Custom,
}
