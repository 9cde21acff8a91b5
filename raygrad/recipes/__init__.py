"""Experiments that are ready to run: one file each, whose `recipe()` returns an `Experiment`.

`raygrad run NAME` runs one. A copy of any of these files is a recipe of one's own: `raygrad run my_recipe.py`.
"""

from collections.abc import Callable

from raygrad.experiment import Experiment
from raygrad.recipes import (
    cifar10_iid,
    digits,
    digits_iid,
    displaced,
    emnist47_het,
    emnist47_iid,
    emnist_letters_het,
    fedadam,
    fedaware,
    fedbuff,
    feddyn,
    fedga_momentum,
    fedga_stale,
    logistic,
    mnist_het,
    quadratic,
)

RECIPES: dict[str, Callable[[], Experiment]] = {
    "digits": digits.recipe,
    "digits-iid": digits_iid.recipe,
    "mnist-het": mnist_het.recipe,
    "emnist-letters-het": emnist_letters_het.recipe,
    "emnist47-het": emnist47_het.recipe,
    "emnist47-iid": emnist47_iid.recipe,
    "cifar10-iid": cifar10_iid.recipe,
    "fedbuff": fedbuff.recipe,
    "fedadam": fedadam.recipe,
    "fedaware": fedaware.recipe,
    "feddyn": feddyn.recipe,
    "displaced": displaced.recipe,
    "fedga-momentum": fedga_momentum.recipe,
    "fedga-stale": fedga_stale.recipe,
    "logistic": logistic.recipe,
    "quadratic": quadratic.recipe,
}
"""Every recipe by the name that commands use: its file's name, with hyphens."""
