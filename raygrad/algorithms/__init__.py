"""The algorithms, one file per idea with the client's and the server's half together.

Adding a class to `ALGORITHMS` enrols it in the property suite (`raygrad verify NAME`).
"""

from raygrad.algorithms.fedasync import FedAsync
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.algorithms.fedprox import FedProx
from raygrad.algorithms.gradalign import GradAlign
from raygrad.algorithms.lbsgd import LargeBatchSGD
from raygrad.algorithms.scaffold import Scaffold, ScaffoldFresh
from raygrad.algorithms.sgd import SGD

ALGORITHMS: dict[str, type] = {
    "fedasync": FedAsync,
    "fedavg": FedAvg,
    "fedga": FedGA,
    "fedprox": FedProx,
    "gradalign": GradAlign,
    "lbsgd": LargeBatchSGD,
    "scaffold": Scaffold,
    "scaffold-fresh": ScaffoldFresh,
    "sgd": SGD,
}
