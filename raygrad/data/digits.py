"""scikit-learn's handwritten digits: Alpaydin and Kaynak, UCI machine learning repository."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from raygrad.data.source import Examples, Source, hold_out, numbered
from raygrad.data.transform import Transform


def _file() -> Path:
    """The file that scikit-learn's `load_digits` reads. To import scikit-learn takes longer than a short run."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 handwritten digits, 8x8, 10 classes. Needs no files.

    Every fifth example of each class, drawn once and for all, is the test set: it does not depend on the run's seed.
    """

    def files(self, data_root: Path | None, cache: Path) -> list[Path]:
        """See `HasFiles.files`."""
        return []

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        """See `Dataset.open`."""
        rows = np.loadtxt(_file(), np.int64, delimiter=",")  # 64 pixels in 0..16 and the label
        x, y = rows[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), rows[:, -1]
        train, test = hold_out(y, 0.2)
        # The mean and standard deviation of the training pixels, of which the highest is 16.
        transform = Transform(scale=1 / 16, mean=(0.3048,), std=(0.3759,))
        return Source.of(Examples(x[train], y[train]), Examples(x[test], y[test]), numbered(10), transform)
