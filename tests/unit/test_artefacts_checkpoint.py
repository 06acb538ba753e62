"""The lab's checkpoint: stable bytes, and a folder that the planner and `sha256sum` accept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from holdfast.fit import weights
from tests.lab.artefacts import store, tiny_llama

# Printed by `sha256sum`. It moves only when tiny_llama.py is changed on purpose.
SHA256SUMS = "ad64c38e0587f0cc856753c462502c6a2583c8c7805fc38ad39e0bd54d3aea6c"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / tiny_llama.FOLDER
    tiny_llama.write(folder)
    return folder


def test_bytes_are_the_same_on_every_machine(checkpoint: Path) -> None:
    assert store.sha256(checkpoint / tiny_llama.SUMS) == SHA256SUMS
    subprocess.run(
        ["sha256sum", "--check", "--strict", tiny_llama.SUMS], cwd=checkpoint, check=True
    )


def test_every_file_of_a_checkpoint_is_there_and_summed(checkpoint: Path) -> None:
    summed = {line.split()[1] for line in (checkpoint / tiny_llama.SUMS).read_text().splitlines()}
    assert summed == {path.name for path in checkpoint.iterdir()} - {tiny_llama.SUMS}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= summed


def test_the_planner_reads_its_weights(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    shapes = {
        tensor.name: tensor.shape for tensor in weights.header(checkpoint / "model.safetensors")
    }
    hidden, words = config["hidden_size"], config["vocab_size"]
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (words, hidden)
    assert len(shapes) == 3 + 9 * config["num_hidden_layers"]
    size = (checkpoint / "model.safetensors").stat().st_size
    assert size * 0.9 < weights.read(checkpoint).total_bytes < size


def test_another_seed_is_another_model_of_the_same_shape(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_llama.write(other, tiny_llama.OTHER_SEED)
    changed = {
        path.name
        for path in checkpoint.iterdir()
        if path.read_bytes() != (other / path.name).read_bytes()
    }
    assert changed == {"model.safetensors", tiny_llama.SUMS}
    file = "model.safetensors"
    assert weights.header(checkpoint / file) == weights.header(other / file)
