"""Published rates of accelerator cards, for estimates by roofline."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """Hold a card's memory and rates.

    Attributes:
        memory: GiB that its driver reports.
        flops: dense bfloat16 operations a second.
        bandwidth: bytes a second of its memory.
        link: bytes a second between the cards of one machine, in one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float


# Vendors' data sheets, without sparsity: H100 SXM, H200 SXM, A100 SXM 80 GB (NVLink 450, 450 and 300 GB/s a direction),
# L4 (PCIe 4.0 x16).
CARDS = {
    "h100-80": Accelerator(79.6, 989e12, 3.35e12, 450e9),
    "h200-141": Accelerator(140.4, 989e12, 4.8e12, 450e9),
    "a100-80": Accelerator(79.3, 312e12, 2.04e12, 300e9),
    "l4-24": Accelerator(22.5, 121e12, 0.3e12, 32e9),
}


def card_named(name: str) -> Accelerator | None:
    """Return the rates of a device by the name that its driver reports, such as "NVIDIA H100 80GB HBM3", or None."""
    for key, card in CARDS.items():
        if re.search(rf"\b{key.partition('-')[0]}\b", name, re.IGNORECASE):
            return card
    return None
