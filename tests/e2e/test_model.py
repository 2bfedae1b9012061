"""The real model through the whole house."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.support.processes import run
from tests.support.server import Server, serve
from tests.support.smollm2 import require as require_smollm2

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a small robot who",
    "def fibonacci(n):\n",
    "Water boils at " * 40,
]


@pytest.fixture(scope="module")
def mixed() -> Iterator[Server]:
    require_smollm2()
    words = ("smollm2", "--dtype", "float32", "--prefill", "0", "--decode", "0", "--mixed", "1")
    with serve(*words) as server:
        yield server


def test_the_capital_of_france(smollm2: Server) -> None:
    body = {
        "model": smollm2.model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
        "temperature": 0,
    }
    found = smollm2.call("POST", "/v1/chat/completions", body).json()
    assert "Paris" in found["choices"][0]["message"]["content"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_banner_has_a_line_that_streams_paris(smollm2: Server) -> None:
    banner = smollm2.banner()
    line = banner[banner.index("curl ") :].split("\n\n", 1)[0]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    events = [json.loads(e[6:]) for e in done.stdout.splitlines() if e.startswith("data: {")]
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
    assert "Paris" in text
    assert len(events) > 3


def test_streamed_text_equals_whole_text(smollm2: Server) -> None:
    body = {"model": smollm2.model, "prompt": PROMPTS[1], "max_tokens": 24, "temperature": 0}
    whole = smollm2.call("POST", "/v1/completions", body).json()["choices"][0]["text"]
    events = [e for e in smollm2.events("/v1/completions", body) if isinstance(e, dict)]
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == whole


@pytest.mark.parametrize("prompt", PROMPTS, ids=["city", "story", "code", "repeated"])
def test_split_equals_mixed(smollm2: Server, mixed: Server, prompt: str) -> None:
    texts = [
        server.complete(prompt, max_tokens=32)["choices"][0]["text"] for server in (smollm2, mixed)
    ]
    assert texts[0] == texts[1]
    assert texts[0].strip()


def cached(found: dict[str, Any]) -> int:
    tokens: int = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


def test_answers_with_the_prefix_cache_are_those_without(smollm2: Server, mixed: Server) -> None:
    """Greedy, in float32: alone, after another with the same beginning, and handed off."""
    story = "Once upon a time there was a small robot who lived in a house by the sea. " * 6
    for end in ("One day", "Its name was", "The sea was"):
        cold = mixed.complete(story + end, max_tokens=24, cache_salt=end)
        assert cached(cold) == 0
        for server in (mixed, smollm2, smollm2):
            warm = server.complete(story + end, max_tokens=24)
            assert warm["choices"][0]["text"] == cold["choices"][0]["text"]
    assert cached(warm) >= 64
    smollm2.wait_idle()


def test_a_seed_gives_the_same_answer_again(smollm2: Server) -> None:
    fields = {"max_tokens": 16, "temperature": 1, "seed": 11}
    texts = {smollm2.complete(PROMPTS[1], **fields)["choices"][0]["text"] for _ in range(2)}
    assert len(texts) == 1


def test_pages_come_back(smollm2: Server) -> None:
    for worker in smollm2.wait_idle()["workers"]:
        assert worker["pages"]["free"] + worker["pages"]["cached"] == worker["pages"]["total"]


def byte_tokenizer() -> str:
    """A tokenizer.json in the form of SmolLM2's, with one token per byte."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    found = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = tokenizers.decoders.ByteLevel()
    return str(found.to_str())


TOKENIZER = byte_tokenizer()
LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 8}
LLAMA |= {
    "max_position_embeddings": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}
# A safetensors file without tensors: the length of its header, the header.
WEIGHTS = {"model.safetensors": "\2" + 7 * "\0" + "{}"}
WONDER = LLAMA | {"architectures": ["WonderModel"]}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "config.json"),
        ({"config.json": "{", "tokenizer.json": TOKENIZER}, "config.json"),
        (WEIGHTS | {"config.json": json.dumps(WONDER), "tokenizer.json": TOKENIZER}, "WonderModel"),
        ({"config.json": json.dumps(LLAMA)}, "tokenizer.json"),
        ({"config.json": json.dumps(LLAMA), "tokenizer.json": "{}"}, "tokenizer.json"),
        ({"config.json": json.dumps(LLAMA), "tokenizer.json": TOKENIZER}, "safetensors"),
    ],
    ids=["empty", "broken config", "architecture", "no tokenizer", "tokenizer", "no weights"],
)
def test_a_model_that_cannot_be_served_is_refused(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run("serve", tmp_path, "--port", "0", "--grpc-port", "0", "--worker-port", "0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    done = run("serve", broken, "--port", "0", "--grpc-port", "0", "--worker-port", "0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "model.gguf" in done.stderr
