use std::{fs, path::PathBuf};

use super::{
    Config, ConfigError, FIELDS, Field, Origin, Scope, Settings, Sources, describe, load, suggest,
};

/// A folder with a settings file, and sources that name it.
struct Case {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Case {
    fn new(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dopd.toml");
        fs::write(&path, toml).unwrap();
        let sources = Sources {
            file: Some(path),
            ..Sources::default()
        };
        Self { folder, sources }
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources
            .variables
            .push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, name: &str, values: &[&str]) -> Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.sources.flags.push((flagged(name), values));
        self
    }

    fn load(&self) -> Result<Settings, ConfigError> {
        load(&self.sources, Scope::Serve)
    }

    fn config(&self) -> Config {
        self.load().unwrap().config
    }

    /// The refusal's text, without the folder's name.
    fn refusal(&self) -> String {
        let folder = self.folder.path().display().to_string();
        self.load()
            .unwrap_err()
            .to_string()
            .replace(&format!("{folder}/"), "")
    }
}

fn flagged(name: &str) -> &'static Field {
    FIELDS
        .iter()
        .find(|field| field.flag.is_some_and(|(flag, _)| flag == name))
        .unwrap()
}

#[test]
fn later_layers_win_and_origins_are_kept() {
    let case = Case::new("[http]\nport = 1\nthreads = 2\n\n[grpc]\nport = 3\n")
        .variable("DOPD_GRPC__PORT", "4")
        .variable("DOPD_ADMIN__PORT", "5")
        .flag("metrics-port", &["6"]);
    let settings = case.load().unwrap();
    let config = &settings.config;
    assert_eq!((config.http.port, config.http.threads), (1, 2));
    assert_eq!(
        (config.grpc.port, config.admin.port, config.workers.port),
        (4, 6, 50052)
    );
    let path = case.sources.file.clone().unwrap();
    assert_eq!(
        *settings.origin("http.threads"),
        Origin::File {
            path,
            line: 3,
            column: 1
        }
    );
    assert_eq!(
        *settings.origin("grpc.port"),
        Origin::Variable("DOPD_GRPC__PORT".to_owned())
    );
    assert_eq!(*settings.origin("admin.port"), Origin::Flag("metrics-port"));
    assert_eq!(*settings.origin("workers.port"), Origin::Default);
}

#[test]
fn every_field_of_the_records_is_declared_once() {
    let tables = serde_json::to_value(Config::default()).unwrap();
    let mut paths: Vec<String> = Vec::new();
    for (table, fields) in tables.as_object().unwrap() {
        // Tables of keys have declarations of their own.
        let Some(fields) = fields.as_object() else {
            assert_eq!(table, "key");
            continue;
        };
        paths.extend(fields.keys().map(|name| format!("{table}.{name}")));
    }
    let declared: Vec<&str> = FIELDS.iter().map(|field| field.path).collect();
    assert_eq!(paths, declared);
    let mut flags: Vec<&str> = FIELDS
        .iter()
        .filter_map(|field| field.flag)
        .map(|f| f.0)
        .collect();
    let count = flags.len();
    flags.sort_unstable();
    flags.dedup();
    assert_eq!(flags.len(), count, "a flag is declared twice");
}

#[test]
fn every_default_is_within_its_own_limits() {
    let tables = serde_json::to_value(Config::default()).unwrap();
    for field in FIELDS {
        let value = &tables[field.table][field.name];
        if let (Some(range), Some(value)) = (&field.within, value.as_u64()) {
            assert!(range.contains(&value), "{} is {value}", field.path);
        }
        if let (Some(words), Some(word)) = (field.one_of, value.as_str()) {
            assert!(words.contains(&word), "{} is {word}", field.path);
        }
    }
}

