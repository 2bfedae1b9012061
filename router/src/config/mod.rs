//! Settings: one record per component, each field declared once with unit, default, limits and
//! flag.
//!
//! Precedence: defaults < TOML file (`--config`, `DOPD_CONFIG`) < `DOPD_TABLE__FIELD` < flags. Each
//! value remembers where it came from, so that a refusal can name it. The table `[worker]` belongs
//! to Python: it is handed to local workers as flags, unread. `launch` calls [`load`] once; nothing
//! changes a setting afterwards.

pub mod declare;
pub mod describe;
mod file;
pub mod keys;
mod layers;
pub mod records;
mod relations;
mod suggest;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

pub use declare::Field;
pub use file::ForeignValue;
pub use keys::{KEY_BYTES_MAX, KeyConfig, KeyDigest};
pub use records::{Config, FIELDS};
pub use relations::Scope;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Declared in [`records`].
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Character in the line, from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag, without its dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// Why the settings are refused. Printed once; the process ends with code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read settings from {path}: {cause}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        cause: String,
    },
    /// The file is not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser expected.
        message: String,
    },
    /// No such table, setting or variable.
    #[error("{origin}: unknown {what} {name:?}{hint}")]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// "table" or "setting".
        what: &'static str,
        /// As written.
        name: String,
        /// Empty, or ", did you mean ...".
        hint: String,
    },
    /// Wrong type, out of limits, not one of the words.
    #[error("{path} is {value}, {problem} (from {origin})")]
    Value {
        /// Path of the setting.
        path: &'static str,
        /// As given.
        value: String,
        /// What is allowed.
        problem: String,
        /// Where it came from.
        origin: Origin,
    },
    /// Settings that contradict each other, or that cannot be offered yet.
    #[error("{0}")]
    Relation(String),
}

impl ConfigError {
    /// Where the mistake stands, if it stands in one place.
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Syntax { origin, .. }
            | Self::Unknown { origin, .. }
            | Self::Value { origin, .. } => Some(origin),
            Self::Unreadable { .. } | Self::Relation(_) => None,
        }
    }

    /// What is wrong, without the place.
    pub fn what(&self) -> String {
        match self {
            Self::Syntax { message, .. } | Self::Relation(message) => message.clone(),
            Self::Unknown {
                what, name, hint, ..
            } => format!("unknown {what} {name:?}{hint}"),
            Self::Value {
                path,
                value,
                problem,
                ..
            } => format!("{path} is {value}, {problem}"),
            Self::Unreadable { cause, .. } => format!("cannot be read: {cause}"),
        }
    }
}

/// What the layers above the defaults said.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// The environment, all of it.
    pub variables: Vec<(String, String)>,
    /// Flags that were given, with their values; none for a switch.
    pub flags: Vec<(&'static Field, Vec<String>)>,
    /// Hash of a key that was given beside the file, and where; no hash if it cannot be one.
    pub api_key: Option<(Option<KeyDigest>, Origin)>,
}

impl Sources {
    /// Whether the environment has `name` with a value.
    pub fn is_set(&self, name: &str) -> bool {
        self.variables
            .iter()
            .any(|(set, value)| set == name && !value.is_empty())
    }
}

/// The settings of a run, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The values.
    pub config: Config,
    /// Table `[worker]` as flags for local workers.
    pub worker_args: Vec<String>,
    /// The same table as it stands in the file.
    pub worker: Vec<ForeignValue>,
    origins: BTreeMap<&'static str, Origin>,
}

impl Settings {
    /// Where the value of `path` came from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }

    /// Writes every setting that is not a default, with its origin, to the log.
    pub fn log(&self) {
        for setting in describe::entries(self) {
            let describe::Entry {
                field,
                value,
                origin,
            } = setting;
            if *origin != Origin::Default {
                tracing::debug!("setting {} = {value} (from {origin})", field.path);
            }
        }
    }
}

/// Puts the layers on each other and checks the result for a run of `scope`.
pub fn load(sources: &Sources, scope: Scope) -> Result<Settings, ConfigError> {
    let mut layers = layers::Layers::default();
    let mut problems = Vec::new();
    let worker = match &sources.file {
        Some(path) => file::read(path, &mut layers, &mut problems),
        None => Vec::new(),
    };
    if let Some(problem) = problems.into_iter().next() {
        return Err(problem);
    }
    layers.add_variables(&sources.variables)?;
    layers.add_flags(&sources.flags)?;
    if let Some((digest, origin)) = &sources.api_key {
        let digest = digest.ok_or_else(|| ConfigError::Value {
            path: "key",
            value: describe::MASK.to_owned(),
            problem: format!(
                "a key has 1 to {} printable ASCII characters and no blank",
                keys::KEY_BYTES_MAX
            ),
            origin: origin.clone(),
        })?;
        let key = KeyConfig::unlimited(keys::DEFAULT_NAME, digest);
        keys::add(&mut layers.keys, key, origin.clone())?;
    }
    settings(layers, worker, scope)
}

/// Everything that is wrong in the file `path`, in its order, and its table `[worker]`.
pub fn check(path: &Path) -> (Vec<ConfigError>, Vec<ForeignValue>) {
    let mut layers = layers::Layers::default();
    let mut problems = Vec::new();
    let worker = file::read(path, &mut layers, &mut problems);
    if problems.is_empty() {
        problems.extend(settings(layers, worker.clone(), Scope::Serve).err());
    }
    (problems, worker)
}

fn settings(
    layers: layers::Layers,
    worker: Vec<ForeignValue>,
    scope: Scope,
) -> Result<Settings, ConfigError> {
    let (config, origins) = layers.finish()?;
    let flags = worker.iter().map(file::worker_flag);
    let worker_args = flags.collect::<Result<Vec<_>, _>>()?;
    let mut settings = Settings {
        config,
        worker_args: worker_args.into_iter().flatten().collect(),
        worker,
        origins,
    };
    relations::settle(&mut settings);
    relations::check(&settings, scope)?;
    Ok(settings)
}

/// The file, line and column of a key.
fn at(path: &Path, text: &str, offset: usize) -> Origin {
    let before = text.get(..offset).unwrap_or(text);
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.chars().rev().take_while(|c| *c != '\n').count();
    Origin::File {
        path: path.to_owned(),
        line,
        column,
    }
}
