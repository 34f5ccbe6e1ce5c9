"""Small runs of MAML on sine waves and on digits."""

import pytest
from maml_cases import DIGITS, SINE, SMOOTH


@pytest.fixture
def sine(play):
    return lambda *words, method="maml": play(f"method={method}", *SINE, *SMOOTH, "model.hidden=[6]", *words)


@pytest.fixture
def digits(play):
    return lambda *words, method="maml": play(f"method={method}", *DIGITS, *SMOOTH, "model.hidden=[8]", *words)
