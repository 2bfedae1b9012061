"""The hash chain: the same figures stand in router/src/streams/prefix.rs."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from dopd.sched.chain import LINK_BYTES, Chain

SALT = bytes.fromhex("876a3844d7b29ea1213d32cc43b56136")
LINKS = "3b26803bcb4e1a272722c0d728d05960eb4535925a88cd5f8ef84d717be00543"
TOKENS = [70_001 * token for token in range(40)]


def test_chain_is_that_of_the_router() -> None:
    salt = hashlib.sha256(b"dopd-prefix-1\7\0\0\0\0\0\0\0default").digest()[:16]
    assert salt == SALT
    chain = Chain(SALT, known=TOKENS)
    assert chain.extend(2, 16, []) == 2
    assert b"".join(chain.links).hex() == LINKS


@given(st.integers(0, 60), st.integers(0, 5), st.integers(1, 9))
def test_an_imported_chain_goes_on_like_the_one_that_saw_all_tokens(
    prompt_tokens: int, answer_pages: int, page_size: int
) -> None:
    tokens = [7 * token for token in range(prompt_tokens + answer_pages * page_size)]
    prompt, answer = tokens[:prompt_tokens], tokens[prompt_tokens:]
    whole = Chain(SALT, known=prompt)
    num_pages = len(tokens) // page_size
    assert whole.extend(num_pages, page_size, answer) == num_pages
    num_links = prompt_tokens // page_size
    links, behind = whole.links[:num_links], prompt[num_links * page_size :]
    imported = Chain(SALT, list(links), behind, num_links * page_size)
    assert imported.extend(num_pages, page_size, answer) == num_pages
    assert imported.links == whole.links
    # Without the prompt's end it ends with the links.
    short = Chain(SALT, list(links), None, num_links * page_size)
    assert short.extend(num_pages, page_size, answer) == num_links
    assert all(len(link) == LINK_BYTES for link in whole.links)
