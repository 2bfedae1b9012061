//! Flags that users of vLLM type by habit and that are no settings here. What cannot be done is
//! refused in words that name what to do instead.

use clap::{Arg, ArgAction, Command};

const HEADING: &str = "Known from vLLM";
const TENSOR_PARALLEL: &str = "--tensor-parallel-size";

/// vLLM's short flag of two letters, which clap does not have, in its long form.
pub(super) fn translate(word: &str) -> String {
    match word.strip_prefix("-tp") {
        Some("") => TENSOR_PARALLEL.to_owned(),
        Some(rest) if rest.starts_with('=') => format!("{TENSOR_PARALLEL}{rest}"),
        _ => word.to_owned(),
    }
}

/// Adds the flags.
pub(super) fn add(command: Command) -> Command {
    command.arg(
        Arg::new("tensor-parallel-size")
            .long("tensor-parallel-size")
            .value_name("N")
            .help("Devices per worker, also -tp; 1 only: a worker is one device")
            .help_heading(HEADING)
            .action(ArgAction::Set)
            .value_parser(tensor_parallel),
    )
}

fn tensor_parallel(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Ok(1),
        Ok(devices) => Err(format!(
            "a worker runs on one device and cannot share a model with {devices}; for more \
             throughput use more workers: --prefill N --decode N"
        )),
        Err(_) => Err("not a whole number; only 1 is possible".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_letters_after_one_dash_become_the_long_flag() {
        let words = ["-tp", "-tp=2", "-t", "--tp", "-tpx", "x-tp"].map(translate);
        let long = ["--tensor-parallel-size", "--tensor-parallel-size=2"];
        assert_eq!(words[..2], long);
        assert_eq!(words[2..], ["-t", "--tp", "-tpx", "x-tp"]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_what_can() {
        assert_eq!(tensor_parallel("1"), Ok(1));
        assert!(tensor_parallel("2").is_err_and(|text| text.contains("--decode")));
        assert!(tensor_parallel("x").is_err());
    }
}
