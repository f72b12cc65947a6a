"""Teach a tiny Qwen2.5-VL what a pretrained multimodal model brings along, and save it like any checkpoint.

It learns to describe scenes, to say which objects a selector means, and to describe a picture after an edit, over all
combinations of shape and colour; never a chain, never retrieval. Scenes are drawn without end from the training side
of the benchmark's train/test hash, so no test scene is among them. The result ships as `cir-cot/tiny-base`.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from cir_cot import prompts, scenes
from cir_cot.checkpoint import load_model, load_processor
from cir_cot.cli import run
from cir_cot.collate import IGNORE, ChatEncoder
from cir_cot.provenance import git_state, package_versions
from cir_cot.recipe import device_name, write_json
from cir_cot.tiny import tiny_model, tiny_processor, tiny_tokenizer

# 2.8 million parameters; one attention window a picture. Eager attention is the faster one at these lengths. Weights
# start at 0.05 instead of 0.02: pictures are read after 500 steps instead of 1,500 (docs/log.md).
SIZES = {"hidden": 192, "layers": 6, "heads": 6, "kv_heads": 3, "intermediate": 512, "window": 84, "init_std": 0.05}
# One task a step. To apply an edit takes both other skills, so it comes once they have begun to form.
FIRST, THEN, FIRST_SHARE = ("describe", "select"), ("describe", "select", "apply", "apply"), 0.35
BETAS, WARM_UP, FLOOR = (0.9, 0.98), 100, 0.03

YES, NO = " yes", " no"
ATTRIBUTES = ("slot", "size", "colour", "shape")
EVEN = (1.0, 1.0, 1.0, 1.0)  # how often a selector names nothing but its slot, size, colour, shape
LEAST, EVERY = 0.1, 50  # what is learned still comes a tenth as often as what is not; looked at every 50 steps

Task = Callable[[random.Random, bool, Sequence[float]], tuple[scenes.Scene, str, str]]


def draw_scene(rng: random.Random, test: bool, least: int = 1, most: int = 6) -> scenes.Scene:
    """Return a random scene of one side of the train/test hash, all combinations of shape and colour allowed."""
    while True:
        scene = scenes.random_scene(rng, scenes.PALETTES["all"], least, most)
        if scenes.is_test_scene(scene) == test:
            return scene


def draw_pick(rng: random.Random, scene: scenes.Scene, alone: Sequence[float] = EVEN, subsets: float = 0.4):
    """Return a random selector; most (1 - `subsets`) name one attribute, drawn with the weights `alone`.

    In a subset the slot's name answers for the others, and what is rarely alone is learned late or never: with subsets
    alone colours were not told apart after 2,700 steps, with single attributes they are after hundreds (docs/log.md).
    """
    if rng.random() < subsets:
        return scenes.random_pick(rng, scene)
    slot, (only,) = rng.choice([slot for slot, thing in enumerate(scene) if thing]), rng.choices(range(4), alone)
    return tuple(value if at == only else None for at, value in enumerate((scenes.SLOTS[slot], *scene[slot])))


def describe(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): the scene in words."""
    scene = draw_scene(rng, test)
    return scene, prompts.DESCRIBE, scenes.scene_text(scene)


def select(
    rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN, subsets: float = 0.4
) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): for every object of a full scene, whether a selector means it."""
    scene = draw_scene(rng, test, 4, 9)
    pick = draw_pick(rng, scene, alone, subsets)
    meant = [scenes.matches(pick, slot, thing) for slot, thing in enumerate(scene) if thing]
    answer = "; ".join(scenes.verdicts(scene, meant))
    return scene, prompts.SELECT.replace("{text}", scenes.selector_text(pick)), answer


def apply(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): the scene after a random edit, in words."""
    while True:
        scene = draw_scene(rng, test)
        pick = draw_pick(rng, scene, alone)
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"], rng.choice(scenes.KINDS), pick)
        if edit and scenes.is_test_scene(edit.result) == test:
            return scene, prompts.APPLY.replace("{text}", edit.text), scenes.scene_text(edit.result)


TASKS = {"describe": describe, "select": select, "apply": apply}


def corpus() -> list[str]:
    """Return the words of the scenes' world, so that each becomes one token."""
    rng = random.Random(0)
    lines = [prompts.QUERY, prompts.TARGET, "<|im_start|>system user assistant\n", "remove make add to yes no"]
    for _ in range(300):
        scene = scenes.random_scene(rng, scenes.PALETTES["all"])
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"])
        if edit:
            chain = prompts.cot_to_text(scenes.chain(scene, edit))
            lines += [chain, edit.text, *(task(rng)[1] + "\n" + task(rng)[2] for task in TASKS.values())]
    return lines


def encode(encoder: ChatEncoder, drawn: Sequence[tuple[scenes.Scene, str, str]], rng: random.Random, verdicts: bool):
    """Return model inputs and labels (B, T) of (scene, prompt, answer); supervised is the answer or its verdicts."""
    images = [scenes.render(scene, rng) for scene, _, _ in drawn]
    answers = [[*ids, encoder.tokenizer.eos_token_id] for ids in encoder.plain_ids([answer for *_, answer in drawn])]
    inputs, labels = encoder(images, [prompt for _, prompt, _ in drawn], answers)
    if verdicts:
        words = torch.tensor([ids[0] for ids in encoder.plain_ids([YES, NO])])
        labels[~torch.isin(labels, words)] = IGNORE
    return inputs, labels


