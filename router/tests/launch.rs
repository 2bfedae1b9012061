//! The binary as a process: how it starts, refuses, announces and ends.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests stop the test"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Far longer than any start or end here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

const FREE_PORTS: [&str; 8] = [
    "--port",
    "0",
    "--grpc-port",
    "0",
    "--worker-port",
    "0",
    "--metrics-port",
    "0",
];

/// A router process in a folder of its own, which is also its temporary folder.
struct Run {
    child: Child,
    folder: TempDir,
}

impl Run {
    fn start(words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = |name| fs::File::create(folder.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_dopd-router"))
            .args(words)
            .args([
                "--ready-file".as_ref(),
                folder.path().join("ready").as_os_str(),
            ])
            .env("TMPDIR", folder.path())
            .env_remove("DOPD_CONFIG")
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits until `done` says so; shows standard error if that takes too long.
    fn wait_for<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("no {what}; standard error:\n{}", self.text("stderr"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The ready file.
    fn ready(&mut self) -> serde_json::Value {
        let file = self.folder.path().join("ready");
        self.wait_for("ready file", |_| {
            Some(serde_json::from_str(&fs::read_to_string(&file).ok()?).unwrap())
        })
    }

    /// Its exit code.
    fn code(&mut self) -> Option<i32> {
        self.wait_for("end", |run| run.child.try_wait().unwrap())
            .code()
    }

    /// What is left in its folder besides what this test put there.
    fn leftovers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| !path.ends_with("stdout") && !path.ends_with("stderr"))
            .collect()
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn with_ports<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [words, &FREE_PORTS].concat()
}

/// Runs to the end.
fn output(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dopd-router"))
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn router_announces_its_addresses_and_leaves_nothing() {
    let mut run = Run::start(&with_ports(&["router", "--mock"]));
    let ready = run.ready();
    assert_eq!(ready["pid"], run.child.id());
    assert_eq!(ready["model"], "mock");
    let token = Path::new(ready["join_token_file"].as_str().unwrap()).to_owned();
    assert_eq!(fs::read_to_string(&token).unwrap().trim().len(), 64);
    for listener in ["http", "admin"] {
        let address = ready[listener].as_str().unwrap();
        assert!(
            get(address, "/health").starts_with("HTTP/1.1 200"),
            "{listener}"
        );
        let no_worker = get(address, "/ready");
        assert!(
            no_worker.starts_with("HTTP/1.1 503"),
            "{listener}: {no_worker}"
        );
        let status = get(address, "/status");
        assert!(status.contains(r#""workers":[]"#), "{listener}: {status}");
        let metrics = get(address, "/metrics");
        assert!(
            metrics.contains("dopd_workers{model=\"mock\""),
            "{listener}: {metrics}"
        );
    }
    let banner = run.text("stdout");
    let address = ready["workers"].as_str().unwrap();
    assert!(banner.contains(&format!("join at {address}")), "{banner}");
    run.signal(Signal::TERM);
    assert_eq!(run.code(), Some(0), "{}", run.text("stderr"));
    assert_eq!(run.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_port_in_use_names_flag_and_fix() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = output(&["router", "--mock", "--port", &port]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!(
        "cannot listen on 127.0.0.1:{port} for the OpenAI front"
    )));
    assert!(text.contains("--port 0 for a free port"), "{text}");
}

#[test]
fn a_worker_that_cannot_run_fails_the_start_with_its_last_words() {
    let words = [
        "serve",
        "--mock",
        "--worker-command",
        "sh",
        "--worker-command",
        "-c",
    ];
    let script = ["--worker-command", "echo no such device >&2; exit 2"];
    let mut run = Run::start(&with_ports(&[words.as_slice(), &script].concat()));
    assert_eq!(run.code(), Some(2));
    let text = run.text("stderr");
    assert!(text.contains("cannot run (exit code 2)"), "{text}");
    assert!(text.contains("-0] no such device"), "{text}");
    assert_eq!(run.text("stdout"), "", "no banner");
    assert_eq!(run.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn a_start_without_its_workers_ends_at_the_time_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("dopd.toml");
    let toml = r#"
        [cluster]
        start_timeout_ms = 1000
        worker_command = ["sh", "-c", "cat"]
    "#;
    fs::write(&config, toml).unwrap();
    let words = [
        "serve",
        "--mock",
        "--mixed",
        "1",
        "-c",
        config.to_str().unwrap(),
    ];
    let mut run = Run::start(&with_ports(&words));
    assert_eq!(run.code(), Some(1));
    let text = run.text("stderr");
    assert!(
        text.contains("mixed-0 did not attach within 1 s (cluster.start_timeout_ms)"),
        "{text}"
    );
}

#[test]
fn a_signal_during_the_start_ends_it() {
    let words = [
        "serve",
        "--mock",
        "--mixed",
        "1",
        "--worker-command",
        "sh",
        "--worker-command",
    ];
    let script = ["-c", "--worker-command", "echo started >&2; cat"];
    let mut run = Run::start(&with_ports(&[words.as_slice(), &script].concat()));
    run.wait_for("worker", |run| {
        run.text("stderr")
            .contains("[mixed-0] started")
            .then_some(())
    });
    run.signal(Signal::INT);
    assert_eq!(run.code(), Some(130), "{}", run.text("stderr"));
    assert_eq!(run.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn wrong_settings_end_with_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("dopd.toml");
    fs::write(&config, "\n[http]\nprot = 1\n").unwrap();
    let output = output(&["router", "--mock", "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.ends_with("dopd.toml:3: unknown setting \"http.prot\", did you mean \"port\"\n"));
}

#[test]
fn replay_of_what_is_no_log_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    fs::write(&file, "{}\n").unwrap();
    let output = output(&["replay", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("not an event log")
    );
}
