"""What tests need of the shipped base."""

import pytest

from model_code.base import missing


def need_base() -> None:
    """Skips a test where a network of the shipped base is not there."""
    if missing():
        pytest.skip(f"the shipped base lacks {', '.join(missing())}: restore it from git")
