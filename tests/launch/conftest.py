import pytest
from stand_ins import Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)
