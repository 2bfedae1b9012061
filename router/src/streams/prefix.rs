//! The hash chain over a prompt's full pages: how workers find prefixes again, and how the brain
//! knows who has them.
//!
//! `python/dopd/sched/chain.py` computes the same. Link 0 is the salt; link i is sha256 over link
//! i - 1 and the token ids of page i as little-endian `u32`, cut to 128 bits. Computed once per
//! request by `dispatch`, on the front thread: 0.3 us a page where the processor hashes.

use std::sync::Arc;

use dopd_core::request::{PrefixMark, marked_pages};
use sha2::{Digest, Sha256};

use super::request::first_word;

/// Start of a chain. Two of different salts share nothing.
pub type Salt = [u8; 16];

const LINK_BYTES: usize = 16;

/// Longest chain: 128 KiB of an Open, 131 thousand tokens in pages of 16. What follows is not
/// asked for, and not marked.
const LINKS_MAX: usize = 8_192;

/// The salt of a tenant's requests that name this cache salt; both may be empty.
pub fn salt(tenant: &str, cache_salt: &str) -> Salt {
    let mut hash = Sha256::new();
    hash.update(b"dopd-prefix-1");
    // Its length says where the tenant ends, whatever bytes names may have.
    hash.update((tenant.len() as u64).to_le_bytes());
    hash.update(tenant.as_bytes());
    hash.update(cache_salt.as_bytes());
    link(hash)
}

/// What may be shared of a prompt, and under which names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// See [`Salt`].
    pub salt: Salt,
    /// Links of the full pages, at most [`LINKS_MAX`], one after another.
    links: Box<[u8]>,
    page_size: usize,
}

impl Prefix {
    /// Of a prompt in pages of so many tokens; 0: not known yet, and no page has a link.
    pub fn new(salt: Salt, prompt: &[u32], page_size: u32) -> Self {
        let page_size = page_size as usize;
        let pages = prompt.len().checked_div(page_size).unwrap_or(0);
        let mut links = Vec::with_capacity(pages.min(LINKS_MAX) * LINK_BYTES);
        let (mut before, mut bytes) = (salt, Vec::with_capacity(4 * page_size));
        let full = prompt.chunks_exact(page_size.max(1));
        for page in full.take(if page_size == 0 { 0 } else { LINKS_MAX }) {
            bytes.clear();
            bytes.extend(page.iter().flat_map(|token| token.to_le_bytes()));
            let mut hash = Sha256::new();
            hash.update(before);
            hash.update(&bytes);
            before = link(hash);
            links.extend_from_slice(&before);
        }
        Self {
            salt,
            links: links.into(),
            page_size,
        }
    }

    /// The links, as `Import.prefix` has them.
    pub fn links(&self) -> &[u8] {
        &self.links
    }

    /// The prompt behind the pages that have links; nothing if that is more than a page.
    pub fn tail<'a>(&self, prompt: &'a [u32]) -> &'a [u32] {
        let tail = prompt.get(self.len() * self.page_size..).unwrap_or(&[]);
        if tail.len() < self.page_size {
            tail
        } else {
            &[]
        }
    }

    /// Where the brain looks, up to the last page that a worker may reuse, which leaves it a token
    /// to compute.
    pub fn marks(&self, prompt_tokens: usize) -> Arc<[PrefixMark]> {
        let before_last = prompt_tokens.saturating_sub(1);
        let pages = before_last.checked_div(self.page_size).unwrap_or(0);
        let places = marked_pages(pages.min(self.len()));
        places.filter_map(|pages| self.mark(pages)).collect()
    }

    fn mark(&self, pages: usize) -> Option<PrefixMark> {
        let from = pages.checked_sub(1)? * LINK_BYTES;
        let link = self.links.get(from..from + LINK_BYTES)?;
        Some(PrefixMark {
            pages: u32::try_from(pages).ok()?,
            hash: first_word(link),
        })
    }

    fn len(&self) -> usize {
        self.links.len() / LINK_BYTES
    }
}

