"""The chain's loss in tiles: the same number and gradients as at once, less memory."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from cir_cot.losses import token_loss
from cir_cot.peak_bytes import peak_bytes

ROWS, WIDTH, WORDS = 64, 8, 500


def loss_and_gradients(tile: int | None) -> list[torch.Tensor]:
    torch.manual_seed(0)
    layer, hidden = torch.nn.Linear(WIDTH, WORDS), torch.randn(ROWS, WIDTH, requires_grad=True)
    wanted = torch.randint(WORDS, (ROWS,))
    at_once = tile is None
    loss = (
        functional.cross_entropy(layer(hidden), wanted)
        if at_once
        else token_loss(layer, hidden, wanted, WORDS, tile)
    )
    loss.backward()
    return [loss.detach(), hidden.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("tile", [1, 7 * WORDS, 32 * WORDS, ROWS * WORDS])
def test_tiles_change_neither_loss_nor_gradients(tile):
    for ours, theirs in zip(loss_and_gradients(tile), loss_and_gradients(None), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("tile", "most", "calls"), [(1, 1, 64), (7 * WORDS, 7, 10), (8 * WORDS - 1, 7, 10)]
)
def test_a_tile_holds_as_many_whole_rows_as_fit_and_at_least_one(tile, most, calls):
    sizes = []

    def logits(states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return states @ torch.zeros(WIDTH, WORDS)

    token_loss(logits, torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, dtype=torch.long), WORDS, tile)
    assert sum(sizes) == ROWS
    assert max(sizes) == most
    assert len(sizes) == calls


def test_no_word_is_no_loss_and_still_has_gradients():
    layer, hidden = torch.nn.Linear(WIDTH, WORDS), torch.randn(0, WIDTH, requires_grad=True)
    loss = token_loss(layer, hidden, torch.zeros(0, dtype=torch.long), WORDS)
    loss.backward()
    assert loss.item() == 0
    assert not layer.weight.grad.any()


def test_a_single_word_of_a_bfloat16_model_has_its_cross_entropy_in_float32():
    torch.manual_seed(0)
    layer, hidden = torch.nn.Linear(WIDTH, WORDS).bfloat16(), torch.randn(1, WIDTH).bfloat16()
    loss = token_loss(layer, hidden, torch.tensor([7]), WORDS)
    assert loss.dtype == torch.float32
    assert loss.equal(functional.cross_entropy(layer(hidden).float(), torch.tensor([7])))


def test_tiles_bound_memory():
    whole, tiled = (
        peak_bytes(lambda tile=tile: loss_and_gradients(tile)) for tile in (ROWS * WORDS, 8 * WORDS)
    )
    assert whole > 3 * 4 * ROWS * WORDS  # logits, their logarithmic softmax, their gradient
    assert tiled < whole / 3


RANK = """
import sys, torch
from cir_cot.losses import token_loss
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
calls = []
def logits(states):
    calls.append(len(states))
    return states @ torch.ones(4, 10)
rows = (9, 2)[rank]
token_loss(logits, torch.zeros(rows, 4, requires_grad=True), torch.zeros(rows, dtype=torch.long), 10, 30).backward()
torch.distributed.barrier()
print(*calls)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_processes_with_unequal_rows_compute_equally_many_tiles(tmp_path):
    call = [sys.executable, "-c", RANK]
    with (
        subprocess.Popen(
            [*call, "0", tmp_path / "store"], stdout=subprocess.PIPE, text=True
        ) as many,
        subprocess.Popen(
            [*call, "1", tmp_path / "store"], stdout=subprocess.PIPE, text=True
        ) as few,
    ):
        sizes = [
            [int(size) for size in process.communicate()[0].split()] for process in (many, few)
        ]
    # once more each in the backward pass, in reverse
    assert sizes == [[3, 3, 3, 3, 3, 3], [1, 1, 0, 0, 1, 1]]
