"""The algorithms, one file per idea with the client's and the server's half together.

Adding a class to `ALGORITHMS` enrols it in the property suite (`raygrad verify NAME`).
"""

from raygrad.algorithms.adabatch import AdaBatch
from raygrad.algorithms.base import ALGORITHMS
from raygrad.algorithms.dga import DGA
from raygrad.algorithms.displaced import Displaced
from raygrad.algorithms.divebatch import DiveBatch
from raygrad.algorithms.dp import Private
from raygrad.algorithms.dsgd import DSGD
from raygrad.algorithms.fedasync import FedAsync
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedavgm import FedAvgM
from raygrad.algorithms.fedaware import FedAware
from raygrad.algorithms.fedaware_plugin import FedAwarePlugIn
from raygrad.algorithms.feddyn import FedDyn
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedga_stale import StaleFedGA
from raygrad.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.gradalign import GradAlign
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.algorithms.local_gd import LocalGD
from raygrad.algorithms.quantised import Quantised
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.algorithms.sgd import SGD
from raygrad.algorithms.sparsified import Sparsified

ALGORITHMS |= {
    "adabatch": AdaBatch,
    "dga": DGA,
    "displaced": Displaced,
    "divebatch": DiveBatch,
    "dp": Private,
    "dsgd": DSGD,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedasync": FedAsync,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedaware": FedAware,
    "fedaware-plugin": FedAwarePlugIn,
    "feddyn": FedDyn,
    "fedga": FedGA,
    "fedga-stale": StaleFedGA,
    "fedprox": FedProx,
    "fedyogi": FedYogi,
    "gradalign": GradAlign,
    "lbsgd": LargeBatchSGD,
    "local-gd": LocalGD,
    "quantised": Quantised,
    "scaffold": Scaffold,
    "scaffold-fresh": ScaffoldFresh,
    "sgd": SGD,
    "sparsified": Sparsified,
}
