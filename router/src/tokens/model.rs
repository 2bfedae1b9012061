//! The served model, as the fronts know it.

use std::{
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    ByteTokenizer, GgufHeader, MadeUp, ModelError, Template, Tokenizer,
    chatml::CHATML,
    fingerprint,
    gguf_model::{self, GgufModel},
    hf_folder::{self, HfFolder},
};
use crate::config::records::ModelConfig;

/// Longest prompt plus answer of the mock model.
const MOCK_MODEL_LEN: u32 = 131_072;
/// Name of the mock model; its hash is over [`MOCK_SEAL`].
const MOCK_NAME: &str = "mock";
/// Ends a message of ChatML.
const END_OF_TURN: &str = "<|im_end|>";
const MOCK_SEAL: &[u8] = b"dopd-mock-1";

/// Everything a front must know of the model to take requests for it. Constant once loaded.
#[derive(Debug)]
pub struct ServedModel {
    /// Name that clients use.
    pub name: String,
    /// Text to ids and back.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// Chat template; `None`: chat is refused, plain prompts are served.
    pub template: Option<Template>,
    /// Ids that end an answer, unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Longest prompt plus answer in tokens.
    pub max_model_len: u32,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Names weights and tokenizer; workers must present the same. `None` if only a tokenizer was
    /// given.
    pub model_hash: Option<[u8; 32]>,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
}

/// What the two kinds of files have in common.
struct Parts {
    tokenizer: Arc<dyn Tokenizer>,
    template: Option<String>,
    bos_token: String,
    eos_token: String,
    eos_token_ids: Vec<u32>,
    context_length: Option<u32>,
    vocab_size: Option<u32>,
}

impl ServedModel {
    /// Reads the model, or its tokenizer alone, from where `config` says.
    pub fn load(config: &ModelConfig) -> Result<Self, ModelError> {
        let source = config.tokenizer.as_deref().or(config.path.as_deref());
        let Some(source) = source else {
            let problem = "no model was given; pass --model or --mock";
            return Err(ModelError::new(Path::new(""), problem));
        };
        let mut parts = read_parts(source)?;
        let model_hash = match config.path.as_deref() {
            None => None,
            Some(path) => {
                if path != source {
                    // The tokenizer lies elsewhere; sizes are those of the model.
                    let (context_length, vocab_size) = sizes(path)?;
                    parts.context_length = context_length.or(parts.context_length);
                    parts.vocab_size = vocab_size.or(parts.vocab_size);
                }
                let hash = fingerprint::model_hash(path);
                Some(hash.map_err(|error| ModelError::new(path, error.to_string()))?)
            }
        };
        let template = parts
            .template
            .map(|text| Template::compile(text, &parts.bos_token, &parts.eos_token))
            .transpose()
            .map_err(|error| ModelError::new(source, error))?;
        let named = config.path.as_deref().unwrap_or(source);
        let tokens = u32::try_from(parts.tokenizer.vocabulary().len()).unwrap_or(u32::MAX);
        Ok(Self {
            name: config.served_name.clone().unwrap_or_else(|| name_of(named)),
            template,
            eos_token_ids: parts.eos_token_ids,
            max_model_len: model_len(config, parts.context_length, named)?,
            vocab_size: parts.vocab_size.unwrap_or(tokens),
            model_hash,
            created: now_seconds(),
            tokenizer: parts.tokenizer,
        })
    }

    /// The built-in mock model: bytes as tokens, ChatML.
    pub fn mock(config: &ModelConfig) -> Result<Self, ModelError> {
        let here = Path::new(MOCK_NAME);
        let template = Template::compile(CHATML.to_owned(), "", END_OF_TURN)
            .map_err(|error| ModelError::new(here, error))?;
        Ok(Self {
            name: config
                .served_name
                .clone()
                .unwrap_or_else(|| MOCK_NAME.to_owned()),
            tokenizer: Arc::new(ByteTokenizer::new()),
            template: Some(template),
            eos_token_ids: vec![ByteTokenizer::EOS],
            max_model_len: model_len(config, Some(MOCK_MODEL_LEN), here)?,
            vocab_size: 258,
            model_hash: Some(Sha256::digest(MOCK_SEAL).into()),
            created: now_seconds(),
        })
    }
}

fn read_parts(path: &Path) -> Result<Parts, ModelError> {
    if let Some(model) = MadeUp::parse(path) {
        let model = model.map_err(|problem| ModelError::new(path, problem))?;
        return Ok(Parts {
            tokenizer: Arc::new(ByteTokenizer::with_vocabulary(model.vocab_size)),
            template: Some(CHATML.to_owned()),
            bos_token: String::new(),
            eos_token: END_OF_TURN.to_owned(),
            eos_token_ids: vec![ByteTokenizer::EOS],
            context_length: Some(model.max_model_len),
            vocab_size: Some(model.vocab_size),
        });
    }
    if !path.exists() {
        return Err(ModelError::new(path, "no such file or folder"));
    }
    if is_gguf(path) {
        let failed = |error| ModelError::new(path, error);
        let header = GgufHeader::open(path).map_err(failed)?;
        let model = GgufModel::new(&header).map_err(failed)?;
        return Ok(Parts {
            tokenizer: Arc::new(model.tokenizer),
            template: model.template,
            bos_token: model.bos_token,
            eos_token: model.eos_token,
            eos_token_ids: model.eos_token_ids,
            context_length: Some(model.context_length),
            vocab_size: Some(model.vocab_size),
        });
    }
    let folder = HfFolder::read(path)?;
    Ok(Parts {
        tokenizer: Arc::new(folder.tokenizer),
        template: folder.template,
        bos_token: folder.bos_token,
        eos_token: folder.eos_token,
        eos_token_ids: folder.eos_token_ids,
        context_length: folder.context_length,
        vocab_size: folder.vocab_size,
    })
}

/// Context length and vocabulary of the model at `path`, read without its tokenizer.
fn sizes(path: &Path) -> Result<(Option<u32>, Option<u32>), ModelError> {
    if let Some(model) = MadeUp::parse(path) {
        let model = model.map_err(|problem| ModelError::new(path, problem))?;
        return Ok((Some(model.max_model_len), Some(model.vocab_size)));
    }
    if is_gguf(path) {
        let header = GgufHeader::open(path).map_err(|error| ModelError::new(path, error))?;
        return Ok(gguf_model::sizes(&header));
    }
    hf_folder::sizes(path)
}

fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension == "gguf")
}

fn name_of(path: &Path) -> String {
    let is_file = path.is_file();
    let name = if is_file {
        path.file_stem()
    } else {
        path.file_name()
    };
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// The model's own length, or less if the operator says so.
fn model_len(config: &ModelConfig, own: Option<u32>, path: &Path) -> Result<u32, ModelError> {
    let problem = match (config.max_model_len, own) {
        (Some(0 | 1), _) => "max_model_len must be at least 2".to_owned(),
        (Some(wanted), Some(own)) if wanted > own => {
            format!("max_model_len is {wanted}, the model has {own}")
        }
        (Some(wanted), _) => return Ok(wanted),
        (None, Some(own)) => return Ok(own),
        (None, None) => "its config.json names no length; pass --max-model-len".to_owned(),
    };
    Err(ModelError::new(path, problem))
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
