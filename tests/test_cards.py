"""Cards are known by the names that their drivers report."""

import pytest

from cir_cot.cards import CARDS, card_named

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-80",
    "NVIDIA H200": "h200-141",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA L4": "l4-24",
    "NVIDIA L40S": None,
    "cpu x86_64, 2 cores, linux": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_known_by_its_name(name):
    key = NAMES[name]
    assert card_named(name) == (CARDS[key] if key else None)
