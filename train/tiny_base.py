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
# Selectors are learned from words alone, among few objects and then among more, each until every attribute is KNOWN
# alone, while pictures are learned by describing them; then all tasks with pictures. A step has one task, drawn by its
# running loss: what is learned gives way. Without this colours or shapes are not learned in 2,600 steps, and pictures
# not after words (docs/log.md).
WORDS, KNOWN = (3, 6, 9), 0.85  # most objects of a scene; share of scenes with every verdict right
BETAS, WARM_UP, FLOOR = (0.9, 0.98), 100, 0.03

BY, END, YES, NO = " by", ";", " yes", " no"
ATTRIBUTES = ("slot", "size", "colour", "shape")
EVEN = (1.0, 1.0, 1.0, 1.0)  # how often a selector names nothing but its slot, size, colour, shape
LEAST, EVERY = 0.05, 25  # what is learned still comes now and then; selectors are looked at every 25 steps

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
    rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN, subsets: float = 0.4, most: int = 9
) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): for every object of a scene, whether a selector means it.

    Half of the answers describe the scene first, as many an instruction asks: what was said before must not distract.
    """
    scene = draw_scene(rng, test, most // 2, most)
    pick = draw_pick(rng, scene, alone, subsets)
    meant = [scenes.matches(pick, slot, thing) for slot, thing in enumerate(scene) if thing]
    selector, first = scenes.selector_text(pick), rng.random() < 0.5
    answer = "; ".join([scenes.scene_text(scene)] * first + scenes.verdicts(scene, selector, meant))
    return scene, (prompts.DESCRIBE_SELECT if first else prompts.SELECT).replace("{text}", selector), answer


def draw_edit(rng: random.Random, test: bool, alone: Sequence[float]) -> tuple[scenes.Scene, scenes.Edit]:
    """Return a scene and an edit of it, both scenes of one side of the train/test hash."""
    while True:
        scene = draw_scene(rng, test)
        pick = draw_pick(rng, scene, alone)
        edit = scenes.random_edit(rng, scene, scenes.PALETTES["all"], rng.choice(scenes.KINDS), pick)
        if edit and scenes.is_test_scene(edit.result) == test:
            return scene, edit


def apply(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): the scene after a random edit, in words."""
    scene, edit = draw_edit(rng, test, alone)
    return scene, prompts.APPLY.replace("{text}", edit.text), scenes.scene_text(edit.result)


def revise(rng: random.Random, test: bool = False, alone: Sequence[float] = EVEN) -> tuple[scenes.Scene, str, str]:
    """Return (scene, prompt, answer): the scene after an edit whose objects are named one by one, in words."""
    scene, edit = draw_edit(rng, test, alone)
    return scene, prompts.REVISE.replace("{text}", scenes.notes(scene, edit)), scenes.scene_text(edit.result)


TASKS = {"describe": describe, "select": select, "apply": apply, "revise": revise}


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


def encode(encoder: ChatEncoder, drawn: Sequence, rng: random.Random, verdicts: bool, pictures: bool = True):
    """Return model inputs and labels (B, T) of (scene, prompt, answer): all of it, or its selector and verdicts."""
    images = [scenes.render(scene, rng) for scene, _, _ in drawn]
    answers = [[*ids, encoder.tokenizer.eos_token_id] for ids in encoder.plain_ids([answer for *_, answer in drawn])]
    inputs, labels = encoder(images, [prompt for _, prompt, _ in drawn], answers)
    if verdicts:
        by, end, yes, no = (torch.tensor(ids) for ids in encoder.plain_ids([BY, END, YES, NO]))
        begun = (labels == by[0]).cumsum(dim=1) > 0
        selector = begun & (begun & (labels == end[0])).cumsum(dim=1).eq(0)
        labels[~(selector | torch.isin(labels, torch.stack([yes[0], no[0]])))] = IGNORE
    return (inputs, labels) if pictures else without_pictures(inputs, labels, encoder)


def without_pictures(inputs: dict, labels: torch.Tensor, encoder: ChatEncoder) -> tuple[dict, torch.Tensor]:
    """Return inputs and labels (B, T) without the pictures and the tokens that stand for them; all are equally many."""
    seen = (inputs["input_ids"][0] == encoder.image_token).nonzero()[:, 0]
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[seen[0] - 1 : seen[-1] + 2] = False  # with the tokens that open and close a picture
    return {name: inputs[name][:, keep] for name in ("input_ids", "attention_mask")}, labels[:, keep]


