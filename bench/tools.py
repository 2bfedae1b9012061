"""Do the tools of others work with dopd unchanged? aiperf, guidellm and lm-eval against the mock.

    DOPD_TOOLS=/path/to/bins[:/path/to/more] python -m bench tools

Looks for each program in the folders of DOPD_TOOLS, then on PATH; a tool that is not there is
skipped by name. Install each in an environment of its own (`uv venv`, `uv pip install aiperf`,
`guidellm`, `lm-eval[api] transformers`). They load tokenizers by the name of a hub: a tokenizer of
bytes like the mock's lies in an offline cache for the time of the run, nothing is fetched.
Regime: 30 requests of 100 prompt and 32 answer tokens, 4 at a time; outcomes count, not times.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import finish, serving

REQUESTS = 30
CONCURRENCY = 4
PROMPT_TOKENS = 100
ANSWER_TOKENS = 32
TIMEOUT_S = 400
# The name under which the tokenizer lies in the cache.
TOKENIZER = "local/mock"
END = "<|im_end|>"
# A task of each kind that lm-eval knows: likelihoods of given answers, and generated text.
ROWS = [
    {"q": "The capital of France is", "choices": [" Paris", " Rome", " a fish"], "gold": 0},
    {"q": "Two and two make", "choices": [" four", " seven", " blue"], "gold": 0},
    {"q": "Water is", "choices": [" dry", " wet", " square"], "gold": 1},
]
TASK = """\
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
doc_to_text: "{{{{q}}}}"
target_delimiter: ""
"""
SCORED = """\
task: dopd_scored
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}]
"""
GENERATED = """\
task: dopd_generated
output_type: generate_until
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 16}
metric_list: [{metric: exact_match}]
"""


@dataclass(frozen=True)
class Run:
    """Where one run of a tool may write, and the server that it asks."""

    program: str
    url: str
    folder: Path

    def start(self, *words: str) -> None:
        """Run the tool to its end; RuntimeError with its last words if it fails."""
        cache = self.folder / "hub-home"
        write_tokenizer(cache / "hub")
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        done = subprocess.run(
            [self.program, *words],
            cwd=self.folder,
            env=os.environ | offline | {"HF_HOME": str(cache), "NO_COLOR": "1"},
            timeout=TIMEOUT_S,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def read(self, pattern: str) -> Any:
        """The JSON document that the tool wrote."""
        (path,) = self.folder.glob(pattern)
        return json.loads(path.read_text())


def write_tokenizer(hub: Path) -> None:
    """A tokenizer of single bytes where `transformers` looks when it may not ask the network."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    model = hub / f"models--{TOKENIZER.replace('/', '--')}"
    files = model / "snapshots" / "0"
    files.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken(END)])
    tokenizer.save(str(files / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    (files / "tokenizer_config.json").write_text(json.dumps(kind))
    (files / "config.json").write_text(json.dumps({"model_type": "llama"}))


def aiperf(run: Run, endpoint: str) -> dict[str, int]:
    """`aiperf profile`, streamed."""
    words = ["profile", "--model", "mock", "--url", run.url, "--endpoint-type", endpoint]
    words += ["--streaming", "--tokenizer", TOKENIZER, "--ui", "none"]
    words += ["--request-count", str(REQUESTS), "--concurrency", str(CONCURRENCY)]
    words += ["--synthetic-input-tokens-mean", str(PROMPT_TOKENS)]
    words += ["--output-tokens-mean", str(ANSWER_TOKENS), "--artifact-dir", "out"]
    run.start(*words)
    found = run.read("out/profile_export_aiperf.json")
    failed = sum(error["count"] for error in found["error_summary"])
    return {"succeeded": int(found["request_count"]["avg"]), "failed": failed}


def guidellm(run: Run, endpoint: str) -> dict[str, int]:
    """`guidellm run`, streamed."""
    paths = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
    backend = f"kind=openai_http,target={run.url},model=mock,request_format={paths[endpoint]}"
    words = ["run", "--backend", backend, "--profile", f"kind=concurrent,streams={CONCURRENCY}"]
    words += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
    words += ["--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"]
    shape = f"prompt_tokens={PROMPT_TOKENS},output_tokens={ANSWER_TOKENS}"
    words += ["--data", f"kind=synthetic_text,{shape}"]
    words += ["--output", "kind=json,path=out.json", "--disable-console"]
    run.start(*words)
    requests = run.read("out.json")["benchmarks"][0]["requests"]
    failed = len(requests["errored"]) + len(requests["incomplete"])
    return {"succeeded": len(requests["successful"]), "failed": failed}


def lm_eval(run: Run, endpoint: str) -> dict[str, int]:
    """`lm_eval` with `local-completions`: prompts in batches, likelihoods by echo and logprobs."""
    tasks = run.folder / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = TASK.format(data=tasks / "rows.jsonl")
    (tasks / "scored.yaml").write_text(common + SCORED)
    (tasks / "generated.yaml").write_text(common + GENERATED)
    model = f"model=mock,base_url={run.url}/v1/{endpoint},tokenizer={TOKENIZER},max_retries=1"
    words = ["--model", "local-completions", "--model_args", model, "--batch_size", "3"]
    words += ["--include_path", "tasks", "--tasks", "dopd_scored,dopd_generated"]
    run.start(*words, "--output_path", "out")
    samples = run.read("out/mock/results_*.json")["n-samples"]
    return {"succeeded": sum(task["effective"] for task in samples.values()), "failed": 0}


Tool = Callable[[Run, str], dict[str, int]]
RUNS: list[tuple[str, str, Tool]] = [
    ("aiperf", "chat", aiperf),
    ("aiperf", "completions", aiperf),
    ("guidellm", "chat", guidellm),
    ("guidellm", "completions", guidellm),
    ("lm_eval", "completions", lm_eval),
]


def main(argv: list[str]) -> int:
    """Run every tool that is installed; the exit code is 1 if a request of one failed."""
    result: dict[str, Any] = {}
    with serving("--mock") as server:
        for name, endpoint, tool in RUNS:
            program = shutil.which(name, path=os.environ.get("DOPD_TOOLS")) or shutil.which(name)
            if program is None:
                result[f"{name} {endpoint}"] = {"skipped": "not installed"}
                continue
            with tempfile.TemporaryDirectory(prefix="dopd-bench-") as folder:
                run = Run(program, f"http://{server['http']}", Path(folder))
                try:
                    result[f"{name} {endpoint}"] = tool(run, endpoint)
                except RuntimeError as error:
                    result[f"{name} {endpoint}"] = {"failed": REQUESTS, "error": str(error)}
            print(f"{name} {endpoint}: {result[f'{name} {endpoint}']}", flush=True)
    finish("tools", {"requests": REQUESTS, "runs": result})
    return int(any(found.get("failed") for found in result.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
