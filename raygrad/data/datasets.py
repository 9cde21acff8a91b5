"""The data sets by name, each a frozen dataclass whose fields are its settings.

A new one is a file beside these and a line in `DATASETS`; a user's own goes by `package.module:Class`. See
`source.Dataset` for what `open` promises.
"""

from raygrad.data.cifar import CIFAR10, CIFAR100
from raygrad.data.digits import Digits
from raygrad.data.idx import Idx
from raygrad.data.images import ImageFolder
from raygrad.data.mnist import EMNIST, EMNIST47, MNIST, FashionMNIST
from raygrad.data.parquet import ImageParquet, ParquetTable
from raygrad.data.shakespeare import Shakespeare
from raygrad.data.source import Dataset
from raygrad.data.synthetic import SyntheticLogistic, SyntheticQuadratic
from raygrad.data.torch_dataset import TorchDataset

DATASETS: dict[str, type[Dataset]] = {
    "digits": Digits,
    "mnist": MNIST,
    "fashion-mnist": FashionMNIST,
    "emnist": EMNIST,
    "emnist47": EMNIST47,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "idx": Idx,
    "image-folder": ImageFolder,
    "image-parquet": ImageParquet,
    "parquet": ParquetTable,
    "torch": TorchDataset,
    "shakespeare": Shakespeare,
    "synthetic-logistic": SyntheticLogistic,
    "synthetic-quadratic": SyntheticQuadratic,
}
"""Every data set by the name that commands and experiments use."""
