from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon.daemons import Place, scratch_place


@pytest.fixture
def place() -> Iterator[Place]:
    with scratch_place() as place:
        yield place
