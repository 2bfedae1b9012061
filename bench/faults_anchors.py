"""What other systems ship or publish beside each figure of `faults` and `overload`.

Taken from their documents and sources (faults design, sections 1 and 2), not measured here. The
aims are ours.
"""

from __future__ import annotations

ANCHORS: dict[str, dict[str, str]] = {
    "T1 crash to unrouted": {
        "others": "Dynamo polls its engine every 2 s; SMG 60 s x 3",
        "aim": "p99 at most 100 ms",
    },
    "T2 hang to ejected, to dead": {
        "others": "SGLang 10 s; Dynamo's canary 13 s; SMG up to 180 s",
        "aim": "ejected p99 at most 1.0 s, dead at the end of the lease, 3 s",
    },
    "T3 failures when one of N workers dies": {
        "others": "Dynamo 2 to 4 of 800; 600 of 800 without redundancy",
        "aim": "0 of 10,000",
    },
    "T4 answers after a death": {
        "others": "Dynamo: transparent, off by default, not for guided decoding",
        "aim": "all byte for byte the same",
    },
    "T5 wrong tokens": {
        "others": "vLLM 0.29: a wrong answer with HTTP 200 in 3 of 5 hostile cases",
        "aim": "0",
    },
    "T6 orphaned pages back": {
        "others": "leases of 30, 120, 300, 480 s; never in CVE-2026-94627",
        "aim": "at most 4 s",
    },
    "T7 client gone to seat free": {
        "others": "their tests poll logs",
        "aim": "a decode step and 20 ms",
    },
    "T9 retry amplification in an outage": {"others": "SMG up to 5", "aim": "at most 1.2"},
    "T10 rolling restart under load": {
        "others": "Dynamo's frontend killed: 128 to 144 of 800 fail",
        "aim": "0 failures",
    },
    "T11 router restart to serving": {
        "others": "Dynamo 16.7 to 17.5 s",
        "aim": "at most 500 ms without loading a tokenizer; workers adopted within 2 s",
    },
    "T16 soak": {
        "others": "Dynamo: endurance scenarios with a mocker",
        "aim": "at most 1 MiB per 100,000 requests; descriptors and threads as before",
    },
}