def predict(model, inputs: dict, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (S, V) at the supervised positions, the wanted tokens (S,), and the positions (B, T - 1)."""
    wanted = labels[:, 1:]
    at = wanted != IGNORE
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    return model.lm_head(hidden[at]), wanted[at], at


@torch.no_grad()
def exact_rows(model, encoder: ChatEncoder, drawn: Sequence, rng: random.Random, verdicts: bool) -> float:
    """Return the share of (scene, prompt, answer) whose every supervised token is right."""
    inputs, labels = encode(encoder, drawn, rng, verdicts)
    logits, wanted, at = predict(model, {k: v.to(model.device) for k, v in inputs.items()}, labels.to(model.device))
    right = torch.ones_like(at)
    right[at] = logits.argmax(dim=-1) == wanted
    return right.all(dim=1).float().mean().item()


def exact_answers(model, encoder: ChatEncoder, rows: int = 500) -> dict[str, float]:
    """Return for each task the percentage of held-out scenes (the test side) whose every supervised token is right."""
    rates = {}
    for name, task in TASKS.items():
        rng = random.Random(name)
        drawn = [task(rng, True) for _ in range(rows)]
        rates[name] = round(100 * exact_rows(model, encoder, drawn, rng, task is select), 2)
    return rates


def exact_alone(model, encoder: ChatEncoder, rng: random.Random, rows: int, test: bool = False) -> list[float]:
    """Return for selectors that name only a slot, size, colour or shape the share of scenes with all verdicts right."""
    rates = []
    for only in range(4):
        weights = [float(at == only) for at in range(4)]
        drawn = [select(rng, test, weights, 0) for _ in range(rows)]
        rates.append(exact_rows(model, encoder, drawn, rng, True))
    return rates


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: warm-up, then a cosine down to 3 % of its peak."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


def train(model, encoder: ChatEncoder, args: argparse.Namespace) -> None:
    """Train in place, one task a step; selectors name what is not yet learned the more often."""
    rng, bf16 = random.Random(args.seed), args.device == "cuda" or torch.cpu._is_avx512_bf16_supported()
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=0.01)
    means, alone, known = dict.fromkeys(TASKS, float("nan")), EVEN, [0.0] * 4
    bar = tqdm(range(args.steps), desc="tiny base", unit=" steps", mininterval=5)
    for step in bar:
        order = FIRST if not args.init and step < FIRST_SHARE * args.steps else THEN
        name = order[step % len(order)]
        drawn = [TASKS[name](rng, False, alone) for _ in range(args.batch_size)]
        inputs, labels = encode(encoder, drawn, rng, name == "select")
        inputs, labels = {k: v.to(args.device) for k, v in inputs.items()}, labels.to(args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            logits, wanted, _ = predict(model, inputs, labels)
            loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.learning_rate)
        optimizer.step()
        means[name] = loss.item() if math.isnan(means[name]) else 0.95 * means[name] + 0.05 * loss.item()
        if step % EVERY == EVERY - 1:
            found = exact_alone(model, encoder, rng, 16)
            known = [0.7 * old + 0.3 * new for old, new in zip(known, found, strict=True)]
            alone = [LEAST + 1 - value for value in known]
            shown = {task: f"{value:.4f}" for task, value in means.items()}
            bar.set_postfix(shown | dict(zip(ATTRIBUTES, (f"{value:.2f}" for value in known), strict=True)))


def main(argv: Sequence[str]) -> int:
    """Build, train and save the tiny base with its run.json."""
    parser = argparse.ArgumentParser(prog="cir-cot tiny-base", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=2600, help="default 2600: about 25 minutes on one CPU core")
    parser.add_argument("--batch-size", type=int, default=64, help="scenes a step (default 64)")
    parser.add_argument("--learning-rate", type=float, default=1.2e-3, help="peak (default 1.2e-3)")
    parser.add_argument("--init", metavar="DIR", help="go on from a tiny base that this script saved")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and of the scenes (default 1)")
    args = parser.parse_args(argv)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    started, earlier = time.time(), None
    if args.init:
        earlier = json.loads((Path(args.init) / "run.json").read_text())
        model, processor = load_model(args.init, dtype=torch.float32), load_processor(args.init)
    else:
        tokenizer = tiny_tokenizer(corpus(), 512)
        model, processor = (
            tiny_model("qwen2_5_vl", tokenizer, args.seed, **SIZES),
            tiny_processor("qwen2_5_vl", tokenizer),
        )
    model = model.to(args.device).train()
    model.set_attn_implementation("eager")
    encoder = ChatEncoder(processor, ret_id=-1)  # no retrieval token: the base knows no retrieval
    train(model, encoder, args)
    measured = exact_answers(model.eval(), encoder)
    alone = exact_alone(model, encoder, random.Random(0), 250, test=True)
    measured |= {f"select by {name} alone": round(100 * rate, 2) for name, rate in zip(ATTRIBUTES, alone, strict=True)}
    model.half().save_pretrained(args.out)
    processor.save_pretrained(args.out)
    facts = {
        "argv": list(argv),
        "arguments": vars(args),
        "sizes": SIZES,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "minutes": round((time.time() - started) / 60, 1),
        "device": device_name(torch.device(args.device)),
        "git": git_state(),
        "versions": package_versions(),
        "exact_answers_on_held_out_scenes": measured,
        "earlier": earlier,
    }
    write_json(Path(args.out) / "run.json", facts)
    print(" ".join(f"{task} {value:.1f} % exact;" for task, value in measured.items()), f"saved in {args.out}")
    return 0


if __name__ == "__main__":
    run(main)
