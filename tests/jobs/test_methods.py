"""The program behind docs/methods.md: what it judges by, and differences that belong together."""

from types import SimpleNamespace

import numpy as np
import pytest

from jobs.results.methods import COMPARISONS, difference, measured, third


def test_tasks_are_judged_by_the_thirds_of_what_was_measured() -> None:
    accuracies = np.full(60, np.nan)
    accuracies[9::10] = [0.9, 0.8, 0.6, 0.5, 0.3, 0.1]
    run = SimpleNamespace(validation_accuracy=accuracies)
    found = [third(run, number) for number in range(3)]  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx([0.85, 0.55, 0.2])


def test_differences_are_paired() -> None:
    """A shift that all seeds share is certain however much the seeds differ."""
    assert difference([0.5, 0.7, 0.9], [0.4, 0.6, 0.8]) == "+10.00 (+10.00 … +10.00)"
    low, high = (float(word.strip("()+")) for word in difference([0.5, 0.7], [0.6, 0.5]).split()[1::2])
    assert low < 5 < high


def test_probes_stand_at_their_rounds() -> None:
    probes = SimpleNamespace(round=np.array([2, 4]), values={"diversity": np.array([3.0, 5.0])})
    run = SimpleNamespace(round=np.arange(1, 6), probes=probes)
    found = measured(run, "diversity")  # pyright: ignore[reportArgumentType]
    assert np.array_equal(found, [np.nan, 3, np.nan, 5, np.nan], equal_nan=True)


@pytest.mark.parametrize("name", COMPARISONS)
def test_arms_are_experiments(name: str) -> None:
    different = {(arm.experiment(0).hash, arm.rounds) for arm in COMPARISONS[name].arms.values()}
    assert len(different) == len(COMPARISONS[name].arms)
