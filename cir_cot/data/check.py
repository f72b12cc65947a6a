"""Check a dataset: its queries, its pictures, and what its splits share with train."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from cir_cot.errors import InputError, UnavailableError
from cir_cot.images import ImageStore
from cir_cot.picture_files import find_pictures
from cir_cot.records import Record

from . import load_benchmark
from .benchmark import Benchmark, label

# Ours: the official FashionIQ shares 3 of its 6,016 val pairs with train, which no user can cure.
FEW = 0.001

Finding = tuple[str, list[str]]  # (name of the check, its cases)


def named(records: Iterable[Record]) -> list[str]:
    """List the pictures that the queries name, each once."""
    images: list[str] = []
    for record in records:
        images += [record.reference, *record.targets]
    return list(dict.fromkeys(images))


def check_queries(benchmark: Benchmark) -> list[Finding]:
    """Check the records themselves, and that the gallery holds their targets."""
    where = label(benchmark)
    seen: dict[tuple[str, str], str] = {}
    cases: dict[str, list[str]] = {}

    def case(check: str, record: Record, what: str) -> None:
        cases.setdefault(check, []).append(f"{where} {record.id}: {what}")

    for record in benchmark.records:
        # Texts.
        if is_blank(record.text):
            case("blank_text", record, "no text")
        captions = benchmark.captions[record.id] if benchmark.captions else ()
        if any(is_blank(caption) for caption in captions):
            case("blank_caption", record, "one of the two captions is blank")

        # Targets.
        if record.reference in record.targets:
            what = (
                f"{record.reference}: a certain miss if the reference is removed from the ranking"
            )
            case("reference_is_target", record, what)
        for target in record.targets:
            if benchmark.members and target not in benchmark.members:
                case("target_not_in_gallery", record, target)
            if record.subset and target not in record.subset:
                case("target_not_in_subset", record, target)

        # Repetitions.
        first = seen.setdefault((record.reference, record.text), record.id)
        if first != record.id:
            case("duplicate_query", record, f"same reference and text as {first}")
    return list(cases.items())


def is_blank(text: str) -> bool:
    """Tell whether a text holds nothing but spaces and punctuation."""
    return not text.strip(" .,?")


def check_images(benchmark: Benchmark, store: ImageStore, counts: dict) -> list[Finding]:
    """Decode every picture of gallery and queries; `counts` gets the size of the usable gallery."""
    # Decode in threads: Pillow releases the interpreter lock.
    names = list(dict.fromkeys([*benchmark.gallery, *named(benchmark.records)]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(lambda name: look_at(store, name), names)
        bar = tqdm(looks, total=len(names), unit=" pictures", disable=None)
        states = dict(zip(names, bar, strict=True))

    # Sort the pictures by state; usable ones with the same digest are copies.
    copies: dict[str, list[str]] = {}
    missing = []
    corrupt = []
    for name, (state, detail) in states.items():
        if state == "fine":
            copies.setdefault(detail, []).append(name)
        elif state == "missing":
            missing.append(detail)
        else:
            corrupt.append(detail)
    usable = [name for name in benchmark.gallery if states[name][0] == "fine"]
    counts["effective_gallery"] = len(usable)
    return [
        ("missing_image", missing),
        ("corrupt_image", corrupt),
        ("same_image_id", same_ids(store)),
        ("duplicate_image", [" = ".join(names) for names in copies.values() if len(names) > 1]),
    ]


def same_ids(store: ImageStore) -> list[str]:
    """List the pictures that share an id with another file, which `cir-cot index` refuses."""
    if store.files is not None:
        return []
    return [f"{first} = {second}" for first, second in find_pictures(store.root).clashes]


def look_at(store: ImageStore, name: str) -> tuple[str, str]:
    """Decode a picture: return ("fine", its digest), ("missing", why) or ("corrupt", why)."""
    # Missing and corrupt are different findings.
    try:
        store.path(name)
    except InputError as error:
        return "missing", str(error)
    try:
        store.load(name)
        return "fine", store.fingerprint(name)
    except InputError as error:
        return "corrupt", str(error)


def check_leaks(
    name: str, root: str, benchmarks: list[Benchmark], notes: list[str]
) -> list[Finding]:
    """Find pictures and queries that this split shares with the train split, if there is one."""
    if benchmarks[0].split == "train":
        return []
    # Without a train split there is nothing to compare with.
    try:
        train = load_benchmark(name, root, "train")
    except UnavailableError as error:
        notes.append(f"leaks from train not checked: {error}")
        return []
    except InputError as error:
        return [("schema", [str(error)])]

    # What train holds.
    known_images: set[str] = set()
    known_pairs: set[tuple[str, str]] = set()
    for benchmark in train:
        known_images.update(benchmark.gallery)
        for record in benchmark.records:
            known_pairs.update(pairs(record))

    # What this split shares with it.
    shared: set[str] = set()
    leaked = []
    for benchmark in benchmarks:
        shared.update(known_images.intersection(benchmark.gallery))
        for record in benchmark.records:
            if known_pairs.intersection(pairs(record)):
                query = f"{record.reference} -> {' '.join(record.targets)}"
                leaked.append(f"{label(benchmark)} {record.id}: {query}")
    # A few shared queries are a warning, many an error.
    few = len(leaked) <= FEW * sum(len(benchmark.records) for benchmark in benchmarks)
    queries = "few_queries_in_train" if few else "query_in_train"
    return [("image_in_train", sorted(shared)), (queries, leaked)]


def pairs(record: Record) -> list[tuple[str, str]]:
    """List (reference, target) of each target."""
    return [(record.reference, target) for target in record.targets]
