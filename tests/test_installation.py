"""`cir-cot doctor`: what it finds here, and what it says where something is missing."""

import json
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from cir_cot import compat, installation
from cir_cot.installation import ROOM, examine
from cir_cot.scripts.eval import doctor


def found(what):
    return next(finding for finding in examine() if finding.what == what)


def test_this_installation_has_no_problem(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert torch.__version__ in said
    assert "!!" not in said
    assert doctor.main(["--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"what", "state", "text"} == set(findings[0])


def test_wrong_and_missing_packages_are_named_with_the_cure(monkeypatch, capsys):
    versions = {"torch": "1.0"}

    def version(name):
        if name == "peft":
            raise PackageNotFoundError(name)
        return versions.get(name, "9999")

    monkeypatch.setattr(installation, "version", version)
    finding = found("packages")
    assert finding.state == "problem"
    assert "torch 1.0, but" in finding.text
    assert "peft is not installed" in finding.text
    assert "pip install" in finding.text
    assert doctor.main([]) == 1
    assert "!!  packages" in capsys.readouterr().out


def test_a_build_for_cuda_without_a_gpu_is_a_problem(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compat, "torchvision_build", lambda: "0.28.0+cpu")
    assert found("accelerator").state == "problem"
    assert "nvidia-smi" in found("accelerator").text
    assert found("torchvision").state == "problem"
    monkeypatch.setattr(compat, "torchvision_build", lambda: "")
    assert "not installed" in found("torchvision").text


def test_a_full_disk_is_noted(monkeypatch):
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda _: SimpleNamespace(free=ROOM - 1))
    assert found("this folder").state == "note"


@pytest.mark.parametrize(("value", "state"), [("1", "set"), ("0", "")])
def test_an_offline_hub_is_said(monkeypatch, value, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert ("HF_HUB_OFFLINE is " + state in found("hub").text) == (value == "1")
