//! Plays the committed corpus, and mutations of it: as many each time, and the same ones.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::PathBuf};

use dopd_fuzz::TARGETS;

/// Mutations of each target's corpus.
const CASES: usize = 4_000;
/// Longest mutated input in bytes.
const INPUT_BYTES_MAX: usize = 4_096;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut paths: Vec<PathBuf> = (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read(path).unwrap())
        .collect()
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % bound.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    /// One to four changes: a byte, a piece left away, doubled, or taken from another input.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            let end = at + self.below(data.len() + 1 - at);
            match self.below(4) {
                0 if at < data.len() => data[at] = self.byte(),
                1 => drop(data.drain(at..end)),
                2 => data.splice(at..at, data[at..end].to_vec()).for_each(drop),
                _ => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len() + 1);
                    let to = from + self.below(other.len() + 1 - from);
                    data.splice(at..end, other[from..to].iter().copied())
                        .for_each(drop);
                }
            }
            data.truncate(INPUT_BYTES_MAX);
        }
        data
    }
}

/// A panic names its input, which then goes into the corpus.
fn play(name: &str) {
    let target = TARGETS.iter().find(|(known, _)| *known == name).unwrap().1;
    let seeds = corpus(name);
    assert!(!seeds.is_empty(), "no corpus of {name}");
    let mut random = Random(0);
    let mutations = std::iter::repeat_with(|| random.mutate(&seeds)).take(CASES);
    for input in seeds.iter().cloned().chain(mutations) {
        let run = std::panic::catch_unwind(|| target(&input));
        assert!(run.is_ok(), "{name}: {}", input.escape_ascii());
    }
}

#[test]
fn requests() {
    play("request");
}

#[test]
fn events() {
    play("events");
}

#[test]
fn templates() {
    play("template");
}

#[test]
fn workers() {
    play("worker");
}

#[test]
fn texts() {
    play("text");
}
