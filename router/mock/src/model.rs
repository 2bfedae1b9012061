//! The mock model: what stands in for weights and attention.
//!
//! Owns the arithmetic that Rust and Python must share bit for bit: the KV entry of a position, the
//! draw of a token, its log probabilities and the hashes of the protocol. Pure. `seats` calls it;
//! `tests/contract/mock_vectors.json` holds known answers for both languages.

use dopd_router::wire::worker::{KvCheck, KvGeometry, LogitAdjustments, Sampling};
use sha2::{Digest, Sha256};

/// Name under which the model is served.
pub const MODEL_NAME: &str = "mock";
/// Tokens of the vocabulary: 256 bytes, `<|im_start|>`, `<|im_end|>`.
pub const VOCAB_SIZE: u32 = 258;
/// `<|im_end|>`, the end of an answer.
pub const EOS: u32 = 257;
/// Tokens per page.
pub const PAGE_SIZE: u32 = 16;
/// Bytes of one page: a `u64` per position.
pub const PAGE_BYTES: u32 = 8 * PAGE_SIZE;
/// Longest prompt plus answer, in tokens.
pub const MAX_MODEL_LEN: u32 = 131_072;
/// KV entry before the first position.
pub const CHAIN_START: u64 = 0x9E37_79B9_7F4A_7C15;

/// Answers shorter than this never end by themselves.
const EOS_POS_MIN: u32 = 32;
/// One draw in this many is the end, from `EOS_POS_MIN` on.
const EOS_ODDS: u64 = 128;
/// First printable byte, and how many are drawn from.
const PRINTABLE: (u32, u32) = (32, 95);

/// One step of splitmix64.
pub const fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// KV entry of a position from the entry before it and the position's token.
pub fn next_entry(before: u64, token: u32) -> u64 {
    mix(before ^ u64::from(token))
}

/// What one draw gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The token.
    pub token: u32,
    /// The random word behind it.
    word: u64,
}

/// Draws the answer token of position `pos` (0-based) after the entry `last`.
pub fn draw(last: u64, sampling: &Sampling, pos: u32) -> Draw {
    let word = if sampling.temperature == 0.0 {
        mix(last)
    } else {
        let counter = (u64::from(sampling.choice) << 32).wrapping_add(u64::from(pos));
        mix(last ^ mix(sampling.seed) ^ mix(counter))
    };
    let token = if pos >= EOS_POS_MIN && word.is_multiple_of(EOS_ODDS) {
        EOS
    } else {
        PRINTABLE.0 + low_u32((word >> 32) % u64::from(PRINTABLE.1))
    };
    Draw { token, word }
}

/// A bias as great as the API allows decides alone; the mock knows no other, and no penalty.
const BIAS_DECIDES: f32 = 100.0;

/// A token of the prompt as if it had been drawn; `entry` is the KV entry of its own position.
pub fn told(entry: u64, token: u32) -> Draw {
    Draw {
        token,
        word: mix(entry),
    }
}

impl Draw {
    /// The draw under `adjustments`: the first token biased by 100, if any; else its own, or the
    /// next printable character that is not biased by -100; the end if there is none.
    #[must_use]
    pub fn biased(self, adjustments: &LogitAdjustments) -> Self {
        let bias = || {
            let tokens = adjustments.bias_tokens.iter().copied();
            tokens.zip(adjustments.bias_values.iter().copied())
        };
        let is_banned =
            |token: u32| bias().any(|(other, value)| other == token && value <= -BIAS_DECIDES);
        let wanted = bias().find(|&(_, value)| value >= BIAS_DECIDES);
        let token = match wanted {
            Some((token, _)) => token,
            None if is_banned(self.token) => (0..PRINTABLE.1)
                .map(|rank| printable_after(self.token, rank))
                .find(|&token| !is_banned(token))
                .unwrap_or(EOS),
            None => self.token,
        };
        Self { token, ..self }
    }

