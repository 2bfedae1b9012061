//! Models that are made up: `random:NAME[:SEED]`, weights from a seed and bytes as tokens, for
//! tests and benches. Workers know the same names and shapes (`dopd/weights/made_up.py`).

use std::path::Path;

use sha2::{Digest, Sha256};

const PREFIX: &str = "random:";

/// Name, vocabulary and longest sequence of each.
const SHAPES: [(&str, u32, u32); 3] = [
    ("tiny", 512, 4096),
    ("smollm2-135m", 49_152, 8192),
    ("llama-3.1-8b", 128_256, 131_072),
];

/// One made-up model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeUp {
    name: &'static str,
    seed: u32,
    /// Token ids are below this.
    pub(super) vocab_size: u32,
    /// Longest prompt plus answer in tokens.
    pub(super) max_model_len: u32,
}

impl MadeUp {
    /// The model that `model` names; `None` if it is a path. An error if there is no such model.
    pub fn parse(model: &Path) -> Option<Result<Self, String>> {
        let text = model.to_str()?;
        let (name, seed) = match text.strip_prefix(PREFIX)?.split_once(':') {
            Some((name, seed)) => (name, Some(seed)),
            None => (text.strip_prefix(PREFIX)?, None),
        };
        Some(Self::find(name, seed))
    }

    fn find(name: &str, seed: Option<&str>) -> Result<Self, String> {
        let Some((name, vocab_size, max_model_len)) =
            SHAPES.into_iter().find(|(known, ..)| *known == name)
        else {
            let names = SHAPES.map(|(name, ..)| name).join(", ");
            return Err(format!("{PREFIX}{name}: no such shape; there are {names}"));
        };
        let seed = match seed {
            None | Some("") => 0,
            Some(seed) if seed.bytes().all(|byte| byte.is_ascii_digit()) => {
                seed.parse().map_err(|_| wrong_seed(seed))?
            }
            Some(seed) => return Err(wrong_seed(seed)),
        };
        Ok(Self {
            name,
            seed,
            vocab_size,
            max_model_len,
        })
    }

    /// What workers with this model present.
    pub(super) fn model_hash(&self) -> [u8; 32] {
        Sha256::digest(format!("dopd-random-1:{}:{}", self.name, self.seed)).into()
    }
}

fn wrong_seed(seed: &str) -> String {
    format!(
        "the seed of a random model is {seed:?}, must be 0 to {}",
        u32::MAX
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_seed_are_models_and_paths_are_none() {
        let parse = |text: &str| MadeUp::parse(Path::new(text));
        let tiny = parse("random:tiny").unwrap().unwrap();
        assert_eq!((tiny.vocab_size, tiny.seed), (512, 0));
        assert_eq!(parse("random:tiny:0"), Some(Ok(tiny)));
        let other = parse("random:tiny:7").unwrap().unwrap();
        assert_ne!(other.model_hash(), tiny.model_hash());
        assert_eq!(parse("models/random:tiny"), None);
        for (text, problem) in [
            (
                "random:huge",
                "no such shape; there are tiny, smollm2-135m, llama-3.1-8b",
            ),
            ("random:tiny:x", "\"x\", must be 0 to"),
            ("random:tiny:+1", "\"+1\", must be 0 to"),
            ("random:tiny:4294967296", "must be 0 to 4294967295"),
        ] {
            assert!(
                parse(text).unwrap().unwrap_err().contains(problem),
                "{text}"
            );
        }
    }
}