fn link(hash: Sha256) -> [u8; LINK_BYTES] {
    let mut link = [0; LINK_BYTES];
    let digest = hash.finalize();
    link.copy_from_slice(digest.get(..LINK_BYTES).unwrap_or(&[0; LINK_BYTES]));
    link
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        let mut hex = String::new();
        for byte in bytes {
            write!(hex, "{byte:02x}").unwrap();
        }
        hex
    }

    /// The same figures stand in tests/unit/sched/test_chain.py.
    #[test]
    fn chain_is_that_of_the_workers() {
        let salt = salt("default", "");
        assert_eq!(hex(&salt), "876a3844d7b29ea1213d32cc43b56136");
        let prompt: Vec<u32> = (0..40).map(|token| token * 70_001).collect();
        let prefix = Prefix::new(salt, &prompt, 16);
        assert_eq!(
            hex(prefix.links()),
            "3b26803bcb4e1a272722c0d728d05960eb4535925a88cd5f8ef84d717be00543"
        );
        assert_eq!(prefix.tail(&prompt), &prompt[32..]);
        let first = prefix.marks(prompt.len());
        assert_eq!(
            first.first().map(|mark| mark.hash),
            Some(0x271a_4ecb_3b80_263b)
        );
    }

    #[test]
    fn tenants_and_salts_begin_other_chains() {
        let all = [
            salt("a", ""),
            salt("", "a"),
            salt("a", "a"),
            salt("", ""),
            salt("a\0b", ""),
            salt("a", "b\0"),
            salt("a", "\0b"),
        ];
        for (place, one) in all.iter().enumerate() {
            assert!(!all[place + 1..].contains(one));
        }
    }

    #[test]
    fn without_a_page_size_there_is_a_salt_alone() {
        let prompt = [1, 2, 3];
        let prefix = Prefix::new([7; 16], &prompt, 0);
        assert!(prefix.links().is_empty() && prefix.marks(3).is_empty());
        assert!(prefix.tail(&prompt).is_empty());
    }

    #[test]
    fn longest_chain_ends_and_has_no_tail() {
        let prompt = vec![5; LINKS_MAX * 2 + 3];
        let prefix = Prefix::new([7; 16], &prompt, 2);
        assert_eq!(prefix.len(), LINKS_MAX);
        assert!(prefix.tail(&prompt).is_empty());
        let marks = prefix.marks(prompt.len());
        assert_eq!(marks.last().map(|mark| mark.pages), Some(8_192));
    }

    proptest! {
        #[test]
        fn marks_rise_to_the_last_page_that_may_be_reused(tokens in 1..40_000_usize) {
            let prompt: Vec<u32> = (0..).take(tokens).collect();
            let prefix = Prefix::new([1; 16], &prompt, 16);
            let marks = prefix.marks(tokens);
            let pages: Vec<u32> = marks.iter().map(|mark| mark.pages).collect();
            prop_assert!(pages.len() <= 16);
            prop_assert!(pages.is_sorted_by(|a, b| a < b));
            let last = u32::try_from((tokens - 1) / 16).unwrap();
            prop_assert_eq!(pages.last().copied().unwrap_or(0), last);
            // The first pages are all there, and no gap is wider than an eighth and a page.
            let first: Vec<u32> = (1..=last.min(16)).collect();
            if last <= 16 {
                prop_assert_eq!(&pages, &first);
            }
            let widest = pages.windows(2).map(|two| two[1] - two[0]).max();
            prop_assert!(widest.unwrap_or(0) <= last / 8 + 1);
        }

        /// What two prompts have in common, their chains have in common, and no more.
        #[test]
        fn chains_part_with_their_prompts(equal in 0..100_usize, tokens in 100..200_usize) {
            let one: Vec<u32> = (0..).take(tokens).collect();
            let mut other = one.clone();
            other[equal] += 1;
            let page_size = 8;
            let chains = [&one, &other].map(|prompt| Prefix::new([1; 16], prompt, page_size));
            let shared = equal / 8;
            let [one, other] = chains.map(|chain| chain.links.to_vec());
            for (page, (a, b)) in one.chunks(16).zip(other.chunks(16)).enumerate() {
                prop_assert_eq!(a == b, page < shared);
            }
        }
    }
}