    /// Log probability of the token; exact in `f32` (16 binary places).
    #[expect(clippy::cast_possible_truncation, reason = "16 bits fit")]
    pub fn logprob(&self) -> f32 {
        -(f32::from(self.word as u16) / 65_536.0)
    }

    /// The `count` most likely tokens with their log probabilities, the drawn one first.
    pub fn top(self, count: u32) -> impl Iterator<Item = (u32, f32)> {
        (0..count).map(move |rank| {
            let token = match rank {
                0 => self.token,
                _ => printable_after(self.token, rank),
            };
            (token, self.logprob() - rank as f32)
        })
    }
}

/// The printable character `rank` places after `token`, or after the first if `token` is none.
const fn printable_after(token: u32, rank: u32) -> u32 {
    let base = token.wrapping_sub(PRINTABLE.0);
    let base = if base < PRINTABLE.1 { base } else { 0 };
    PRINTABLE.0 + (base + rank) % PRINTABLE.1
}

/// What must be equal on both sides of a hand-off.
pub fn geometry() -> KvGeometry {
    KvGeometry {
        model_hash: Sha256::digest(b"dopd-mock-1").to_vec(),
        dtype: "mock".to_owned(),
        page_size: PAGE_SIZE,
        num_layers: 1,
        num_kv_heads: 1,
        head_dim: 1,
        layout: "page_major_nhd".to_owned(),
        tensor_parallel: 1,
        page_bytes: PAGE_BYTES,
    }
}

/// The hash that both ends of a data link compare (`LinkHello.layout_hash`).
pub fn layout_hash(geometry: &KvGeometry) -> u64 {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(160);
    for byte in &geometry.model_hash {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    let _ = write!(
        text,
        "|{}|{}|{}|{}|{}|{}|{}|{}",
        geometry.dtype,
        geometry.page_size,
        geometry.num_layers,
        geometry.num_kv_heads,
        geometry.head_dim,
        geometry.layout,
        geometry.tensor_parallel,
        geometry.page_bytes
    );
    first_word(Sha256::new_with_prefix(text))
}

/// The hash of a prompt (`Open.prompt_hash`).
pub fn prompt_hash(prompt: &[u32]) -> u64 {
    first_word(with_tokens(Sha256::new(), prompt))
}

/// The hash of a sequence (`End.tokens_hash`).
pub fn tokens_hash(prompt_hash: u64, answer: &[u32]) -> u64 {
    first_word(with_tokens(
        Sha256::new_with_prefix(prompt_hash.to_le_bytes()),
        answer,
    ))
}

/// Bytes at each end of a page that `KvCheck::Header` covers.
const HEADER_BYTES: usize = 64;

/// The checksum of a shipment (`End.checksum`) over whole pages, one after another.
pub fn checksum(check: KvCheck, pages: &[u8]) -> u64 {
    if check == KvCheck::Full {
        return first_word(Sha256::new_with_prefix(pages));
    }
    let mut hasher = Sha256::new();
    for page in pages.chunks(PAGE_BYTES as usize) {
        let end = HEADER_BYTES.min(page.len());
        hasher.update(&page[..end]);
        hasher.update(&page[page.len() - end..]);
    }
    first_word(hasher)
}

/// Feeds tokens as little-endian `u32`, many at a time: one call per token costs more than the
/// hash.
fn with_tokens(mut hasher: Sha256, tokens: &[u32]) -> Sha256 {
    let mut buffer = [0_u8; 1024];
    for chunk in tokens.chunks(buffer.len() / 4) {
        for (bytes, token) in buffer.chunks_exact_mut(4).zip(chunk) {
            bytes.copy_from_slice(&token.to_le_bytes());
        }
        hasher.update(&buffer[..chunk.len() * 4]);
    }
    hasher
}

fn first_word(hasher: Sha256) -> u64 {
    let digest = hasher.finalize();
    let mut word = [0; 8];
    word.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(word)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the caller's value is below 95"
)]
const fn low_u32(value: u64) -> u32 {
    value as u32
}
