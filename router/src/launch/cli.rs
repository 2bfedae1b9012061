//! The command line. Flags of settings come from their declarations in `config`; nothing about them
//! is repeated here.

use std::path::PathBuf;

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{NonEmptyStringValueParser, ValueHint},
    value_parser,
};
use serde_json::Value;

use super::{console::USAGE, habits};
use crate::config::{Config, FIELDS, Field, KeyDigest, Origin, Scope, Sources};

/// Flag and variable of the key named `default`.
const API_KEY_FLAG: &str = "api-key";
const API_KEY_VARIABLE: &str = "DOPD_API_KEY";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(super) enum Plan {
    /// `serve` and `router`.
    Serve(ServePlan),
    /// `config show`, `config check` and `config schema`.
    Config(ConfigPlan),
    /// `replay FILE`.
    Replay(ReplayPlan),
    /// `version`.
    Version,
}

/// `serve` or `router`.
#[derive(Clone, Debug)]
pub(super) struct ServePlan {
    pub(super) scope: Scope,
    pub(super) sources: Sources,
    /// Told once everything is up.
    pub(super) ready_file: Option<PathBuf>,
}

/// `config ...`.
#[derive(Clone, Debug)]
pub(super) enum ConfigPlan {
    /// Every setting and its value.
    Show {
        serve: ServePlan,
        with_origin: bool,
        as_json: bool,
    },
    /// Whether a file is right.
    Check { file: PathBuf, as_json: bool },
    /// The JSON Schema of the file.
    Schema,
}

/// `replay FILE`.
#[derive(Clone, Debug)]
pub(super) struct ReplayPlan {
    pub(super) file: PathBuf,
    pub(super) as_json: bool,
}

/// Help or a usage error: what clap wants shown, and the exit code.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) error: clap::Error,
    pub(super) code: i32,
}

/// Parses `argv` (without the program's name).
pub(super) fn parse(
    program: &'static str,
    argv: &[String],
    variables: Vec<(String, String)>,
) -> Result<Plan, Shown> {
    let words =
        std::iter::once(program.to_owned()).chain(argv.iter().map(|word| habits::translate(word)));
    let shown = |error: clap::Error| {
        let code = if error.use_stderr() { USAGE } else { 0 };
        Shown { error, code }
    };
    let matches = command(program)
        .try_get_matches_from(words)
        .map_err(shown)?;
    Ok(match matches.subcommand() {
        Some(("serve", matches)) => Plan::Serve(serve_plan(Scope::Serve, matches, variables)),
        Some(("router", matches)) => Plan::Serve(serve_plan(Scope::Router, matches, variables)),
        Some(("config", matches)) => Plan::Config(config_plan(matches, variables)),
        Some(("replay", matches)) => Plan::Replay(ReplayPlan {
            // clap requires the file.
            file: matches.get_one("FILE").cloned().unwrap_or_default(),
            as_json: matches.get_flag("json"),
        }),
        // clap requires a subcommand and knows only these.
        _ => Plan::Version,
    })
}

fn config_plan(matches: &ArgMatches, variables: Vec<(String, String)>) -> ConfigPlan {
    match matches.subcommand() {
        Some(("show", matches)) => ConfigPlan::Show {
            serve: serve_plan(Scope::Serve, matches, variables),
            with_origin: matches.get_flag("origin"),
            as_json: matches.get_flag("json"),
        },
        Some(("check", matches)) => ConfigPlan::Check {
            file: matches.get_one("FILE").cloned().unwrap_or_default(),
            as_json: matches.get_flag("json"),
        },
        // clap requires a subcommand and knows only these.
        _ => ConfigPlan::Schema,
    }
}

