"""Made-up routing follows its law, and drifts as told."""

import numpy as np

from krasis.synth.routing import Router


def test_experts_are_chosen_as_often_as_the_law_says():
    router = Router(64, 2, 6, 0.9, 0.0, seed=0)
    keys = router.choose(4000)
    assert keys.shape == (4000, 12)
    assert all(len(set(token)) == 12 for token in keys[:50].tolist())
    assert (keys[:, :6] < 64).all()
    assert ((keys[:, 6:] >= 64) & (keys[:, 6:] < 128)).all()
    found = np.bincount(keys.ravel(), minlength=128) / 4000
    np.testing.assert_allclose(found, router.rates, atol=0.035)


def test_drift_moves_experts_at_its_rate():
    still, moving = (Router(256, 3, 8, 0.9, drift, seed=0) for drift in (0.0, 1 / 512))
    before = still.rates
    np.testing.assert_array_equal(moving.rates, before)
    for router in (still, moving):
        router.choose(256)
    np.testing.assert_array_equal(still.rates, before)
    moved = (moving.rates != before).mean()
    assert 1 - np.exp(-0.5) - 0.06 < moved < 1 - np.exp(-0.5) + 0.06
    np.testing.assert_allclose(np.sort(moving.rates), np.sort(before))
