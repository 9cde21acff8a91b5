"""From stored examples to the model's input: scale, normalise per channel, and (training only) augment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raygrad.errors import BadInput

if TYPE_CHECKING:
    import torch

AUGMENTATIONS = ("none", "crop-flip")
CROP_PADDING = 4  # pixels of black on each side before the random crop, as usual for CIFAR


@dataclass(frozen=True)
class Transform:
    """`(x * scale - mean) / std`, channel by channel (axis 1), after the augmentation of the raw values.

    `mean` and `std` have one entry per channel, one entry for all channels, or none (no normalisation).
    `augment="crop-flip"` pads images with 4 black pixels on each side, crops at random to the old size and flips
    horizontally with probability 1/2.

    Errors: BadInput when the settings contradict each other, or do not fit the examples.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: str = "none"

    def __post_init__(self) -> None:
        # JSON gives lists; the value stays hashable.
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if len(self.mean) != len(self.std):
            raise BadInput(
                f"transform: mean has {len(self.mean)} entries and std {len(self.std)}; give one of each per channel"
            )
        if not all(np.isfinite([self.scale, *self.mean, *self.std])) or any(s <= 0 for s in self.std):
            raise BadInput(
                f"transform: scale {self.scale}, mean {self.mean}, std {self.std}: "
                "all must be finite, and each std greater than 0"
            )
        if self.augment not in AUGMENTATIONS:
            raise BadInput(f"transform: unknown augment {self.augment!r}; there is {' and '.join(AUGMENTATIONS)}")

    @classmethod
    def of_images(
        cls, mean: tuple[float, ...], std: tuple[float, ...], augment: bool = False, scale: float = 1 / 255
    ) -> "Transform":
        """For images of 8 bits, unless another `scale` is given; `augment` is crop-flip."""
        return cls(scale, mean, std, "crop-flip" if augment else "none")

    @classmethod
    def from_json(cls, settings: Mapping[str, object]) -> "Transform":
        """The transform whose `dataclasses.asdict` is `settings`."""
        return cls(**settings)  # type: ignore[arg-type]

    def __call__(self, x: np.ndarray, dtype: "torch.dtype", generator: np.random.Generator | None) -> "torch.Tensor":
        """Raw examples [n, *shape] -> a new tensor [n, *shape] of `dtype`, never a view of `x`.

        Examples are augmented only when a `generator` is given; the draws depend on it and on n alone.
        """
        import torch

        out = torch.empty(x.shape, dtype=dtype)
        self.write(out, x, None, generator)
        return out

    def write(
        self, out: "torch.Tensor", x: np.ndarray, rows: np.ndarray | None, generator: np.random.Generator | None
    ) -> None:
        """Write the `rows` of `x` (all if None) into `out`, a tensor on the CPU, as `__call__` converts them."""
        import torch

        if out.dtype not in (torch.float32, torch.float64):  # the types that numpy writes
            exact = torch.empty(out.shape)
            self.write(exact, x, rows, generator)
            out.copy_(exact)
            return
        values = out.numpy()
        factor, offset = self._affine(x)
        if self.augment == "none":
            generator = None
        if rows is not None and factor is None and x.dtype == values.dtype and generator is None:
            np.take(x, rows, axis=0, out=values, mode="clip")  # "raise" would copy once more
        else:
            x = x if rows is None else x[rows]
            if generator is not None:
                x = _crop_flip(x, generator)
            if factor is None:
                np.copyto(values, x, casting="same_kind")
            else:
                np.multiply(x, factor.astype(values.dtype), out=values, dtype=values.dtype, casting="same_kind")
        if offset is not None:
            values += offset.astype(values.dtype)

    def _affine(self, x: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """`(x * scale - mean) / std` as `x * factor + offset`; None stands for 1 and for 0."""
        if not self.mean:
            return (None if self.scale == 1.0 else np.asarray(self.scale)), None
        if len(self.mean) > 1 and (x.ndim < 2 or x.shape[1] != len(self.mean)):
            raise BadInput(
                f"transform: mean and std are for {len(self.mean)} channels, the examples have shape "
                f"{tuple(x.shape[1:])}; channels come first"
            )
        channelwise = (len(self.mean), *(1,) * (x.ndim - 2)) if len(self.mean) > 1 else ()
        std = np.asarray(self.std).reshape(channelwise)
        return self.scale / std, -np.asarray(self.mean).reshape(channelwise) / std


def _crop_flip(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Randomly cropped and flipped images [n, C, H, W], a copy."""
    if x.ndim != 4:
        raise BadInput(f"transform: crop-flip needs images [channels, height, width], not shape {tuple(x.shape[1:])}")
    n, _, height, width = x.shape
    down, right = generator.integers(0, 2 * CROP_PADDING + 1, size=(2, n))
    flipped = generator.random(n) < 0.5
    pad = (CROP_PADDING, CROP_PADDING)
    padded = np.pad(x, ((0, 0), (0, 0), pad, pad))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))  # type: ignore[call-overload]
    cropped = windows[np.arange(n), :, down, right]  # [n, C, H, W]
    cropped[flipped] = cropped[flipped][..., ::-1]
    return cropped
