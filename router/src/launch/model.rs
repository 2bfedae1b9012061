//! Which model: a known name, a folder, a file, or made up; then its tokenizer, template, limits.

use std::path::{Path, PathBuf};

use super::console::Failure;
use crate::{
    config::{Config, Scope},
    tokens::{MadeUp, ServedModel},
};

/// Turns a known name into its path and checks that the path can be a model.
pub(super) fn resolve(
    config: &mut Config,
    known: &[(String, Option<PathBuf>)],
    scope: Scope,
) -> Result<(), Failure> {
    let model = &mut config.model;
    if config.cluster.mock {
        return match &model.path {
            None => Ok(()),
            Some(path) => Err(Failure::usage(format!(
                "both a model ({}) and --mock; the mock has a model of its own",
                path.display()
            ))),
        };
    }
    let Some(path) = &model.path else {
        if scope == Scope::Router && model.tokenizer.is_some() {
            return Ok(());
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Failure::usage(format!(
            "no model: give a folder, a .gguf file{}, or --mock for simulated workers",
            if names.is_empty() {
                String::new()
            } else {
                format!(", {}", names.join(", "))
            }
        )));
    };
    if let Some((name, found)) = known.iter().find(|(name, _)| Path::new(name) == path) {
        let Some(found) = found else {
            let problem = format!("the model {name} is not installed");
            return Err(Failure::usage(problem).with_fix("pip install 'dopd[demo]'"));
        };
        model.served_name.get_or_insert_with(|| name.clone());
        model.path = Some(found.clone());
        return Ok(());
    }
    check(path)
}

fn check(path: &Path) -> Result<(), Failure> {
    if let Some(model) = MadeUp::parse(path) {
        return model.map(|_| ()).map_err(Failure::usage);
    }
    let shown = path.display();
    if !path.exists() {
        let problem = format!("no model at {shown}: there is no such folder or file");
        return Err(Failure::usage(problem).with_fix(fetch(path)));
    }
    if path.is_file() && path.extension().is_none_or(|extension| extension != "gguf") {
        let problem = format!("{shown} is a file, but not a .gguf one");
        return Err(Failure::usage(problem)
            .with_fix("give the folder that holds config.json, tokenizer.json and *.safetensors"));
    }
    if path.is_dir() && !path.join("config.json").is_file() {
        let problem = format!("no model at {shown}: the folder has no config.json");
        return Err(Failure::usage(problem)
            .with_fix("give the folder that holds config.json, tokenizer.json and *.safetensors"));
    }
    Ok(())
}

/// What helps who named a model that is not here: `ORG/NAME` is one of a hub, which dopd does not
/// ask.
fn fetch(path: &Path) -> String {
    let text = path.display().to_string();
    let is_hub_name = path.is_relative()
        && path.components().count() == 2
        && !text.starts_with('.')
        && path.extension().is_none_or(|end| end != "gguf");
    if is_hub_name {
        format!(
            "dopd downloads nothing; `hf download {text} --local-dir DIR`, then `dopd serve DIR`"
        )
    } else {
        "give a folder, a .gguf file, or --mock for simulated workers".to_owned()
    }
}

/// Loads tokenizer, template and limits.
pub(super) fn load(config: &Config) -> Result<ServedModel, Failure> {
    if config.cluster.mock {
        return ServedModel::mock(&config.model).map_err(Failure::usage);
    }
    ServedModel::load(&config.model).map_err(Failure::usage)
}