#[test]
fn text_becomes_what_the_setting_is() {
    let config = Case::new("")
        .variable("DOPD_MODEL__SERVED_NAME", "123")
        .variable("DOPD_CLUSTER__MOCK", "true")
        .variable("DOPD_CLUSTER__WORKER_ARGS", r#"["--threads=2", "--x"]"#)
        .variable("DOPD_SLO__TTFT_MS", "250")
        .variable("DOPD_MODEL__PATH", "/models/7")
        .variable("DOPD_HTTP__HOST", "localhost")
        .config();
    assert_eq!(
        config.model.served_name.as_deref(),
        Some("123"),
        "a name made of digits"
    );
    assert!(config.cluster.mock);
    assert_eq!(config.cluster.worker_args, ["--threads=2", "--x"]);
    assert_eq!(config.slo.ttft_ms, Some(250));
    assert!(config.http.host.is_loopback());
    assert_eq!(config.model.path, Some(PathBuf::from("/models/7")));
}

#[test]
fn repeated_flag_is_a_list_and_one_is_a_list_too() {
    let two = Case::new("").flag("worker-arg", &["--a=1", "--b"]).config();
    assert_eq!(two.cluster.worker_args, ["--a=1", "--b"]);
    let one = Case::new("").flag("worker-arg", &["--a=1"]).config();
    assert_eq!(one.cluster.worker_args, ["--a=1"]);
}

#[test]
fn refusals_name_place_value_and_limit() {
    let texts = [
        Case::new("[http]\nprot = 1\n").refusal(),
        Case::new("[htp]\nport = 1\n").refusal(),
        Case::new("[htp]\n").refusal(),
        Case::new("port = 1\n").refusal(),
        Case::new("[grpc]\nlease_ms = 1\n").refusal(),
        Case::new("[http]\nzebra = 1\n").refusal(),
        Case::new("[http]\nport = 70000\n").refusal(),
        Case::new("[http]\n\nport = \"x\"\n").refusal(),
        Case::new("[http]\nport = \n").refusal(),
        Case::new("[log]\nformat = \"yaml\"\n").refusal(),
        Case::new("").variable("DOPD_HTTP__PROT", "1").refusal(),
        Case::new("").variable("DOPD_HTTP__PORT", "many").refusal(),
        Case::new("").flag("port", &["99999"]).refusal(),
        Case::new("").flag("port", &["-1"]).refusal(),
        Case::new("").flag("slo-ttft-ms", &["2.5"]).refusal(),
        Case::new("").flag("host", &["here"]).refusal(),
        Case::new("[worker]\nlist = [1]\n").refusal(),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn a_check_finds_everything_with_its_place() {
    let toml =
        "[http]\nport = 1\n  prot = 3\n[worker]\n\"ü\" = 1\n[log]\nformat = \"yaml\"\n[gprc]\n";
    let case = Case::new(toml);
    let (problems, worker) = super::check(&case.sources.file.clone().unwrap());
    let places: Vec<_> = problems
        .iter()
        .map(|problem| match problem.origin() {
            Some(Origin::File { line, column, .. }) => (*line, *column, problem.what()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        (3, 3, "unknown setting \"http.prot\", did you mean \"port\""),
        (7, 1, "log.format is \"yaml\", allowed are text, json"),
        (8, 2, "unknown table \"gprc\", did you mean \"grpc\""),
    ];
    assert_eq!(places, expected.map(|(l, c, what)| (l, c, what.to_owned())));
    assert_eq!(worker[0].key, "ü");
    assert_eq!(super::check(&case.folder.path().join("none")).0.len(), 1);
}

#[test]
fn columns_count_characters() {
    let text = "a = 1\n[\"ü\"]\nb = {";
    let Origin::File { line, column, .. } = super::at(std::path::Path::new("f"), text, 12) else {
        panic!()
    };
    assert_eq!((line, column), (2, 6));
}

#[test]
fn every_type_of_a_setting_has_a_place_in_the_schema() {
    for field in FIELDS {
        let known = describe::json_type(field.rust_type).is_some();
        assert!(
            known,
            "{}: {} is new to describe::json_type",
            field.path, field.rust_type
        );
    }
}

#[test]
fn a_secret_is_masked_and_an_absent_one_is_not() {
    let field = Field {
        is_secret: true,
        ..flagged("port").clone()
    };
    assert_eq!(describe::masked(&field, &"sesame".into()), describe::MASK);
    assert_eq!(
        describe::masked(&field, &serde_json::Value::Null),
        serde_json::Value::Null
    );
    assert_eq!(describe::masked(flagged("port"), &80.into()), 80);
}

#[test]
fn choices_fit_the_byte_that_numbers_them() {
    let refusal = Case::new("[limits]\nchoices_max = 256\n").refusal();
    assert!(
        refusal.contains("256") && refusal.contains("255"),
        "{refusal}"
    );
}

#[test]
fn contradictions_are_refused() {
    let key = format!("[[key]]\nname = \"a\"\nsha256 = \"{}\"\n", "0".repeat(64));
    let texts = [
        Case::new("[workers]\nlease_ms = 800\n").refusal(),
        Case::new("[limits]\nrequest_timeout_ms = 1000\n").refusal(),
        Case::new("slo.tpot_ms = 10\nlimits.slo_tpot_ms_min = 11\n").refusal(),
        Case::new(&format!(
            "limits.slo_ttft_ms_min = 20\n{key}slo_ttft_ms = 19\n"
        ))
        .refusal(),
        Case::new(&format!("{key}slo_tpot_ms = 9\nslo_tpot_ms_min = 10\n")).refusal(),
        Case::new("[workers]\nhost = \"0.0.0.0\"\n").refusal(),
        Case::new("").flag("metrics-host", &["::"]).refusal(),
        Case::new("").flag("port", &["9464"]).refusal(),
        Case::new("")
            .flag("decode", &["60"])
            .flag("prefill", &["5"])
            .refusal(),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn the_same_free_port_twice_is_no_conflict() {
    let case = Case::new("").flag("port", &["0"]).flag("grpc-port", &["0"]);
    assert!(case.load().is_ok());
}

#[test]
fn mixed_alone_means_only_mixed() {
    let cluster = Case::new("").flag("mixed", &["2"]).config().cluster;
    assert_eq!((cluster.prefill, cluster.decode, cluster.mixed), (0, 0, 2));
    let cluster = Case::new("")
        .flag("mixed", &["2"])
        .flag("prefill", &["3"])
        .config()
        .cluster;
    assert_eq!((cluster.prefill, cluster.decode, cluster.mixed), (3, 1, 2));
}

#[test]
fn a_router_does_not_count_local_workers() {
    let case = Case::new("").flag("decode", &["64"]);
    assert!(load(&case.sources, Scope::Serve).is_err());
    assert!(load(&case.sources, Scope::Router).is_ok());
}

#[test]
fn table_worker_becomes_flags_for_workers() {
    let toml = "[worker]\nmax_batch_tokens = 8\nthreads = \"two\"\nfast = true\nslow = false\n";
    let case = Case::new(toml).variable("DOPD_WORKER__ANYTHING", "1");
    let settings = case.load().unwrap();
    assert_eq!(
        settings.worker_args,
        ["--max-batch-tokens=8", "--threads=two", "--fast"]
    );
}

#[test]
fn missing_file_is_named() {
    let sources = Sources {
        file: Some(PathBuf::from("/nowhere/dopd.toml")),
        ..Sources::default()
    };
    let refusal = load(&sources, Scope::Serve).unwrap_err().to_string();
    assert!(
        refusal.starts_with("cannot read settings from /nowhere/dopd.toml: "),
        "{refusal}"
    );
}

#[test]
fn distance_counts_edits_and_swaps() {
    for (a, b, edits) in [
        ("", "ab", 2),
        ("prot", "port", 1),
        ("http", "htp", 1),
        ("abc", "axc", 1),
    ] {
        assert_eq!(suggest::distance(a, b), edits, "{a} {b}");
        assert_eq!(suggest::distance(b, a), edits, "{b} {a}");
    }
}
