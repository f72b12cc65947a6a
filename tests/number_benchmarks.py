"""Small benchmarks in the official layouts, and a retriever of numbers for them."""

from toy_retriever import Plain, write_json, write_shades

SHADES = list(range(0, 256, 4))  # 64 pictures


TEST_KEYS = ("id", "reference_img_id", "relative_caption", "shared_concept")


def shade_id(index: int) -> str:
    return f"dev-{index:03}"


def cirr(root):
    """60 pictures, 10 queries; each set is six neighbours."""
    entries = []
    for number in range(10):
        reference, target = 5 * number, 5 * number + 1 + number % 4
        entry = {
            "pairid": 100 + number,
            "reference": shade_id(reference),
            "target_hard": shade_id(target),
        }
        entry |= {
            "target_soft": {shade_id(target): 1.0},
            "caption": str(4 * (1 + (number + number // 5) % 4)),
        }
        entries.append(
            entry
            | {"img_set": {"id": number, "members": [shade_id(reference + i) for i in range(6)]}}
        )
    write_json(root / "cirr/captions/cap.rc2.val.json", entries)
    files = {shade_id(i): f"./dev/s{4 * i:03}.png" for i in range(60)}
    write_json(root / "cirr/image_splits/split.rc2.val.json", files)
    write_shades(root / "dev", [4 * i for i in range(60)])


def fashioniq(root):
    """Three categories of 20 queries over 60 pictures; the captions are numbers, joined with "and"."""
    shades = [4 * i for i in range(60)]
    names = [f"s{shade:03}" for shade in shades]
    for offset, category in enumerate(("dress", "shirt", "toptee")):
        entries = [
            {
                "candidate": names[i + offset],
                "target": names[(7 * i + offset) % 60],
                "captions": [str(4 * i), "8"],
            }
            for i in range(20)
            if (7 * i + offset) % 60 != i + offset
        ]
        write_json(root / f"captions/cap.{category}.val.json", entries)
        write_json(root / f"image_splits/split.{category}.val.json", names)
    write_shades(root / "images", shades)


def coco_pictures(folder, ids):
    write_shades(folder, ids)
    for shade in ids:
        (folder / f"s{shade:03}.png").rename(
            folder / f"{shade:012}.jpg"
        )  # PNG inside: what counts is the content


def circo(root):
    entries = []
    for index in range(12):
        right = [4 * (index + 3 + step) for step in range(1 + index % 3)]
        entry = {
            "id": index,
            "reference_img_id": 4 * index,
            "target_img_id": right[0],
            "gt_img_ids": right,
        }
        entry |= {"relative_caption": str(4 * (index % 4)), "shared_concept": "a shade"}
        entries.append(
            entry | {"semantic_aspects": ["addition"] if index % 2 else ["negation", "addition"]}
        )
    write_json(root / "annotations/val.json", entries)
    write_json(root / "annotations/test.json", [{k: e[k] for k in TEST_KEYS} for e in entries])
    images = [{"id": 4 * i, "file_name": f"{4 * i:012}.jpg"} for i in range(60)]
    write_json(
        root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": images}
    )
    coco_pictures(root / "COCO2017_unlabeled/unlabeled2017", [4 * i for i in range(60)])


class Numbers(Plain):
    """Adds the first number of a text."""

    def encode_query(self, images, texts):
        words = [text.split()[0].strip(".,") for text in texts]
        return super().encode_query(images, words)
