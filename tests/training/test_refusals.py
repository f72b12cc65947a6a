"""Arguments of transformers that cannot work are refused in one line, before anything is loaded."""

import importlib.util

import pytest

from cir_cot.errors import InputError
from cir_cot.training.parsing import parse_arguments
from cir_cot.training.sft_arguments import SftArguments

BASE = ["--model", "m", "--root", "r", "--output_dir", "runs/x"]

REFUSED = {
    "--label_smoothing_factor 0.1": "no class labels",
    "--neftune_noise_alpha 5": "a retriever is none",
    "--use_liger_kernel true": "a retriever is none",
    "--push_to_hub true": "publish the result with cir-cot push",
    "--learning_rate -1": "learning_rate is -1.0: give at least 0",
    "--dataloader_num_workers -1": "dataloader_num_workers is -1: give at least 0",
    "--adam_beta1 1": "adam_beta1 is 1.0: give at least 0 and less than 1",
    "--adam_beta2 -0.1": "adam_beta2 is -0.1",
    "--num_train_epochs 0": "nothing would be trained",
    "--save_strategy best": "needs --metric_for_best_model",
    "--report_to nosuch": "report_to nosuch: not installed, or unknown",
    "--optim_args lr": "optim adamw_torch_fused: ",
    '--accelerator_config {"nosuch":1}': "nosuch",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(words):
    with pytest.raises(InputError) as caught:
        parse_arguments(SftArguments, BASE + words.split())
    assert REFUSED[words] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "words"),
    [("bitsandbytes", "--optim adamw_bnb_8bit"), ("deepspeed", "--deepspeed nothing.json")],
)
def test_a_package_that_is_not_installed_is_named(package, words):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(InputError, match=package):
        parse_arguments(SftArguments, BASE + words.split())


@pytest.mark.parametrize(
    "words",
    [
        "--learning_rate 0",
        "--num_train_epochs 0 --max_steps 3",
        "--save_strategy best --metric_for_best_model loss",
        "--report_to none",
        "--label_smoothing_factor 0",
        "--adam_beta1 0",
        "--optim sgd",
    ],
)
def test_what_can_work_is_taken(words):
    parse_arguments(SftArguments, BASE + words.split())
