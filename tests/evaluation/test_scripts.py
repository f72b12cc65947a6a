"""`cir-cot retrieval` and `cir-cot reasoning` from the command line: files, numbers, refusals, CIRCO zero-shot."""

import gzip
import json
import shutil

import pytest
from PIL import Image, ImageDraw
from tiny_training import tiny_head
from toy_retriever import Constant, Toy, query, write_folder, write_json

from cir_cot.cli import run
from cir_cot.data import load_benchmark
from cir_cot.data.scene_files import write_scenes
from cir_cot.errors import InputError
from cir_cot.evaluation.chain_study import faithfulness, study_chains, study_json, study_tables
from cir_cot.evaluation.counterfactuals import EDITS
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.heads import load_retriever
from cir_cot.records import read_records
from cir_cot.retriever import QueryOutput
from cir_cot.scripts.eval import build_index, reasoning, retrieval, score
from cir_cot.scripts.eval import faithfulness as faithfulness_script


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A chain retriever on a tiny Qwen2.5-VL, untrained, saved as training saves it; its chains stop at four tokens."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tiny_head(lora=False, max_new_tokens=4).save(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes: 4 references x 3 edits, with true chains."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, seed=0, references=4, edits=3, size=84)
    return folder


def command(model, root, *more, benchmark="folder", split="iid"):
    argv = [
        "--model",
        model,
        "--benchmark",
        benchmark,
        "--root",
        root,
        "--split",
        split,
        "--device",
        "cpu",
        *more,
    ]
    return [str(value) for value in argv]


def answer_of(capsys):
    """The one JSON object on stdout, and stderr."""
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


# ---- retrieval


