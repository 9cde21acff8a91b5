"""What stateless algorithms share: the state is the model alone, clients keep nothing."""

from dataclasses import dataclass, fields
from math import isfinite

from torch import Tensor

from raygrad.contract import ClientState, Population
from raygrad.errors import BadInput

ALGORITHMS: dict[str, type] = {}
"""The algorithms by name; the package fills it. It is here for those that have another algorithm inside."""


@dataclass(frozen=True)
class State:
    """The server's state of a stateless algorithm."""

    x: Tensor  # [d]


class Stateless:
    """`init` and `client_state` for algorithms whose only state is the model."""

    def init(self, x: Tensor, population: Population) -> State:
        """The state is `x` [d]."""
        return State(x)

    def client_state(self, x: Tensor) -> ClientState:
        """Clients keep nothing."""
        return {}


def check(algorithm: object, **lowest: float) -> None:
    """Refuse settings that are not finite or below their lowest value; called from `__post_init__`."""
    for f in fields(algorithm):  # pyright: ignore[reportArgumentType]
        value = getattr(algorithm, f.name)
        if f.name in lowest and not (isfinite(value) and value >= lowest[f.name]):
            raise BadInput(f"algorithm.{f.name} is {value}; it must be a finite number >= {lowest[f.name]:g}")


LIMIT_BYTES = 8 * 2**30
"""What an algorithm's vectors of all clients may take on the server."""


def per_client(x: Tensor, population: Population, who: str, count: int = 1) -> tuple[Tensor, ...]:
    """`count` vectors for each client: zeros [N, d] of each. Raises BadInput where they are too much."""
    n = len(population.examples)
    if (needs := n * count * x.nbytes) > LIMIT_BYTES:
        raise BadInput(
            f"{who} keeps {count * x.nbytes / 1e6:.1f} MB of each client on the server: {n:,} clients are "
            f"{needs / 2**30:.1f} GiB, above {LIMIT_BYTES / 2**30:g} GiB; take fewer clients or a smaller model"
        )
    return tuple(x.new_zeros(n, len(x)) for _ in range(count))