def predict(model, inputs: dict, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits (S, V) at the supervised positions, the wanted tokens (S,), and the positions (B, T - 1)."""
    wanted = labels[:, 1:]
    at = wanted != IGNORE
    hidden = model.model(**inputs).last_hidden_state[:, :-1]
    return model.lm_head(hidden[at]), wanted[at], at


@torch.no_grad()
def exact_rows(model, encoder: ChatEncoder, drawn: Sequence, rng: random.Random, *how: bool) -> float:
    """Return the share of (scene, prompt, answer) whose every supervised token is right; `how` as `encode` takes it."""
    inputs, labels = encode(encoder, drawn, rng, *how)
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


def exact_alone(
    model, encoder: ChatEncoder, rng: random.Random, rows: int, most: int = 9, pictures: bool = True, test: bool = False
) -> list[float]:
    """Return for selectors that name only a slot, size, colour or shape the share of scenes with all verdicts right."""
    rates = []
    for only in range(4):
        weights = [float(at == only) for at in range(4)]
        drawn = [select(rng, test, weights, 0, most) for _ in range(rows)]
        rates.append(exact_rows(model, encoder, drawn, rng, True, pictures))
    return rates


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: warm-up, then a cosine down to 3 % of its peak."""
    wave = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * wave)


class Lessons:
    """What comes next: selectors in words, pictures described, then everything; what is not known comes more often."""

    def __init__(self, words: Sequence[int]):
        self.words, self.alone, self.known = list(words), EVEN, [0.0] * 4
        self.means = dict.fromkeys(TASKS, 1.0)

    def draw(self, rng: random.Random, rows: int) -> tuple[str, list, bool]:
        """Return the name of a task, rows of (scene, prompt, answer), and whether their pictures are shown."""
        names = ("describe", "select") if self.words else tuple(TASKS)
        (name,) = rng.choices(names, [LEAST + min(self.means[name], 1.0) for name in names])
        if self.words and name == "select":
            return name, [select(rng, False, self.alone, most=self.words[0]) for _ in range(rows)], False
        return name, [TASKS[name](rng, False, self.alone) for _ in range(rows)], True

    def look(self, model, encoder: ChatEncoder, rng: random.Random) -> None:
        """Measure selectors of one attribute, weigh them by it, and go on to the next lesson when all are known."""
        found = exact_alone(model, encoder, rng, 16, *((self.words[0], False) if self.words else ()))
        self.known = [0.7 * old + 0.3 * new for old, new in zip(self.known, found, strict=True)]
        self.alone = [LEAST + 1 - value for value in self.known]
        if self.words and min(self.known) > KNOWN:
            self.words, self.known = self.words[1:], [0.5] * 4

    def learned(self, name: str, loss: float) -> None:
        """Take the loss of a step into its task's running mean."""
        self.means[name] = 0.95 * self.means[name] + 0.05 * loss

    def shown(self) -> dict[str, str]:
        """Return what the progress bar shows."""
        lesson = {"words": str(self.words[0])} if self.words else {}
        values = self.means | dict(zip(ATTRIBUTES, self.known, strict=True))
        return lesson | {name: f"{value:.3f}" for name, value in values.items()}


def train(model, encoder: ChatEncoder, args: argparse.Namespace) -> None:
    """Train in place, one task a step."""
    rng, bf16 = random.Random(args.seed), args.device == "cuda" or torch.cpu._is_avx512_bf16_supported()
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=0.01)
    lessons = Lessons(() if args.init else WORDS)
    bar = tqdm(range(args.steps), desc="tiny base", unit=" steps", mininterval=5)
    for step in bar:
        name, drawn, pictures = lessons.draw(rng, args.batch_size)
        inputs, labels = encode(encoder, drawn, rng, name == "select", pictures)
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
        lessons.learned(name, loss.item())
        if step % EVERY == EVERY - 1:
            lessons.look(model, encoder, rng)
            bar.set_postfix(lessons.shown())


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
        model = tiny_model("qwen2_5_vl", tokenizer, args.seed, **SIZES)
        processor = tiny_processor("qwen2_5_vl", tokenizer)
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