@pytest.mark.parametrize("reading", ["full", "fast", "oracle", "image_only", "text_only"])
def test_a_checkpoint_is_measured_in_every_reading(reading, checkpoint, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    argv = command(
        checkpoint, scenes, "--reading", reading, "--out", out, "--json", "--batch-size", 5
    )
    assert retrieval.main(argv) == 0
    answer, errors = answer_of(capsys)
    assert json.loads((out / "results.json").read_text()) == answer
    assert answer["protocol"]["reading"] == reading
    assert answer["protocol"]["model"] == str(checkpoint)
    assert answer["protocol"]["gallery_size"] == 4 * 4
    assert answer["protocol"]["reference"] == "removed"
    assert set(answer["by_source"]) == {
        record.source for record in read_records(scenes / "records.iid.jsonl")
    }
    assert "R@10" in errors
    files = {
        "results.json",
        "rankings.json.gz",
        "report.md",
        "report.html",
        ".cir-cot.json",
        ".lock",
    }
    chains = {"chains.jsonl"} if reading in ("full", "oracle", "text_only") else set()
    assert {path.name for path in out.iterdir()} == files | chains
    argv = ["--benchmark", "folder", "--root", str(scenes), "--split", "iid", "--json"]
    assert score.main([*argv, "--rankings", str(out / "rankings.json.gz")]) == 0
    assert answer_of(capsys)[0]["metrics"] == answer["metrics"]


def test_a_variant_that_the_benchmark_lacks_is_refused(checkpoint, scenes, capsys):
    for option in ("--prompt=plain", "--caption-join=sep", "--labels=soft", "--gallery=original"):
        error = refused(retrieval.main, command(checkpoint, scenes, option), capsys)
        assert "folder has no option" in error


def test_the_gallery_may_come_from_an_index(checkpoint, scenes, tmp_path, capsys):
    index = str(tmp_path / "index")
    build = ["--model", str(checkpoint), "--images", str(scenes / "images"), "--out", index]
    assert build_index.main(build) == 0
    results = []
    for more in ([], ["--index", index]):
        capsys.readouterr()
        argv = command(checkpoint, scenes, "--reading", "fast", "--json", *more)
        assert retrieval.main(argv) == 0
        results.append(answer_of(capsys)[0])
    assert results[0]["metrics"] == results[1]["metrics"]
    assert [result["protocol"]["index"] for result in results] == [None, index]
    assert results[0]["protocol"]["prompt"] is None


def test_an_index_of_something_else_is_refused(checkpoint, scenes, tmp_path, capsys):
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    index = str(tmp_path / "index")
    build = ["--model", str(checkpoint), "--images", str(copy / "images"), "--out", index]
    assert build_index.main([*build, "--width", "8"]) == 0
    argv = command(checkpoint, copy, "--reading", "fast", "--index", index)
    assert "needs complete float32 vectors" in refused(retrieval.main, argv, capsys)
    shutil.rmtree(index)
    assert build_index.main([*build, "--store-dtype", "float16"]) == 0
    assert "needs complete float32 vectors" in refused(retrieval.main, argv, capsys)
    shutil.rmtree(index)
    assert build_index.main([*build, "--max-pixels", "3136"]) == 0
    assert "encoded at min_pixels 784 and max_pixels 3136" in refused(retrieval.main, argv, capsys)
    shutil.rmtree(index)
    assert build_index.main(build) == 0
    picture = min((copy / "images").iterdir())
    Image.new("RGB", (84, 84)).save(picture)
    error = refused(retrieval.main, argv, capsys)
    assert f"picture {picture.stem!r} has changed since it was encoded" in error
    shutil.rmtree(index)
    picture.unlink()
    assert build_index.main(build) == 0
    Image.new("RGB", (84, 84)).save(picture)
    assert f"picture {picture.stem!r} is not in it" in refused(retrieval.main, argv, capsys)


def test_the_saved_checkpoint_ranks_as_the_one_in_memory(checkpoint, scenes, tmp_path, capsys):
    assert retrieval.main(command(checkpoint, scenes, "--out", tmp_path)) == 0
    assert "folder.iid · full" in capsys.readouterr().out
    (benchmark,) = load_benchmark("folder", scenes, "iid")
    expected = evaluate(
        tiny_head(lora=False, max_new_tokens=4), benchmark, benchmark.images(), batch_size=3
    )
    assert (
        json.loads(gzip.decompress((tmp_path / "rankings.json.gz").read_bytes()))
        == expected.rankings
    )
    lines = [json.loads(line) for line in (tmp_path / "chains.jsonl").read_text().splitlines()]
    assert {line["id"]: line["explanation"] for line in lines} == expected.explanations
    assert all(line["flag"].startswith("no retrieval token") for line in lines)


def test_chains_come_from_a_file_or_a_folder(checkpoint, tmp_path, capsys):
    rows = [query(index, 8 * index, 8, 8 * index + 8, annotated=False) for index in range(8)]
    root = write_folder(tmp_path / "data", rows, range(0, 88, 8))
    chains = tmp_path / "chains"
    lines = [
        json.dumps(
            {"id": r.id, "reference": r.reference, "text": r.text, "targets": list(r.targets)}
        )
        for r in rows
    ]
    cot = ', "cot": {"caption": "a", "reasoning": "b", "conclusion": "c"}}'
    write = "\n".join(line[:-1] + cot for line in lines)
    chains.mkdir()
    (chains / "chains.val.jsonl").write_text(write)
    for path in (chains, chains / "chains.val.jsonl"):
        argv = command(
            checkpoint,
            root,
            "--reading",
            "oracle",
            "--chains",
            path,
            "--out",
            tmp_path / "out",
            split="val",
        )
        assert retrieval.main(argv) == 0
        first = (tmp_path / "out/chains.jsonl").read_text().splitlines()[0]
        assert "<conclusion>c</conclusion>" in first


# ---- reasoning


def test_an_untrained_checkpoint_is_studied(checkpoint, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    assert reasoning.main(command(checkpoint, scenes, "--out", out, "--json")) == 0
    answer, errors = answer_of(capsys)
    assert json.loads((out / "results.json").read_text()) == answer
    assert set(answer["metrics"]) == {"full", "fast", "oracle"}, (
        "all its chains say the same, so none can be lent"
    )
    assert answer["chains"]["folder.iid"] == {
        "chains": 12,
        "valid": 0,
        "missing_token": 100,
        "annotated": 12,
        "exact_caption": 0,
        "exact_reasoning": 0,
        "exact_conclusion": 0,
    }
    assert {name: answer["protocol"][name]["reading"] for name in answer["protocol"]} == {
        name: name for name in ("full", "fast", "oracle")
    }
    assert "missing_token" in errors
    for reading in ("full", "fast", "oracle"):
        saved = json.loads((out / reading / "results.json").read_text())
        assert saved["metrics"] == answer["metrics"][reading]
    assert "exact_conclusion" in (out / "report.md").read_text()


def test_lent_chains_show_whether_retrieval_follows_them(tmp_path):
    """The toy goes where a chain's conclusion says; the constant retriever goes nowhere."""
    shades = list(range(0, 256, 4))
    rows = [query(index, shades[10 + index], 8, shades[12 + index]) for index in range(20)]
    (benchmark,) = load_benchmark("folder", write_folder(tmp_path, rows, shades), "val")
    study = study_chains(Toy(), benchmark, model="toy", batch_size=8)
    results, donors = study
    assert set(results) == {"full", "fast", "oracle", "shuffled"}
    assert results["full"].metrics["R@1"] == results["oracle"].metrics["R@1"] == 100
    assert results["shuffled"].metrics["R@1"] == 0
    answer = faithfulness(study)
    assert answer["moved"] == 100
    # a lent chain may lead to the query's own reference, which is removed
    leads_home = sum(rows[int(name)].reference in donor.targets for name, donor in donors.items())
    assert answer["followed"]["R@1"] == 100 * (20 - leads_home) / 20

    class Deaf(Toy):
        """Writes chains and does not listen to them."""

        encode_target = Constant.encode_target

        def encode_query(self, images, texts, reading=None):
            return (
                Constant.encode_query(self, images, texts)
                if reading == "fast"
                else self.write(images, texts)
            )

        def write(self, images, texts):
            return QueryOutput(
                self.encode_target(images), super().encode_query(images, texts).explanations
            )

        def embed_with(self, images, texts, chains):
            return Constant.encode_query(self, images, texts)

    study = study_chains(Deaf(), benchmark, model="toy", batch_size=8)
    answer = faithfulness(study)
    assert answer["followed"]["R@1"] < 20
    content = study_json([study])
    assert content["chains"]["folder.val"]["exact_conclusion"] == 100
    assert [table.title for table in study_tables(content)] == [
        "Chains",
        "Does retrieval follow the chain?",
    ]


# ---- refused, in one line


def refused(main, argv, capsys):
    with pytest.raises(SystemExit) as exit:
        run(main, argv)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit.value.code == 2
    assert error.startswith("error: ")
    return error


@pytest.mark.parametrize("main", [retrieval.main, reasoning.main])
def test_bad_input_ends_in_one_line(main, checkpoint, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--out", out]
    assert "no retriever.json" in refused(main, command(tmp_path, scenes, *more), capsys)
    assert "records.val.jsonl" in refused(
        main, command(checkpoint, scenes, *more, split="val"), capsys
    )
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(
        main, command(checkpoint, scenes, "--out", tmp_path / "file"), capsys
    )
    assert "no categories" in refused(
        main, command(checkpoint, scenes, *more, "--category", "dress"), capsys
    )
    assert "limit is 0" in refused(main, command(checkpoint, scenes, *more, "--limit", 0), capsys)
    assert "batch_size is 0" in refused(
        main, command(checkpoint, scenes, *more, "--batch-size", 0), capsys
    )
    assert "nowhere.jsonl" in refused(
        main, command(checkpoint, scenes, *more, "--chains", "nowhere.jsonl"), capsys
    )
    rows = [query(0, 8, 8, 16), query(1, 16, 8, 24)]
    root = write_folder(tmp_path / "data", rows, range(0, 88, 8))
    (root / "images/s032.png").unlink()
    error = refused(main, command(checkpoint, root, *more, split="val"), capsys)
    assert "1 of 11 pictures are missing" in error
    assert "'s032'" in error
    assert not out.exists()


def test_an_oracle_without_chains_is_refused(checkpoint, tmp_path, capsys):
    root = write_folder(tmp_path / "data", [query(0, 8, 8, 16, annotated=False)], range(0, 88, 8))
    argv = command(checkpoint, root, "--reading", "oracle", "--out", tmp_path / "out", split="val")
    assert "record '0' has no chain" in refused(retrieval.main, argv, capsys)
    assert not (tmp_path / "out").exists()


# ---- CIRCO, zero-shot


def test_circo_zero_shot(shared_data, checkpoint, tmp_path, capsys):
    """Real val annotations over generated pictures: the gallery is what the image_info file lists."""
    annotations = json.loads((shared_data / "circo/annotations/val.json").read_text())
    root = tmp_path / "CIRCO"
    write_json(root / "annotations/val.json", annotations)
    used = {entry["reference_img_id"] for entry in annotations}
    used |= {image for entry in annotations for image in entry["gt_img_ids"]}
    gallery = sorted(used | set(range(1, 41)))  # 40 distractors
    info = {"images": [{"id": image, "file_name": f"{image:012}.jpg"} for image in gallery]}
    write_json(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", info)
    pictures = root / "COCO2017_unlabeled/unlabeled2017"
    pictures.mkdir()
    for image in gallery:
        draw_coco(image).save(pictures / f"{image:012}.jpg", quality=60)
    out = tmp_path / "out"
    argv = command(
        checkpoint,
        root,
        "--reading",
        "full",
        "--batch-size",
        64,
        "--out",
        out,
        benchmark="circo",
        split="val",
    )
    assert retrieval.main([*argv, "--json"]) == 0
    answer, _ = answer_of(capsys)
    assert json.loads((out / "results.json").read_text()) == answer
    protocol = answer["protocol"]
    assert (protocol["benchmark"], protocol["split"], protocol["queries"]) == ("circo", "val", 220)
    assert protocol["gallery_size"] == len(gallery)
    assert protocol["reference"] == "kept"
    for k in (5, 10, 25, 50):
        assert 0 <= answer["metrics"][f"mAP@{k}"] <= 100
        assert 0 <= answer["metrics"][f"R@{k}"] <= 100
    assert len(answer["metrics"]["semantic_mAP@10"]) == 9
    rankings = json.loads(gzip.decompress((out / "rankings.json.gz").read_bytes()))
    assert len(rankings) == 220
    assert all(len(set(ranking)) == 100 for ranking in rankings.values())
    assert (
        score.main(
            ["--benchmark", "circo", "--root", str(root), "--split", "val", "--json"]
            + ["--rankings", str(out / "rankings.json.gz")]
        )
        == 0
    )
    assert answer_of(capsys)[0]["metrics"] == answer["metrics"]


def draw_coco(image: int) -> Image.Image:
    """A picture that depends on its id alone."""
    picture = Image.new("RGB", (56, 42), (image % 256, image // 256 % 256, image // 65536 % 256))
    ImageDraw.Draw(picture).ellipse(
        (8 + image % 20, 8, 36 + image % 20, 36), fill=(255 - image % 256, 90, 120)
    )
    return picture


def test_a_checkpoint_of_another_kind_is_refused(checkpoint, scenes, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((checkpoint / "retriever.json").read_text())
    (other / "retriever.json").write_text(json.dumps(facts | {"kind": "moe9"}))
    assert "'moe9'" in refused(retrieval.main, command(other, scenes), capsys)


def test_the_checkpoint_is_loaded_for_inference(checkpoint):
    assert not load_retriever(checkpoint, device="cpu").training


def test_faithfulness_refuses_what_it_cannot_measure(checkpoint, scenes, tmp_path, capsys):
    error = refused(
        faithfulness_script.main,
        command(checkpoint, scenes, "--out", tmp_path, "--limit", 1),
        capsys,
    )
    assert "edits need 2" in error
    assert not (tmp_path / "results.json").exists()
    shutil.copytree(scenes, tmp_path / "unlabelled")
    path = tmp_path / "unlabelled" / "records.iid.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"targets": []}) + "\n" for row in rows))
    error = refused(
        faithfulness_script.main,
        command(checkpoint, tmp_path / "unlabelled", "--out", tmp_path),
        capsys,
    )
    assert "target" in error


def test_faithfulness_writes_results_and_a_page(checkpoint, scenes, tmp_path, capsys):
    out = tmp_path / "faith"
    argv = command(checkpoint, scenes, "--out", out, "--limit", "6", "--attributed", "2", "--json")
    assert faithfulness_script.main(argv) == 0
    content, _ = answer_of(capsys)
    (study,) = content.values()
    assert content == json.loads((out / "results.json").read_text())
    assert [row["edit"] for row in study["edits"]] == [edit.name for edit in EDITS]
    assert study["protocol"]["queries"] == 6
    assert study["attribution"]["queries"] == 2
    assert set(study["planted"]) == {"caption", "reasoning", "conclusion"}
    page = (out / "report.html").read_text()
    assert "Does the answer follow the chain?" in page
    assert "should stay" in page
    (out / "report.html").write_text("mine")
    with pytest.raises(InputError, match="overwrite"):
        faithfulness_script.main(argv)
