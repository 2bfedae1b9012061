//! The real tokenizer of SmolLM2, from its GGUF file: skipped without `DOPD_TEST_GGUF`.

use std::{path::PathBuf, sync::OnceLock};

use dopd_router::{
    config::records::ModelConfig,
    tokens::{Detokenizer, Framing, GgufHeader, Message, ServedModel},
};
use proptest::prelude::*;

/// The model, or `None` with a printed reason.
fn model() -> Option<&'static ServedModel> {
    static MODEL: OnceLock<Option<ServedModel>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let Some(path) = std::env::var_os("DOPD_TEST_GGUF").map(PathBuf::from) else {
                eprintln!("skipped: DOPD_TEST_GGUF does not name a GGUF file of SmolLM2");
                return None;
            };
            let config = ModelConfig {
                path: Some(path),
                ..ModelConfig::default()
            };
            Some(ServedModel::load(&config).unwrap())
        })
        .as_ref()
}

fn encode(model: &ServedModel, text: &str) -> Vec<u32> {
    model.tokenizer.encode(text, Framing::Default).unwrap()
}

fn decode(model: &ServedModel, ids: &[u32]) -> String {
    let mut detokenizer = Detokenizer::default();
    let mut text = String::new();
    for id in ids {
        detokenizer.push(model.tokenizer.vocabulary().text(*id), &mut text);
    }
    detokenizer.finish(&mut text);
    text
}

/// Ids by Python's `tokenizers` 0.23 with the model's own pre-tokenizer (digits one by one, then
/// byte level). transformers 5.23 leaves the digits out when it converts this file, and differs in
/// the last text.
#[test]
fn ids_are_those_of_the_reference() {
    let Some(model) = model() else { return };
    for (text, ids) in [
        (
            "What is the capital of France?",
            &[1780, 314, 260, 3575, 282, 4649, 47][..],
        ),
        (
            "  two  spaces\n\ttab 12345 3.14",
            &[
                216, 827, 216, 5600, 198, 197, 15999, 216, 33, 34, 35, 36, 37, 216, 35, 30, 33, 36,
            ][..],
        ),
        (
            "na\u{ef}ve caf\u{e9} \u{65e5}\u{672c}\u{8a9e} \u{1f469}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{200d}\u{1f466} \u{301}",
            &[
                3546, 46494, 37366, 17097, 241, 115, 40993, 179, 120, 248, 15107, 235, 119, 321,
                231, 10813, 235, 119, 321, 231, 10813, 235, 117, 321, 231, 10813, 235, 116, 216,
                151, 219,
            ][..],
        ),
        (
            "<|im_start|>user\nhi<|im_end|>\n",
            &[1, 4093, 198, 6004, 2, 198][..],
        ),
        (
            "don't I'll WE'RE x_y==z;",
            &[
                12420, 982, 339, 3060, 26587, 23, 3256, 1792, 79, 105, 1189, 106, 43,
            ][..],
        ),
        (
            "\u{0}\u{200d}\u{feff}end",
            &[190, 321, 231, 186, 136, 140, 486][..],
        ),
        (
            "\u{661}\u{662}\u{663} \u{bd} \u{2177}",
            &[164, 111, 164, 112, 164, 113, 216, 16738, 216, 173, 223, 132][..],
        ),
        (" ", &[216][..]),
    ] {
        assert_eq!(encode(model, text), ids, "{text:?}");
    }
}

#[test]
fn template_and_sizes_are_those_of_the_file() {
    let Some(model) = model() else { return };
    assert_eq!(model.max_model_len, 8_192);
    assert_eq!(model.vocab_size, 49_152);
    assert_eq!(model.eos_token_ids, [2]);
    let messages = [Message {
        role: "user".to_owned(),
        content: "Hi".to_owned(),
        ..Message::default()
    }];
    let text = model.template.as_ref().unwrap().render(&messages).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn a_cut_file_is_refused() {
    let Some(path) = std::env::var_os("DOPD_TEST_GGUF") else {
        return;
    };
    let whole = std::fs::read(path).unwrap();
    for len in [4, 24, 1_000, 100_000, 1_000_000] {
        let cut = &whole[..len];
        assert!(GgufHeader::read(cut, len as u64).is_err(), "cut at {len}");
    }
}

proptest! {
    /// Any ids, so that characters break between tokens and broken ones stay broken.
    #[test]
    fn detokenizer_equals_the_librarys_decoding(
        ids in proptest::collection::vec(0_u32..49_152, 0..40),
        text in ".{0,60}",
    ) {
        let Some(model) = model() else { return Ok(()) };
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|id| model.tokenizer.vocabulary().text(*id).to_vec())
            .collect();
        prop_assert_eq!(decode(model, &ids), String::from_utf8_lossy(&bytes));
        // A few control bytes have no token; BPE drops them.
        let vocabulary = model.tokenizer.vocabulary();
        let spelled = |byte: u8| (0..300).any(|id| vocabulary.bytes(id) == [byte]);
        if text.bytes().all(spelled) {
            prop_assert_eq!(decode(model, &encode(model, &text)), text);
        }
    }
}
