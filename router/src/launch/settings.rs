//! `config show`, `config check` and `config schema`: what the settings are and where they came
//! from. The table `[worker]` is Python's: its half is asked through [`WorkerTable`].

use std::{fmt::Write as _, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    WorkerTable,
    cli::{ConfigPlan, ServePlan},
    console::{self, Failure},
};
use crate::config::{
    self, ForeignValue, KeyConfig, Origin,
    describe::{self, MASK},
};

/// Runs one of the three; returns the exit code.
pub(super) fn run(worker: Option<&WorkerTable>, plan: &ConfigPlan) -> Result<i32, Failure> {
    match plan {
        ConfigPlan::Show {
            serve,
            with_origin,
            as_json,
        } => show(worker, serve, *with_origin, *as_json),
        ConfigPlan::Check { file, as_json } => check(worker, file, *as_json),
        ConfigPlan::Schema => {
            let worker = ask(worker, &[])?.schema;
            console::say(&pretty(&describe::schema(worker)));
            Ok(console::OK)
        }
    }
}

/// What Python's half says of the table `[worker]`.
#[derive(Debug, Deserialize)]
struct WorkerHalf {
    /// Every key that the table may have.
    settings: Vec<WorkerSetting>,
    /// What is wrong; `key` is absent if it is the whole.
    problems: Vec<WorkerProblem>,
    /// JSON Schema of the table.
    schema: Value,
}

#[derive(Debug, Deserialize)]
struct WorkerSetting {
    name: String,
    value: Value,
}

#[derive(Debug, Deserialize)]
struct WorkerProblem {
    key: Option<String>,
    message: String,
}

/// Asks Python's half about the values of the table.
fn ask(worker: Option<&WorkerTable>, table: &[ForeignValue]) -> Result<WorkerHalf, Failure> {
    let Some(worker) = worker else {
        return Ok(WorkerHalf {
            settings: Vec::new(),
            problems: Vec::new(),
            schema: json!({"type": "object"}),
        });
    };
    let values = table.iter().map(|v| (v.key.clone(), v.value.clone()));
    let values = Value::Object(values.collect::<Map<_, _>>());
    let answer = worker.ask(&values.to_string()).map_err(Failure::new)?;
    serde_json::from_str(&answer)
        .map_err(|error| Failure::new(format!("the worker's half of the settings: {error}")))
}

/// One setting as `config show --json` has it.
#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    value: Value,
    origin: String,
    is_default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    variable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

fn show(
    worker: Option<&WorkerTable>,
    plan: &ServePlan,
    with_origin: bool,
    as_json: bool,
) -> Result<i32, Failure> {
    let settings = config::load(&plan.sources, plan.scope)?;
    let mut all: Vec<Shown> = describe::entries(&settings)
        .into_iter()
        .map(|entry| Shown {
            path: entry.field.path.to_owned(),
            value: entry.value,
            origin: entry.origin.to_string(),
            is_default: *entry.origin == Origin::Default,
            variable: Some(entry.field.variable()),
            flag: entry.field.flag.map(|(name, _)| format!("--{name}")),
            help: Some(describe::one_line(entry.field.help)),
        })
        .collect();
    all.extend(settings.config.key.iter().map(shown_key));
    let half = ask(worker, &settings.worker)?;
    if let Some(problem) = half.problems.first() {
        return Err(Failure::usage(placed(
            problem,
            &settings.worker,
            plan.sources.file.as_deref(),
        )));
    }
    all.extend(half.settings.into_iter().map(|setting| {
        let given = settings.worker.iter().find(|v| v.key == setting.name);
        Shown {
            path: format!("worker.{}", setting.name),
            value: setting.value,
            origin: given.map_or_else(|| Origin::Default.to_string(), |v| v.origin.to_string()),
            is_default: given.is_none(),
            variable: None,
            flag: None,
            help: None,
        }
    }));
    console::say(&if as_json {
        pretty(&json!({ "settings": all }))
    } else {
        toml_text(&all, with_origin)
    });
    Ok(console::OK)
}

/// One `[[key]]`: what it may do, and not its hash.
fn shown_key(key: &KeyConfig) -> Shown {
    let mut value = serde_json::to_value(key).unwrap_or_default();
    value["sha256"] = Value::from(MASK);
    Shown {
        path: format!("key.{}", key.name),
        value,
        origin: "[[key]], --api-key or DOPD_API_KEY".to_owned(),
        is_default: false,
        variable: None,
        flag: None,
        help: None,
    }
}

/// The settings as a file that could be loaded; what is unset or masked stands in comments.
fn toml_text(all: &[Shown], with_origin: bool) -> String {
    let mut text = String::new();
    let mut last_table = "";
    for shown in all {
        let (table, name) = shown.path.split_once('.').unwrap_or_default();
        if table != last_table {
            let gap = if last_table.is_empty() { "" } else { "\n" };
            // A key's hash is not shown, so this is not the table of a file.
            let mark = if table == "key" { "# [" } else { "[" };
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{gap}{mark}{table}]");
            last_table = table;
        }
        let line = match &shown.value {
            Value::Null => format!("# {name} ="),
            value if *value == MASK || value.is_object() => format!("# {name} = {value}"),
            value => format!("{name} = {}", toml_value(value)),
        };
        let _ = if with_origin {
            writeln!(text, "{line:<40} # {}", shown.origin)
        } else {
            writeln!(text, "{line}")
        };
    }
    text.trim_end().to_owned()
}

/// A value in TOML's words.
fn toml_value(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}

/// One mistake as `config check --json` has it.
#[derive(Debug, Serialize)]
struct Problem {
    line: Option<usize>,
    column: Option<usize>,
    message: String,
}

impl Problem {
    fn new(origin: Option<&Origin>, message: String) -> Self {
        let (line, column) = match origin {
            Some(Origin::File { line, column, .. }) => (Some(*line), Some(*column)),
            _ => (None, None),
        };
        Self {
            line,
            column,
            message,
        }
    }

    fn text(&self, file: &Path) -> String {
        let file = file.display();
        match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}: {}", self.message),
            _ => format!("{file}: {}", self.message),
        }
    }
}

fn check(worker: Option<&WorkerTable>, file: &Path, as_json: bool) -> Result<i32, Failure> {
    let (errors, table) = config::check(file);
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| Problem::new(error.origin(), error.what()))
        .collect();
    for problem in ask(worker, &table)?.problems {
        let value = table.iter().find(|v| Some(&v.key) == problem.key.as_ref());
        problems.push(Problem::new(value.map(|v| &v.origin), problem.message));
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    let is_fine = problems.is_empty();
    if as_json {
        let file = file.display().to_string();
        let found = json!({"file": file, "is_valid": is_fine, "problems": problems});
        console::say(&pretty(&found));
    } else if is_fine {
        let unread = match worker {
            None if !table.is_empty() => "; [worker] is Python's and was not looked at",
            _ => "",
        };
        console::say(&format!("{}: fine{unread}", file.display()));
    } else {
        for problem in &problems {
            console::note(&format!("error: {}", problem.text(file)));
        }
    }
    Ok(if is_fine { console::OK } else { console::USAGE })
}

/// A problem of `[worker]` with its place, for a refusal.
fn placed(problem: &WorkerProblem, table: &[ForeignValue], file: Option<&Path>) -> String {
    let value = table.iter().find(|v| Some(&v.key) == problem.key.as_ref());
    let found = Problem::new(value.map(|v| &v.origin), problem.message.clone());
    found.text(file.unwrap_or(Path::new("[worker]")))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
