import shutil
from pathlib import Path

import pytest

FORMATS = Path(__file__).parents[2] / "formats"


@pytest.fixture(scope="session")
def formats():
    return FORMATS


@pytest.fixture
def tiny(formats, tmp_path):
    """A copy of the smallest pack, to be spoilt."""
    return Path(shutil.copytree(formats / "vectors/pack-v1/valid/tiny", tmp_path / "tiny"))


@pytest.fixture
def path(tmp_path):
    """Where a test writes a pack."""
    return tmp_path / "pack"


@pytest.fixture
def partial(path):
    """Where it lies until it is whole."""
    return path.with_name("pack.partial")
