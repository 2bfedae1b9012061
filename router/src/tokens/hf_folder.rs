//! A model folder as Hugging Face lays it out: tokenizer, template, special tokens, sizes.

use std::{fs, path::Path};

use serde_json::Value;

use super::{HfTokenizer, ModelError};

/// Largest file read whole: tokenizers of 256,000 tokens take some 35 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// What the folder says of the model. Sizes are `None` where only the tokenizer is there.
pub(super) struct HfFolder {
    pub(super) tokenizer: HfTokenizer,
    pub(super) template: Option<String>,
    pub(super) bos_token: String,
    pub(super) eos_token: String,
    pub(super) eos_token_ids: Vec<u32>,
    pub(super) context_length: Option<u32>,
    pub(super) vocab_size: Option<u32>,
}

impl HfFolder {
    /// Reads `path`: the folder, or its `tokenizer.json`.
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let folder = if path.is_file() {
            path.parent().unwrap_or(path)
        } else {
            path
        };
        let json = folder.join("tokenizer.json");
        let bytes = read(&json)?.ok_or_else(|| {
            ModelError::new(&json, "no such file; dopd needs the fast tokenizer's file")
        })?;
        let tokenizer =
            HfTokenizer::from_json(&bytes).map_err(|error| ModelError::new(&json, error))?;
        let config = read_json(&folder.join("config.json"))?;
        let generation = read_json(&folder.join("generation_config.json"))?;
        let special = read_json(&folder.join("tokenizer_config.json"))?;
        let eos_token = token(&special["eos_token"]);
        let eos_token_ids = [&generation["eos_token_id"], &config["eos_token_id"]]
            .into_iter()
            .map(ids)
            .find(|ids| !ids.is_empty())
            .or_else(|| tokenizer.id(&eos_token).map(|id| vec![id]))
            .unwrap_or_default();
        let template = match read(&folder.join("chat_template.jinja"))? {
            Some(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            None => chat_template(&special["chat_template"]),
        };
        Ok(Self {
            template,
            bos_token: token(&special["bos_token"]),
            eos_token,
            eos_token_ids,
            context_length: size(&config, "max_position_embeddings"),
            vocab_size: size(&config, "vocab_size"),
            tokenizer,
        })
    }
}

/// Context length and vocabulary by the folder's `config.json` alone.
pub(super) fn sizes(folder: &Path) -> Result<(Option<u32>, Option<u32>), ModelError> {
    let config = read_json(&folder.join("config.json"))?;
    Ok((
        size(&config, "max_position_embeddings"),
        size(&config, "vocab_size"),
    ))
}

/// The file's bytes, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    let failed = |error: std::io::Error| ModelError::new(path, error.to_string());
    if !path.is_file() {
        return Ok(None);
    }
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > FILE_BYTES_MAX {
        let problem = format!("{len} bytes, at most {FILE_BYTES_MAX}");
        return Err(ModelError::new(path, problem));
    }
    fs::read(path).map_err(failed).map(Some)
}

/// The file as JSON; `Null` if there is no such file.
fn read_json(path: &Path) -> Result<Value, ModelError> {
    let Some(bytes) = read(path)? else {
        return Ok(Value::Null);
    };
    serde_json::from_slice(&bytes).map_err(|error| ModelError::new(path, error.to_string()))
}

/// A size of the language model; multimodal configurations keep theirs in `text_config`.
fn size(config: &Value, key: &str) -> Option<u32> {
    let value = config[key]
        .as_u64()
        .or_else(|| config["text_config"][key].as_u64())?;
    u32::try_from(value).ok()
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

/// A special token: its text, or an object with it.
fn token(value: &Value) -> String {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.unwrap_or_default().to_owned()
}

/// One template, or a list of named ones of which `default` counts.
fn chat_template(value: &Value) -> Option<String> {
    let named = || {
        let list = value.as_array()?;
        let default = list.iter().find(|entry| entry["name"] == "default")?;
        default["template"].as_str()
    };
    value.as_str().or_else(named).map(str::to_owned)
}
