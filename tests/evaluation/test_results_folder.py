"""A folder of results: a measurement replaces what a measurement wrote, and nothing of anybody else's."""

import gzip
import json
from dataclasses import replace

import pytest
from toy_retriever import Toy, query, write_folder

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import Result, save_results
from cir_cot.evaluation.results_folder import writing_results
from cir_cot.ownership import MANIFEST

ANNOTATION = '{"reference": "a", "target": "b", "caption": "", "reasoning": "", "conclusion": ""}\n'


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Result:
    root = write_folder(
        tmp_path_factory.mktemp("data"), [query(0, 100, 4, 104)], range(100, 109, 4)
    )
    (benchmark,) = load_benchmark("folder", root, "val")
    return evaluate(Toy(), benchmark, benchmark.images(), model="toy")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_annotations_are_not_deleted_by_a_measurement(full, tmp_path):
    (tmp_path / "chains.jsonl").write_text(ANNOTATION)
    silent = replace(full, explanations=dict.fromkeys(full.explanations, ""))
    for result in (full, silent):
        with pytest.raises(InputError, match=r"chains\.jsonl: not written by this command"):
            save_results([result], tmp_path)
    assert names(tmp_path) == {"chains.jsonl"}
    save_results([silent], tmp_path, overwrite=True)  # writes no chains, so it replaces none
    assert (tmp_path / "chains.jsonl").read_text() == ANNOTATION
    with pytest.raises(InputError, match=r"chains\.jsonl"):
        save_results([full], tmp_path)
    save_results([full], tmp_path, overwrite=True)
    assert "shade" in (tmp_path / "chains.jsonl").read_text()


@pytest.mark.parametrize(
    "name", ["results.json", "rankings.json.gz", "subset_rankings.json.gz", "chains.jsonl"]
)
def test_a_file_of_the_same_name_is_not_replaced(full, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=name):
        save_results([full], tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_measurement_replaces_its_own_files_until_somebody_changes_one(full, tmp_path):
    for _ in range(2):
        save_results([full], tmp_path)
        write_report(tmp_path, [full])
    (tmp_path / "chains.jsonl").write_text(ANNOTATION)
    (tmp_path / "report.md").write_text("my notes")
    with pytest.raises(InputError, match=r"chains\.jsonl: .*edited since"):
        save_results([full], tmp_path)
    with pytest.raises(InputError, match=r"report\.md"):
        write_report(tmp_path, [full])
    assert (tmp_path / "results.json").exists()


def test_results_json_is_gone_when_a_measurement_stops_half_way_and_the_next_one_needs_no_flag(
    full, tmp_path
):
    save_results([full], tmp_path)
    broken = replace(full, explanations={"0": "half a pair \ud800"})
    with pytest.raises(UnicodeEncodeError):
        save_results([broken], tmp_path)
    assert "results.json" not in names(tmp_path)
    save_results([full], tmp_path)
    assert {"results.json", "rankings.json.gz", "chains.jsonl"} <= names(tmp_path)


def test_a_folder_of_an_earlier_version_is_rewritten(full, tmp_path):
    save_results([full], tmp_path)
    write_report(tmp_path, [full])
    (tmp_path / MANIFEST).unlink()
    save_results([full], tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "chains.jsonl").write_text(ANNOTATION)
    with pytest.raises(InputError, match=r"chains\.jsonl"):
        save_results([full], tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics": {}}', "\x00"])
def test_a_folder_with_another_results_json_is_not_taken_for_an_earlier_version(
    full, tmp_path, content
):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json"):
        save_results([full], tmp_path)
    assert (tmp_path / "results.json").read_text() == content


def test_rankings_that_are_no_archive_are_not_taken_for_ours(full, tmp_path):
    save_results([full], tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "rankings.json.gz").write_bytes(gzip.compress(b"mine"))
    with pytest.raises(InputError, match=r"rankings\.json\.gz"):
        save_results([full], tmp_path)


def test_a_file_in_place_of_the_folder_is_one_line(full, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file; --out names a folder"):
        save_results([full], tmp_path / "out")


def test_the_manifest_holds_what_is_there(full, tmp_path):
    save_results([full], tmp_path)
    listed = json.loads((tmp_path / MANIFEST).read_text())["results"]
    assert set(listed) == {"results.json", "rankings.json.gz", "chains.jsonl"}
    assert None not in listed.values()


def test_files_listed_inside_the_block_stay_listed(full, tmp_path):
    with writing_results(tmp_path, ["results.json"], ["results.json"]):
        write_report(tmp_path, [full])
        (tmp_path / "results.json").write_text("{}")
    listed = json.loads((tmp_path / MANIFEST).read_text())["results"]
    assert set(listed) == {"results.json", "report.md", "report.html"}


def test_what_a_measurement_no_longer_writes_is_removed_and_not_listed(full, tmp_path):
    save_results([full], tmp_path)
    save_results([replace(full, explanations=dict.fromkeys(full.explanations, ""))], tmp_path)
    listed = json.loads((tmp_path / MANIFEST).read_text())["results"]
    assert set(listed) == {"results.json", "rankings.json.gz"}
    assert names(tmp_path) == {MANIFEST, *listed}
