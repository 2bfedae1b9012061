//! What the streams of one request share, as long as one of them lives.

use std::sync::Arc;

use dopd_core::ids::RequestId;
use dopd_sync::Counted;
use sha2::{Digest, Sha256};

use super::prefix::Prefix;
use crate::wire::worker::{Limits, LogitAdjustments, Sampling};

/// The part of a request that every Open carries.
#[derive(Debug)]
pub struct RequestShared {
    /// The brain's name for it.
    pub id: RequestId,
    /// Label for logs of both sides.
    pub label: String,
    /// Token ids of the prompt.
    pub prompt: Arc<[u32]>,
    /// First 8 bytes, little endian, of sha256 over the prompt's token ids as little-endian u32.
    pub prompt_hash: u64,
    /// How tokens are drawn; `choice` is set per sequence.
    pub sampling: Sampling,
    /// When the answer ends.
    pub limits: Limits,
    /// Changes to the logits; `None`: none.
    pub adjustments: Option<LogitAdjustments>,
    /// Log probabilities of the prompt's tokens and of this many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// W3C trace context for the workers; empty: none.
    pub traceparent: String,
    /// Hash of the tenant's name: pages that change hands between tenants are zeroed; 0: none.
    pub tenant: u64,
    /// Target per token after the first in microseconds; 0: the policy's own.
    pub slo_tpot_us: u32,
    /// Choices: sequences with the same prompt.
    pub choices: usize,
    /// Lower goes first.
    pub priority: i32,
    /// What workers may have of it already; `None`: it neither uses nor fills their caches.
    pub prefix: Option<Prefix>,
    /// Counts itself among the requests that have not ended.
    pub active: Counted,
}

/// First 8 bytes, little endian, of sha256 over the name; 0 for the empty one.
pub fn tenant_hash(tenant: &str) -> u64 {
    if tenant.is_empty() {
        return 0;
    }
    first_word(&Sha256::digest(tenant.as_bytes()))
}

pub(super) fn first_word(digest: &[u8]) -> u64 {
    let mut first = [0_u8; 8];
    first.copy_from_slice(digest.get(..8).unwrap_or(&[0; 8]));
    u64::from_le_bytes(first)
}

/// The hash of a prompt as `Open.prompt_hash` defines it.
pub fn prompt_hash(prompt: &[u32]) -> u64 {
    /// Tokens hashed at once: 4 KiB, so that the hash works on whole buffers.
    const CHUNK: usize = 1_024;
    let mut hash = Sha256::new();
    let mut bytes = [0_u8; CHUNK * 4];
    for chunk in prompt.chunks(CHUNK) {
        for (place, token) in bytes.chunks_exact_mut(4).zip(chunk) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        hash.update(bytes.get(..chunk.len() * 4).unwrap_or_default());
    }
    first_word(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_hash_is_sha256_of_little_endian_words() {
        // sha256 of no bytes starts e3b0c44298fc1c14.
        assert_eq!(prompt_hash(&[]), 0x141c_fc98_42c4_b0e3);
        // Chunked and whole agree across the chunk border.
        let prompt: Vec<u32> = (0..3_000).collect();
        let bytes: Vec<u8> = prompt
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect();
        let digest = Sha256::digest(&bytes);
        let expected = u64::from_le_bytes(digest[..8].try_into().unwrap());
        assert_eq!(prompt_hash(&prompt), expected);
    }
}
