//! Tokenizer, template and sizes of a model out of GGUF metadata.

use tokenizers::{
    AddedToken, Tokenizer as Inner,
    decoders::byte_level::ByteLevel as ByteLevelDecoder,
    models::bpe::{BPE, Vocab},
    pre_tokenizers::{
        PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence,
    },
};

use super::{HfTokenizer, gguf::Header};

/// Token types of the format that matter here.
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

/// What the metadata says of the model.
pub(super) struct GgufModel {
    pub(super) tokenizer: HfTokenizer,
    pub(super) template: Option<String>,
    pub(super) bos_token: String,
    pub(super) eos_token: String,
    pub(super) eos_token_ids: Vec<u32>,
    pub(super) context_length: u32,
    pub(super) vocab_size: u32,
}

impl GgufModel {
    /// Builds the tokenizer and picks the rest out of `header`.
    pub(super) fn new(header: &Header) -> Result<Self, String> {
        let tokens = header
            .texts("tokenizer.ggml.tokens")
            .ok_or("`tokenizer.ggml.tokens` is missing: it has no tokenizer")?;
        let tokenizer = tokenizer(header, tokens)?;
        let context_length = sizes(header).0.ok_or("its context length is missing")?;
        let eos = header
            .integer("tokenizer.ggml.eos_token_id")
            .ok_or("`tokenizer.ggml.eos_token_id` is missing")?;
        let text_of = |id: Option<u32>| {
            id.and_then(|id| tokens.get(id as usize))
                .cloned()
                .unwrap_or_default()
        };
        Ok(Self {
            tokenizer,
            template: header.text("tokenizer.chat_template").map(str::to_owned),
            bos_token: text_of(header.integer("tokenizer.ggml.bos_token_id")),
            eos_token: text_of(Some(eos)),
            eos_token_ids: vec![eos],
            context_length,
            // Rows of the embedding: a token id at or above it would read beyond them.
            vocab_size: u32::try_from(tokens.len()).map_err(|e| e.to_string())?,
        })
    }
}

/// Context length, and rows of the embedding, if the metadata says so.
pub(super) fn sizes(header: &Header) -> (Option<u32>, Option<u32>) {
    let architecture = header.text("general.architecture").unwrap_or_default();
    let context_length = header.integer(&format!("{architecture}.context_length"));
    let tokens = header.texts("tokenizer.ggml.tokens");
    let vocab_size = tokens.and_then(|tokens| u32::try_from(tokens.len()).ok());
    (context_length, vocab_size)
}

fn tokenizer(header: &Header, tokens: &[String]) -> Result<HfTokenizer, String> {
    let model = header.text("tokenizer.ggml.model").unwrap_or("");
    if model != "gpt2" {
        return Err(format!(
            "`tokenizer.ggml.model` is `{model}`; only `gpt2` is supported, pass --tokenizer"
        ));
    }
    if header.flag("tokenizer.ggml.add_bos_token") == Some(true) {
        return Err("`add_bos_token` is not supported, pass --tokenizer".to_owned());
    }
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("");
    let pre_tokenizer = pre_tokenizer(pre)?;
    let merges = header
        .texts("tokenizer.ggml.merges")
        .ok_or("`tokenizer.ggml.merges` is missing")?;
    let merges: Option<Vec<(String, String)>> = merges
        .iter()
        .map(|merge| merge.split_once(' '))
        .map(|pair| pair.map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect();
    let merges = merges.ok_or("a merge without a space in `tokenizer.ggml.merges`")?;
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build();
    let mut inner = Inner::new(bpe.map_err(|error| error.to_string())?);
    inner.with_pre_tokenizer(Some(pre_tokenizer));
    inner.with_decoder(Some(ByteLevelDecoder::default()));
    add_tokens(&mut inner, header, tokens)?;
    HfTokenizer::new(inner)
}

/// The split into words before BPE, by the name that the converter of GGUF files gave it.
fn pre_tokenizer(name: &str) -> Result<PreTokenizerWrapper, String> {
    let prefix_space = false;
    let trim_offsets = true;
    let use_regex = true;
    let byte_level = ByteLevel::new(prefix_space, trim_offsets, use_regex);
    match name {
        "smollm" => {
            let each_digit = Digits::new(true);
            Ok(Sequence::new(vec![each_digit.into(), byte_level.into()]).into())
        }
        "gpt-2" => Ok(byte_level.into()),
        other => Err(format!(
            "`tokenizer.ggml.pre` is `{other}`; only `smollm` and `gpt-2` are supported, \
             pass --tokenizer"
        )),
    }
}

fn add_tokens(inner: &mut Inner, header: &Header, tokens: &[String]) -> Result<(), String> {
    let kinds = header.integers("tokenizer.ggml.token_type").unwrap_or(&[]);
    let of_kind = |kind: i64, special: bool| -> Vec<AddedToken> {
        let chosen = tokens.iter().zip(kinds).filter(|(_, k)| **k == kind);
        chosen
            .map(|(token, _)| AddedToken::from(token.clone(), special).normalized(false))
            .collect()
    };
    let added = inner.add_special_tokens(of_kind(TYPE_CONTROL, true));
    added.map_err(|error| error.to_string())?;
    let added = inner.add_tokens(of_kind(TYPE_USER_DEFINED, false));
    added.map_err(|error| error.to_string())?;
    Ok(())
}
