"""Experiments that are ready to run: one file each, whose `recipe()` returns an `Experiment`.

`raygrad run NAME` runs one. A copy of any of these files is a recipe of one's own: `raygrad run my_recipe.py`.
"""

from collections.abc import Callable

from raygrad.experiment import Experiment
from raygrad.recipes import (
    cifar10_iid,
    cifar100,
    dga,
    digits,
    digits_iid,
    displaced,
    divebatch,
    dp,
    dsgd,
    emnist47_het,
    emnist47_iid,
    emnist_letters_het,
    fedadam,
    fedaware,
    fedbuff,
    feddyn,
    fedga_momentum,
    fedga_stale,
    lfgd,
    lfsgd,
    local_gd,
    logistic,
    mnist_het,
    quadratic,
    quantised,
    shakespeare,
    spectral,
    wasserstein,
    width,
)

RECIPES: dict[str, Callable[[], Experiment]] = {
    "digits": digits.recipe,
    "digits-iid": digits_iid.recipe,
    "mnist-het": mnist_het.recipe,
    "emnist-letters-het": emnist_letters_het.recipe,
    "emnist47-het": emnist47_het.recipe,
    "emnist47-iid": emnist47_iid.recipe,
    "cifar10-iid": cifar10_iid.recipe,
    "cifar100": cifar100.recipe,
    "fedbuff": fedbuff.recipe,
    "fedadam": fedadam.recipe,
    "fedaware": fedaware.recipe,
    "feddyn": feddyn.recipe,
    "displaced": displaced.recipe,
    "divebatch": divebatch.recipe,
    "dsgd": dsgd.recipe,
    "dga": dga.recipe,
    "fedga-momentum": fedga_momentum.recipe,
    "fedga-stale": fedga_stale.recipe,
    "lfgd": lfgd.recipe,
    "lfsgd": lfsgd.recipe,
    "width": width.recipe,
    "dp": dp.recipe,
    "quantised": quantised.recipe,
    "local-gd": local_gd.recipe,
    "spectral": spectral.recipe,
    "wasserstein": wasserstein.recipe,
    "logistic": logistic.recipe,
    "quadratic": quadratic.recipe,
    "shakespeare": shakespeare.recipe,
}
"""Every recipe by the name that commands use: its file's name, with hyphens."""
