//! The commands and flags of clap as data, for completion of shells and "did you mean" in Python.

use clap::{Arg, Command, builder::ValueHint};
use serde_json::{Value, json};

/// Commands with their flags, as JSON.
pub(super) fn outline(command: &Command) -> Value {
    let flags = command.get_arguments().filter(|arg| !arg.is_positional());
    let words = command.get_arguments().filter(|arg| arg.is_positional());
    json!({
        "name": command.get_name(),
        "help": command.get_about().map(ToString::to_string).unwrap_or_default(),
        "flags": flags.map(argument).collect::<Vec<_>>(),
        "positionals": words.map(argument).collect::<Vec<_>>(),
        "commands": command.get_subcommands().map(outline).collect::<Vec<_>>(),
    })
}

fn argument(arg: &Arg) -> Value {
    let takes_value = arg.is_positional() || arg.get_action().takes_values();
    let value = takes_value.then(|| arg.get_value_names().and_then(|names| names.first()));
    json!({
        "long": arg.get_long(),
        "short": arg.get_short(),
        "value": value.flatten().map(ToString::to_string),
        "help": arg.get_help().map(ToString::to_string).unwrap_or_default(),
        "words": words(arg),
        "is_path": is_path(arg),
    })
}

/// The words of `[one of: a, b]` in the help: limits of a setting are not clap's to check.
fn words(arg: &Arg) -> Vec<String> {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let list = help
        .split_once("[one of: ")
        .and_then(|(_, rest)| rest.split_once(']'));
    list.map(|(list, _)| list.split(", ").map(str::to_owned).collect())
        .unwrap_or_default()
}

fn is_path(arg: &Arg) -> bool {
    let names = arg.get_value_names().unwrap_or_default();
    let is_named = |name: &str| matches!(name, "FILE" | "PATH" | "MODEL");
    arg.get_value_hint() == ValueHint::FilePath || names.iter().any(|name| is_named(name))
}

#[cfg(test)]
mod tests {
    use super::super::cli;
    use super::*;

    #[test]
    fn every_command_and_flag_is_there() {
        let all = outline(&cli::command("dopd"));
        let names = |value: &Value, key: &str, name: &str| -> Vec<String> {
            let items = value[key].as_array().cloned().unwrap_or_default();
            items
                .iter()
                .filter_map(|item| item[name].as_str().map(str::to_owned))
                .collect()
        };
        let commands = names(&all, "commands", "name");
        assert_eq!(commands, ["serve", "router", "config", "replay", "version"]);
        let serve = &all["commands"][0];
        let flags = names(serve, "flags", "long");
        for flag in [
            "port",
            "mock",
            "config",
            "kv-memory",
            "tensor-parallel-size",
        ] {
            assert!(flags.iter().any(|name| name == flag), "{flag} in {flags:?}");
        }
        let flag = |name: &str| {
            let flags = serve["flags"].as_array().unwrap();
            flags
                .iter()
                .find(|flag| flag["long"] == name)
                .unwrap()
                .clone()
        };
        assert_eq!(flag("log-format")["words"], json!(["text", "json"]));
        assert_eq!(flag("mock")["value"], Value::Null);
        assert_eq!(flag("port")["value"], "PORT");
        assert_eq!(flag("config")["short"], "c");
        assert_eq!(flag("config")["is_path"], true);
        assert_eq!(
            names(&all["commands"][2], "commands", "name"),
            ["show", "check", "schema"]
        );
    }
}
