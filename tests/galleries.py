"""Galleries and indexes that tests make: of shades with the toy retriever, of random vectors, by a killed process."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from toy_retriever import Plain

from cir_cot.search.build import IndexSettings, build, check_settings, open_index
from cir_cot.search.faiss_index import Index

SHADES = tuple(range(0, 250, 10))


class Counting(Plain):
    """The toy retriever, which counts the pictures it encodes, and may stop in the middle."""

    def __init__(self, stop_after=10**9):
        self.encoded, self.stop_after = 0, stop_after

    def encode_target(self, images):
        if self.encoded + len(images) > self.stop_after:
            raise KeyboardInterrupt
        if images[0].size != (224, 224):  # the probe
            self.encoded += len(images)
        return super().encode_target(images)


class Turned(Plain):
    """Another retriever: its space is turned."""

    def encode_target(self, images):
        return super().encode_target(images).flip(1)


class Wide(Plain):
    """Noise of 64 numbers, by content: early numbers matter more, as in embeddings made to be shortened."""

    dim = 64

    def encode_target(self, images):
        rows = [
            torch.tensor(random.Random(image.tobytes()).choices(range(-99, 100), k=64))
            for image in images
        ]
        vectors = torch.stack(rows).float() * torch.linspace(1, 0.1, 64)
        return torch.nn.functional.normalize(vectors, dim=1)


def names(store):
    return list(store.files)


def made(images, folder, retriever=None, kind="exact", dtype="float32", width=None, **options):
    retriever = retriever or Counting()
    settings = IndexSettings(kind, width, dtype)
    build(retriever, images, names(images), folder, settings, **({"batch_size": 4} | options))
    return open_index(folder)


def unit(count, dim, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def memory_index(vectors, kind="exact", dtype="float32", width=None):
    class Given:
        def __getitem__(self, hashes):
            return vectors[[int(digest) for digest in hashes]]

    metadata = IndexSettings(kind, width, dtype).metadata(vectors.shape[1])
    check_settings(metadata)
    rows = [(f"i{row}", str(row)) for row in range(len(vectors))]
    return Index.create(rows, Given(), {}, metadata)


KILLED = """
import os, sys, time
sys.path.insert(0, {tests!r})
from galleries import Counting, names
from cir_cot.images import list_pictures
from cir_cot.search.build import build

tally = os.open({tally!r}, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

class Tallied(Counting):
    def encode_target(self, images):
        before = self.encoded
        vectors = super().encode_target(images)
        os.write(tally, b"." * (self.encoded - before))
        time.sleep(0.02)
        return vectors

images = list_pictures({images!r})
print("ready", flush=True)
build(Tallied(), images, names(images), {index!r}, batch_size=4)
"""


def kill_9(images, index, wait) -> int:
    """Kill -9 a process that builds the index once `wait` returns -> pictures that all such processes have encoded."""
    tally = index.parent / "tally"
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        images=str(images.root),
        index=str(index),
        tally=str(tally),
    )
    root = str(Path(__file__).parent.parent)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout.readline() == b"ready\n"
    wait(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return tally.stat().st_size
