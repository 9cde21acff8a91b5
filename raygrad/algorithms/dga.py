"""Decentralised gradient alignment: FedGA's displacement where nobody knows the mean gradient.

    worker j:  g_j = grad f_j(w_j), its whole shard, without weight decay;   v_j = -beta (c_j - g_j)
               d_j = (K steps of SGD from w_j + v_j on its own data) - (w_j + v_j)
    mixing:    w_j <- sum_k P_jk (w_k + d_k);   evaluated: x = mean_j w_j

c_j is what worker j takes for the mean gradient, by `estimate`:

    gossip     c_j = sum_k P_jk g_k, its neighbours' mean. Two communications per round
    tracking   c_j <- sum_k P_jk c_k + g_j - g_j', its neighbours' estimates of the round before and the change of its
               own gradient since. v_j = -beta (sum_k P_jk c_k - g_j') is known when the round begins: nobody waits for
               a neighbour's gradient of this round. One communication

P is doubly stochastic, so sum_j v_j = 0 in both; with tracking sum_j c_j = sum_j g_j, and where gradients come to rest
every c_j is their mean. It is the displacement of Dandi, Barba, Jaggi (arXiv 2106.13897) on the network of D-SGD (arXiv
2306.02913). With the full matrix and equal weights gossip is FedGA; on a sparse one it aligns neighbours, tracking
everybody. beta = 0 is D-SGD, adapt-then-combine. A worker that does not answer makes no step and is mixed all the
same; its neighbours take their own gradient for the one that it did not send (if P is symmetric, sum_j v_j stays 0), or
its last one with tracking. So a network may be asynchronous: some workers act in a round (`sampler.cohort`), in pairs
that are drawn anew (`topology=pairs`, `placement=moved`).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from raygrad import local, mixing
from raygrad.algorithms.base import check, per_client
from raygrad.algorithms.networked import Networked, NetworkState
from raygrad.contract import Answer, Ask, Change, Cohort, Population, Round, Task


@dataclass(frozen=True)
class TrackingState(NetworkState):
    """The network, what each worker made of its neighbours' estimates, and its newest gradient (0 before the first)."""

    c: Tensor  # [N, d], sum_k P_jk c_k
    g: Tensor  # [N, d]


@dataclass(frozen=True)
class DGA(Networked):
    """`beta` is the size of the displacement, `estimate` how workers come to know the mean gradient."""

    beta: float = 0.1
    estimate: Literal["gossip", "tracking"] = "gossip"

    def __post_init__(self) -> None:
        check(self, lr=0, beta=0)

    def init(self, x: Tensor, population: Population) -> NetworkState:
        if self.estimate == "gossip":
            return super().init(x, population)
        c, g, _ = per_client(x, population, "dga", 3)  # refused before the models are there
        s = super().init(x, population)
        return TrackingState(s.x, s.w, s.there, s.rounds, c, g)

    def resize(self, state: Any, change: Change) -> Any:
        """The network of those who are there now; estimates begin anew."""
        state = super().resize(state, change)
        if self.estimate == "gossip":
            return state
        return replace(state, c=torch.zeros_like(state.c), g=torch.zeros_like(state.g))

    def gradient(self, task: Task, w: Tensor) -> Answer:
        g = task.full_grad(w)
        return Answer({"g": g}, scratch={"g": g, "w": w})

    def local(self, task: Task, w: Tensor, c: Tensor, g: Tensor) -> Answer:
        start = w - self.beta * (c - g)
        return Answer({"delta": local.sgd(task, start, task.lr(self.lr)) - start})

    def tracked(self, task: Task, w: Tensor, ahead: Tensor) -> Answer:
        start = w - self.beta * ahead
        return Answer({"g": task.full_grad(w), "delta": local.sgd(task, start, task.lr(self.lr)) - start})

    def round(self, state: Any, cohort: Cohort) -> Round:
        p, asked = self.network(state, cohort.population), torch.from_numpy(cohort.clients)
        if self.estimate == "gossip":
            a = yield Ask(self.gradient, cohort, {}, {"w": state.w[asked]}, rows=("g",))
            answered = torch.from_numpy(a.cohort.clients)
            c = self.gossip(p, torch.zeros_like(state.w).index_copy(0, answered, a.rows("g")), answered)
            r = yield Ask(self.local, a.cohort, {}, {"c": c}, rows=("delta",))
            return self.moved(state, mixing.mixed(p, state.w + self.steps(state, r)))
        ahead = torch.where(state.g.any(1, keepdim=True), state.c - state.g, 0.0)
        each = {"w": state.w[asked], "ahead": ahead[asked]}
        r = yield Ask(self.tracked, cohort, {}, each, rows=("g", "delta"))
        g = state.g.index_copy(0, torch.from_numpy(r.cohort.clients), r.rows("g"))
        c = mixing.mixed(p, state.c + g - state.g)
        return self.moved(state, mixing.mixed(p, state.w + self.steps(state, r)), c=c, g=g)

    def gossip(self, p: Any, g: Tensor, answered: Tensor) -> Tensor:
        """c_j [m, d] of those who answered, from the gradients `g` [N, d]."""
        there = torch.zeros(len(g), dtype=torch.bool).index_fill(0, answered, True)
        return mixing.mixed(mixing.among(p, there.numpy())[answered.numpy()], g)