fn serve_plan(scope: Scope, matches: &ArgMatches, variables: Vec<(String, String)>) -> ServePlan {
    let mut flags = Vec::new();
    for (field, _) in flagged(scope) {
        if matches.value_source(field.path) != Some(clap::parser::ValueSource::CommandLine) {
            continue;
        }
        let values = if is_switch(field) {
            Vec::new()
        } else {
            matches
                .get_many::<String>(field.path)
                .into_iter()
                .flatten()
                .cloned()
                .collect()
        };
        flags.push((field, values));
    }
    if let Some(model) = matches.get_one::<String>("MODEL") {
        flags.extend(
            FIELDS
                .iter()
                .filter(|f| f.path == "model.path")
                .map(|f| (f, vec![model.clone()])),
        );
    }
    let from_environment = || {
        let variable = variables
            .iter()
            .find(|(name, value)| name == "DOPD_CONFIG" && !value.is_empty());
        variable.map(|(_, path)| PathBuf::from(path))
    };
    let file = matches
        .get_one::<PathBuf>("config")
        .cloned()
        .or_else(from_environment);
    let api_key = api_key(matches, &variables);
    let sources = Sources {
        file,
        variables,
        flags,
        api_key,
    };
    ServePlan {
        scope,
        sources,
        // `config show` has no such flag.
        ready_file: matches.try_get_one("ready-file").ok().flatten().cloned(),
    }
}

/// Hash of the key of `--api-key`, else of `DOPD_API_KEY`. The key itself goes no further.
fn api_key(
    matches: &ArgMatches,
    variables: &[(String, String)],
) -> Option<(Option<KeyDigest>, Origin)> {
    let flag = matches.try_get_one::<String>(API_KEY_FLAG).ok().flatten();
    if let Some(key) = flag {
        return Some((KeyDigest::of_chosen(key), Origin::Flag(API_KEY_FLAG)));
    }
    let variable = variables
        .iter()
        .find(|(name, value)| name == API_KEY_VARIABLE && !value.is_empty());
    let origin = || Origin::Variable(API_KEY_VARIABLE.to_owned());
    variable.map(|(_, key)| (KeyDigest::of_chosen(key), origin()))
}

/// The whole command.
pub(super) fn command(program: &'static str) -> Command {
    Command::new(program)
        .about("Serve a large language model with prefill and decode on separate workers")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .subcommand(serve_command(program))
        .subcommand(router_command())
        .subcommand(config_command())
        .subcommand(replay_command())
        .subcommand(Command::new("version").about("Print the version"))
}

fn serve_command(program: &str) -> Command {
    let examples = [
        ("serve --mock", "simulated workers: no model, no GPU"),
        ("serve smollm2", "the demo model, on this machine"),
        ("serve ./llama --prefill 2 --decode 2", "four workers"),
    ];
    let examples = examples.map(|(words, what)| format!("  {program} {words:<38} {what}\n"));
    let after = format!("Examples:\n{}\n{SETTINGS_HELP}", examples.concat());
    let command = Command::new("serve")
        .about("Serve a model: a router and local workers in one go")
        .after_help(after);
    running(common(command, Scope::Serve))
}

fn router_command() -> Command {
    let command = Command::new("router")
        .about("A router alone; workers dial in with the join token")
        .after_help(SETTINGS_HELP);
    running(common(command, Scope::Router))
}

fn config_command() -> Command {
    let show = Command::new("show")
        .about("Every setting and its value, as a settings file")
        .arg(switch("origin", "Where each value came from"))
        .arg(switch("json", "One JSON document"))
        .after_help("Takes the flags of `serve`: it shows what `serve` would run with.");
    let check = Command::new("check")
        .about("Whether a settings file is right; names file, line and column of what is not")
        .arg(file("Settings file"))
        .arg(switch("json", "One JSON document"));
    Command::new("config")
        .about("The settings: show them, check a file, print the schema of the file")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(common(show, Scope::Serve))
        .subcommand(check)
        .subcommand(Command::new("schema").about("JSON Schema of the settings file"))
}

