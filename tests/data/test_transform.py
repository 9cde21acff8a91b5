"""The transform: the formula, never a view, augmentation."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from made_files import RNG

from raygrad.data.transform import Transform
from raygrad.errors import BadInput


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_transform_is_the_formula_channel_by_channel(dtype: torch.dtype) -> None:
    x = RNG.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    made = Transform(1 / 255, mean, std)(x, dtype, None)
    wanted = (x / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert made.dtype == dtype
    assert np.allclose(made.double().numpy(), wanted, atol=tolerance)
    one = Transform(1 / 255, (0.5,), (0.5,))(x, torch.float64, None).numpy()
    assert np.allclose(one, x / 127.5 - 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("transform", [Transform(), Transform(2.0), Transform(1.0, (0.0,), (1.0,))])
def test_transform_never_gives_a_view(dtype: type, transform: Transform) -> None:
    x = np.ones((3, 4), dtype)
    x.flags.writeable = False
    for wanted in (torch.float32, torch.float64):
        made = transform(x, wanted, None)
        made.zero_()
        assert (x == 1).all()


def test_augmentation_crops_and_flips_and_is_addressed() -> None:
    x = RNG.integers(1, 256, (200, 2, 10, 10), dtype=np.uint8)
    transform = Transform(augment="crop-flip")

    def generator() -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(5))

    made = transform(x, torch.float32, generator()).numpy()
    assert np.array_equal(made, transform(x, torch.float32, generator()).numpy())
    assert np.array_equal(transform(x, torch.float32, None).numpy(), x)
    padded = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    found = set()
    for i in range(len(x)):
        windows = {
            (dy, dx, flip): padded[i, :, dy : dy + 10, dx : dx + 10][..., :: -1 if flip else 1]
            for dy in range(9)
            for dx in range(9)
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if np.array_equal(window, made[i])]
        assert len(matches) == 1
        found.add(matches[0])
    assert {dy for dy, _, _ in found} == {dx for _, dx, _ in found} == set(range(9))
    assert {flip for _, _, flip in found} == {False, True}
    with pytest.raises(BadInput, match="crop-flip needs images"):
        transform(np.zeros((3, 4), np.uint8), torch.float32, generator())


def test_transform_survives_json_and_refuses_other_channels() -> None:
    transform = Transform(1 / 255, (0.1, 0.2), (0.3, 0.4), "crop-flip")
    assert Transform.from_json(json.loads(json.dumps(asdict(transform)))) == transform
    with pytest.raises(BadInput, match="2 channels"):
        transform(np.zeros((3, 3, 4, 4), np.uint8), torch.float32, None)
