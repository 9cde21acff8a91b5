"""The theory of gradient alignment, measured on the shipped algorithms: `raygrad verify theory`.

    f(x) = 1/n sum_i f_i(x)        r(x) = 1/(2n) sum_i |grad f_i(x) - grad f(x)|^2

Each statement says by what an algorithm's round differs from a reference. It is measured on small problems in float64
whose mini-batch orders are all enumerated, so every expectation is a finite mean, and grad r is the derivative of the
definition above. A statement of order p is measured by its remainder, measured minus predicted, while alpha (or beta)
is halved five times: the last three slopes must lie within 0.15 of p, no remainder below 1e-12 |x|, where rounding
could show. A statement is ok if it holds and its broken twin does not: with the predicted term's sign flipped, for
GradAlign and FedGA the displacement's sign, or as `Statement.wrong` says.

Source: Dandi, Barba, Jaggi, "Implicit Gradient Alignment in Distributed and Federated Learning" (arXiv 2106.13897),
theorems 1 to 5; docs/theory.md says where each statement comes from.
"""

from raygrad.theory import alignment, decentralised, displacement, diversity, local_gd
from raygrad.theory.statement import Finding, Statement, Verdict

STATEMENTS: tuple[Statement, ...] = (
    alignment.theorem_1,
    alignment.theorem_2,
    alignment.theorem_3,
    alignment.theorem_4,
    alignment.theorem_5,
    alignment.fedavg,
    alignment.within_clients,
    alignment.linear_scaling,
    alignment.cohort_bias,
    alignment.diversity,
    diversity.batch_bound,
    diversity.width,
    diversity.drawn_clients,
    alignment.degenerate_cases,
    alignment.stationary,
    displacement.displacement,
    displacement.displaced_stationary,
    displacement.local_momentum,
    displacement.server_momentum,
    displacement.stale,
    decentralised.full_network,
    decentralised.consensus,
    decentralised.smoothed,
    decentralised.unequal,
    decentralised.neighbours,
    decentralised.tracking,
    local_gd.direction,
    local_gd.loss,
    local_gd.solutions,
    local_gd.at_rest,
)
"""Every row of `raygrad verify theory`, in its order."""

__all__ = ["STATEMENTS", "Finding", "Statement", "Verdict"]
