"""What `dopd.Client` costs above a bare gRPC stub, and what loading it costs.

One connection, one call after the other, against `dopd serve --mock`. Both ways take turns within
each round, so that a neighbour slows both; CPU is that of this whole process, gRPC's own threads
included. Best of the rounds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

import dopd
from bench.common import finish, serving
from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd._gen.dopd.v1 import inference_pb2_grpc

ROUNDS = 9
PROMPT = [7, 77, 177]
TIMEOUT_S = 60.0
IMPORT_RUNS = 15
# Name of the figure, answer tokens, calls a round.
SHAPES = (("token_1", 1, 200), ("tokens_200", 200, 30))


def cost_us(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """CPU and wall time of one call, in microseconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        call()
    return (time.process_time() - cpu) / calls * 1e6, (time.perf_counter() - wall) / calls * 1e6


def compare(bare: Callable[[], object], client: Callable[[], object], calls: int) -> dict[str, Any]:
    """Both ways, best of the rounds."""
    rounds = [(cost_us(bare, calls), cost_us(client, calls)) for _ in range(ROUNDS)]
    found: dict[str, Any] = {"rounds": ROUNDS, "calls": calls}
    for way, name in enumerate(("bare", "client")):
        found[f"{name}_cpu_us"] = round(min(entry[way][0] for entry in rounds), 1)
        found[f"{name}_wall_us"] = round(min(entry[way][1] for entry in rounds), 1)
        found[f"{name}_calls_per_s"] = round(1e6 / found[f"{name}_wall_us"])
    for what in ("cpu", "wall"):
        ratio = found[f"client_{what}_us"] / found[f"bare_{what}_us"]
        found[f"{what}_ratio"] = round(ratio, 2)
    return found


def run(stub: Any, request: pb.GenerateRequest) -> None:
    """One call as bare as it can be: read to the end, keep nothing."""
    for _ in stub.Generate(request, timeout=TIMEOUT_S):
        pass


def calls_of(endpoint: str) -> dict[str, Any]:
    """Generate of each shape, and Tokenize."""
    found: dict[str, Any] = {}
    with grpc.insecure_channel(endpoint) as channel, dopd.Client(endpoint) as client:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        for name, tokens, calls in SHAPES:
            sampling = pb.Sampling(temperature=0)
            options = pb.AnswerOptions(max_tokens=tokens, ignore_eos=True, sampling=sampling)
            ids = pb.TokenIds(ids=PROMPT)
            request = pb.GenerateRequest(token_ids=ids, options=options)
            found[f"generate_{name}"] = compare(
                partial(run, stub, request),
                partial(client.generate, PROMPT, max_tokens=tokens, ignore_eos=True, temperature=0),
                calls,
            )
        text = pb.TokenizeRequest(text="hello")
        found["tokenize"] = compare(
            lambda: stub.Tokenize(text, timeout=TIMEOUT_S), lambda: client.tokenize("hello"), 300
        )
    return found


def import_ms(code: str) -> float:
    """Least time that `code` takes in a fresh interpreter."""
    timed = f"import time; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", timed]
    times = [
        float(subprocess.run(command, check=True, capture_output=True).stdout)
        for _ in range(IMPORT_RUNS)
    ]
    return round(min(times) * 1e3, 2)


def main(argv: list[str]) -> int:
    """Measure and write it down."""
    result: dict[str, Any] = {
        "import_dopd_ms": import_ms("import dopd"),
        "import_client_ms": import_ms("import dopd; dopd.Client"),
        # What no client of this protocol can do without.
        "import_grpc_protobuf_msgspec_ms": import_ms(
            "import grpc, msgspec; from dopd._gen.dopd.v1 import inference_pb2"
        ),
    }
    with serving("--mock") as ready:
        result |= calls_of(ready["grpc"])
    return finish("client", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
