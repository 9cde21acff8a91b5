"""Made data: a function of the seed and the client's number; Hessians and minimisers as documented."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_files import check

from raygrad.data.datasets import SyntheticLogistic, SyntheticQuadratic
from raygrad.data.source import Dataset


@pytest.mark.parametrize("dataset", [SyntheticLogistic(5, 20, 6, 4), SyntheticQuadratic(5, 20, 6)])
def test_made_data_are_a_function_of_the_seed_and_a_client_of_its_number(tmp_path: Path, dataset: Dataset) -> None:
    source, same, other = (dataset.open(None, tmp_path, seed) for seed in (1, 1, 2))
    check(source)
    assert source.fingerprint == same.fingerprint != other.fingerprint
    assert source.natural is not None
    assert np.bincount(source.natural).tolist() == [20] * 5
    fewer = type(dataset)(**{**asdict(dataset), "clients": 3}).open(None, tmp_path, 1)  # type: ignore[call-overload]
    assert np.array_equal(fewer.train.x, source.train.x[:60])
    assert len(source.test) == 20


def test_logistic_heterogeneity_grows_with_beta(tmp_path: Path) -> None:
    def spread_of_means(beta: float) -> float:
        x = SyntheticLogistic(40, 50, 10, 5, 0.0, beta).open(None, tmp_path, 0).train.x.reshape(40, 50, 10)
        return float(x.mean(axis=(1, 2)).var())

    # The mean over features and examples is B_k plus noise of variance 1/10 from v_k and some from x.
    assert spread_of_means(0.0) < 0.3
    assert 4 < spread_of_means(9.0) < 16


@pytest.mark.parametrize("h", [0.0, 0.5, 2.0])
def test_quadratic_hessians_and_minimisers_are_as_documented(tmp_path: Path, h: float) -> None:
    source = SyntheticQuadratic(4, 30, 6, h).open(None, tmp_path, 3)
    x, y = source.train.x.reshape(4, 30, 6), source.train.y.reshape(4, 30)
    hessians = np.einsum("cni,cnj->cij", x, x) / 30
    minimisers = np.stack([np.linalg.solve(hessians[c], x[c].T @ y[c] / 30) for c in range(4)])
    assert np.allclose(np.einsum("cni,ci->cn", x, minimisers), y, atol=1e-9)
    base = np.geomspace(0.1, 1.0, 6)
    same = [np.allclose(hessians[0], hessians[c], atol=1e-10) for c in range(1, 4)]
    agree = [np.allclose(minimisers[0], minimisers[c], atol=1e-8) for c in range(1, 4)]
    if h == 0:
        assert all(same)
        assert all(agree)
        assert np.allclose(np.linalg.eigvalsh(hessians[0]), base)
    else:
        assert not any(same)
        assert not any(agree)