fn replay_command() -> Command {
    Command::new("replay")
        .about("Decide a recorded event log again and compare")
        .arg(file("Event log written by `--record FILE`"))
        .arg(switch("json", "One JSON document"))
}

fn file(help: &'static str) -> Arg {
    Arg::new("FILE")
        .help(help)
        .required(true)
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::FilePath)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .action(ArgAction::SetTrue)
}

const SETTINGS_HELP: &str = "\
Every setting can also stand in a TOML file (table [http], port = 8000) or in the environment
(DOPD_HTTP__PORT=8000). Defaults < file < environment < flags.";

fn common(mut command: Command, scope: Scope) -> Command {
    let model = Arg::new("MODEL")
        .help("Folder, `.gguf` file or known name (smollm2); none with --mock")
        .conflicts_with("model.path");
    command = command.arg(model);
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    for (field, name) in flagged(scope) {
        command = command.arg(flag(field, name, &defaults[field.table][field.name]));
    }
    let api_key = Arg::new(API_KEY_FLAG)
        .long(API_KEY_FLAG)
        .value_name("KEY")
        .help(
            "Key that clients must send; others see it in the process list, so rather \
             [env: DOPD_API_KEY] or [[key]] in the settings file",
        )
        .value_parser(NonEmptyStringValueParser::new())
        .help_heading("Listeners");
    command
        .arg(api_key)
        .arg(path("config", "FILE", "Settings file [env: DOPD_CONFIG]").short('c'))
}

/// Flags of commands that stay up.
fn running(command: Command) -> Command {
    let help = "Write addresses there as JSON once all workers are attached";
    habits::add(command.arg(path("ready-file", "FILE", help)))
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(value)
        .help(help)
        .value_parser(value_parser!(PathBuf))
        .value_hint(ValueHint::FilePath)
        .help_heading("General")
}

/// Settings that have a flag in a command of `scope`.
fn flagged(scope: Scope) -> impl Iterator<Item = (&'static Field, &'static str)> {
    FIELDS.iter().filter_map(move |field| {
        let (name, _) = field.flag?;
        let is_offered = match scope {
            Scope::Serve => true,
            // Local workers are not a router's; that there is no model is.
            Scope::Router => field.table != "cluster" || field.name == "mock",
        };
        is_offered.then_some((field, name))
    })
}

fn is_switch(field: &Field) -> bool {
    field.flag.is_some_and(|(_, value)| value.is_empty())
}

fn flag(field: &'static Field, name: &'static str, default: &Value) -> Arg {
    let arg = Arg::new(field.path)
        .long(name)
        .help(help(field, default))
        .help_heading(heading(field));
    match field.flag {
        _ if is_switch(field) => arg.action(ArgAction::SetTrue),
        Some((_, value)) if default.is_array() => arg
            .value_name(value)
            .action(ArgAction::Append)
            .allow_hyphen_values(true),
        // Hyphens: so that `--port -1` is refused as a value, by the setting's own limits.
        Some((_, value)) => arg.value_name(value).allow_negative_numbers(true),
        None => arg,
    }
}

/// The declaration's help with allowed words and default.
fn help(field: &Field, default: &Value) -> String {
    let text = field.help.trim().trim_end_matches('.');
    let words = field
        .one_of
        .map(|words| format!(" [one of: {}]", words.join(", ")));
    let default = match default {
        Value::String(default) => Some(format!(" [default: {default}]")),
        Value::Number(default) => Some(format!(" [default: {default}]")),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    format!(
        "{text}{}{}",
        words.unwrap_or_default(),
        default.unwrap_or_default()
    )
}

fn heading(field: &Field) -> &'static str {
    match field.table {
        _ if field.path == "cluster.mock" => "Model",
        "model" => "Model",
        "cluster" => "Local workers",
        "http" | "grpc" | "workers" | "admin" => "Listeners",
        "slo" => "Targets",
        _ => "General",
    }
}
