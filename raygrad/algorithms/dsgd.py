"""D-SGD: no server; each worker makes local steps from a model of its own and mixes it with its neighbours'.

    worker j:  d_j = (K steps of SGD from w_j on its own data) - w_j
    combine-while-adapt:  w_j <- sum_k P_jk w_k + d_j
    adapt-then-combine:   w_j <- sum_k P_jk (w_k + d_k)
    evaluated:            x = mean_j w_j

P is doubly stochastic (`raygrad.mixing`), so mixing leaves x where it is. Zhu et al., "Decentralized SGD and
Average-direction SAM are Asymptotically Equivalent" (arXiv 2306.02913): where the workers have one loss, their spread
Xi makes D-SGD descend about E f(x + e), e ~ N(0, Xi), which is f + tr(Xi Hessian) / 2. K > 1 is the networked local SGD
of Haddadpour, Mahdavi, "On the Convergence of Local Descent Methods in Federated Learning" (arXiv 1910.14425). With the
full matrix adapt-then-combine is synchronous SGD, and FedAvg for K > 1; combine-while-adapt is not, for there a
worker's own step is not mixed before the next round. One communication per round. A worker that is not asked, or does
not answer, makes no step; its model is mixed all the same.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raygrad import local, mixing
from raygrad.algorithms.networked import Networked, NetworkState
from raygrad.contract import Answer, Ask, Cohort, Round, Task


@dataclass(frozen=True)
class DSGD(Networked):
    """`form` says whether a worker's own step is mixed in the same round."""

    form: Literal["combine-while-adapt", "adapt-then-combine"] = "combine-while-adapt"

    def local(self, task: Task, w: Tensor) -> Answer:
        return Answer({"delta": local.sgd(task, w, task.lr(self.lr)) - w})

    def round(self, state: NetworkState, cohort: Cohort) -> Round:
        each = {"w": state.w[torch.from_numpy(cohort.clients)]}
        r = yield Ask(self.local, cohort, {}, each, rows=("delta",))
        p, step = self.network(state, cohort.population), self.steps(state, r)
        if self.form == "combine-while-adapt":
            return self.moved(state, mixing.mixed(p, state.w) + step)
        return self.moved(state, mixing.mixed(p, state.w + step))
