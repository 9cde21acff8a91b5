"""What noisy means over drawn clients give away of one of them, by Google's `dp-accounting`.

pip install "raygrad[privacy]"
"""

from functools import lru_cache
from importlib.util import find_spec

from raygrad.errors import BadInput

ORDERS = (*range(2, 33), 64, 128, 256)


def check() -> None:
    """Raises BadInput where the accountant is not installed."""
    if find_spec("dp_accounting") is None:
        raise BadInput("algorithm dp needs the package dp-accounting: pip install 'raygrad[privacy]'")


@lru_cache(maxsize=64)
def epsilon(noise: float, rounds: int, releases: int, cohort: int, clients: int, delta: float) -> float:
    """epsilon of (epsilon, delta)-differential privacy of clients after so many rounds. In each `cohort` of `clients`
    clients are drawn without replacement, and `releases` sums over them are told, each client's part of norm at most C,
    with Gaussian noise of scale `noise` C.

    Two neighbouring populations differ in what one client holds, so their sums differ by at most 2 C. Sums of a round
    are of the same clients: together they tell as much as one sum with sqrt(`releases`) times less noise, and the draw
    hides that. Counted as if each had a draw of its own they would seem to tell less than they do. Renyi accounting
    (Mironov, arXiv 1702.07476; without replacement: Wang, Balle, Kasiviswanathan, arXiv 1808.00087).
    """
    import dp_accounting as dp
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(ORDERS, neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    event: dp.DpEvent = dp.GaussianDpEvent(noise / 2 / releases**0.5)
    if cohort < clients:
        event = dp.SampledWithoutReplacementDpEvent(clients, cohort, event)
    return float(accountant.compose(event, rounds).get_epsilon(delta))
