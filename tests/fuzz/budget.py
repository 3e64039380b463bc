"""How long fuzz tests look: the same few examples every time, or as many new ones as KRASIS_FUZZ says."""

import os

from hypothesis import HealthCheck, settings

LONGER = os.environ.get("KRASIS_FUZZ")


def budget(examples):
    """Settings of a test that tries so many examples unless told to try others."""
    return settings(
        max_examples=int(LONGER) if LONGER else examples,
        derandomize=not LONGER,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
