"""Cheap priors of a recurrent network: features of where cities are, initial recurrences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from citypaths.models.base import FEATURES, CityInput
from citypaths.models.rnn import RECURRENT
from studies.baselines.priors import MODEL_PRIORS


def features_of(graph, kind: str, width: int) -> torch.Tensor:
    return CityInput(graph, width, coordinates=kind).place


def test_priors_name_what_there_is():
    kinds = {prior.get("coordinates", "none") for prior in MODEL_PRIORS.values()}
    assert kinds == set(FEATURES)
    assert {p.get("recurrent", "orthogonal") for p in MODEL_PRIORS.values()} == set(RECURRENT)


@pytest.mark.parametrize("kind", list(FEATURES))
@pytest.mark.parametrize("width", [4, 8, 64])
def test_coordinates_are_finite_features_of_about_unit_variance(tennessee, kind, width):
    features = features_of(tennessee, kind, width)
    assert features.shape[0] == len(tennessee) and features.dtype == torch.float32
    assert features.isfinite().all()
    assert torch.equal(features, features_of(tennessee, kind, width))
    if kind != "none":
        assert 0.5 < features.std() < 1.5
    if kind in ("place_cells", "fourier", "periodic"):
        assert features.shape[1] == (min(width, 32) if kind == "periodic" else width)


@pytest.mark.parametrize("kind", list(FEATURES))
def test_coordinates_of_a_few_cities_are_finite(chain, lonely, kind):
    for few in (chain, lonely):
        assert features_of(few, kind, 8).isfinite().all()


def test_place_cells_are_local(tennessee):
    features = features_of(tennessee, "place_cells", 16)
    for cell in features.T:
        centre = int(cell.argmax())
        km = tennessee.distance_km(centre, np.arange(len(tennessee)))
        assert cell[km < 10].mean() > cell[km > 200].mean() + 1


def fisher_memory(w: torch.Tensor, terms: int) -> float:
    """Total Fisher memory of an input at unit 0 (Ganguli, Huh, Sompolinsky 2008)."""
    w = w.double()
    powers = [torch.eye(len(w), dtype=w.dtype)]
    for _ in range(terms - 1):
        powers.append(w @ powers[-1])
    noise = sum(p @ p.T for p in powers)
    signal = torch.stack([p[:, 0] for p in powers])
    return float((signal * torch.linalg.solve(noise, signal.T).T).sum())


def test_fisher_memory_of_the_initial_matrices():
    chain = RECURRENT["chain"](100)
    squares = 1.02 ** (2 * np.arange(100))
    assert fisher_memory(chain, 100) == pytest.approx((squares / squares.cumsum()).sum(), rel=1e-4)
    assert fisher_memory(chain, 100) == pytest.approx(7.61, abs=0.01)
    assert fisher_memory(chain.T, 100) == pytest.approx(0, abs=0.2)
    torch.manual_seed(0)
    normal = 0.95 * RECURRENT["orthogonal"](100)
    assert fisher_memory(normal, 600) == pytest.approx(1.0, abs=1e-3)


def test_identity_chain_is_between():
    both = RECURRENT["identity_chain"](5)
    assert torch.allclose(2 * both - torch.eye(5), RECURRENT["chain"](5))
    assert torch.equal(RECURRENT["identity"](5), torch.eye(5))
