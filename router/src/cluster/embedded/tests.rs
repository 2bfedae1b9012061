use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{GivenUp, Place, Replace, RestartPolicy, Supervisor, SupervisorConfig, WorkerSpec};
use crate::metrics::{Format, Metrics};

/// Far longer than any of these tests needs; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lines as `name: line`.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    /// Waits until `count` lines have come.
    async fn wait_for(&self, count: usize) -> Vec<String> {
        let poll = async {
            while self.0.lock().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, poll).await.expect("lines");
        self.all()
    }
}

fn config(script: &str, lines: &Lines) -> SupervisorConfig {
    let lines = lines.clone();
    SupervisorConfig {
        command: ["sh", "-c", script, "worker"].map(str::to_owned).to_vec(),
        variables: vec![("DOPD_JOIN_TOKEN".to_owned(), "secret".to_owned())],
        restart: RestartPolicy {
            first: Duration::from_millis(1),
            backoff_min: Duration::from_millis(1),
            ..RestartPolicy::default()
        },
        drain_timeout: PATIENCE,
        stop_timeout: PATIENCE,
        output: Arc::new(move |name, line| lines.0.lock().push(format!("{name}: {line}"))),
    }
}

fn spec(name: &str) -> WorkerSpec {
    WorkerSpec {
        name: name.to_owned(),
        args: Vec::new(),
    }
}

async fn given_up(supervisor: &mut Supervisor) -> GivenUp {
    timeout(PATIENCE, supervisor.next_given_up())
        .await
        .expect("a worker is given up")
}

#[tokio::test]
async fn crash_loop_ends_with_the_cause_named() {
    let lines = Lines::default();
    let metrics = Metrics::new("mock");
    let config = config("echo \"bad weights\" >&2; exit 7", &lines);
    let mut supervisor = Supervisor::start(&config, vec![spec("decode-0")], &metrics);
    let given_up = given_up(&mut supervisor).await;
    assert_eq!(
        given_up.to_string(),
        "worker decode-0 died 5 times in 600 s, last with exit code 7; it is not started again"
    );
    assert_eq!(given_up.last_lines, ["bad weights"]);
    assert!(!given_up.is_for_good);
    assert_eq!(supervisor.alive(), 0);
    assert_eq!(lines.all().len(), 5, "five lives");
    assert!(
        metrics
            .render(Format::Text)
            .contains("worker=\"decode-0\"} 4"),
        "four restarts"
    );
    supervisor.stop(&CancellationToken::new()).await;
}

#[tokio::test]
async fn exit_code_2_is_not_tried_again() {
    let lines = Lines::default();
    let config = config("echo oops >&2; exit 2", &lines);
    let mut supervisor = Supervisor::start(&config, vec![spec("a")], &Metrics::new("mock"));
    let given_up = given_up(&mut supervisor).await;
    assert_eq!(given_up.to_string(), "worker a cannot run (exit code 2)");
    assert!(given_up.is_for_good);
    assert_eq!(lines.all(), ["a: oops"]);
}

#[tokio::test]
async fn a_signal_is_named() {
    let lines = Lines::default();
    let config = config("kill -9 $$", &lines);
    let mut supervisor = Supervisor::start(&config, vec![spec("a")], &Metrics::new("mock"));
    assert!(
        given_up(&mut supervisor)
            .await
            .cause
            .contains("signal 9: killed from outside")
    );
}

#[tokio::test]
async fn unknown_command_is_given_up_at_once() {
    let mut config = config("", &Lines::default());
    config.command = vec!["/nowhere/worker".to_owned()];
    let mut supervisor = Supervisor::start(&config, vec![spec("a")], &Metrics::new("mock"));
    let given_up = given_up(&mut supervisor).await;
    assert!(
        given_up
            .cause
            .starts_with("cannot be started: /nowhere/worker: "),
        "{given_up}"
    );
}

#[tokio::test]
async fn workers_get_arguments_and_environment_and_end_at_sigterm() {
    let lines = Lines::default();
    let script = "trap 'echo term; exit 0' TERM; echo \"$2 $DOPD_JOIN_TOKEN $$\"; read x";
    let config = config(script, &lines);
    let specs = vec![spec("a"), spec("b")];
    let supervisor = Supervisor::start(&config, specs, &Metrics::new("mock"));
    let started = lines.wait_for(2).await;
    let pids: Vec<String> = started
        .iter()
        .map(|line| {
            let (rest, pid) = line.rsplit_once(' ').expect("pid");
            let name = &line[..1];
            assert_eq!(rest, format!("{name}: {name} secret"));
            pid.to_owned()
        })
        .collect();
    timeout(PATIENCE, supervisor.stop(&CancellationToken::new()))
        .await
        .expect("stop ends");
    for pid in pids {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "{pid} is left"
        );
    }
    let all = lines.all();
    assert!(
        all.contains(&"a: term".to_owned()) && all.contains(&"b: term".to_owned()),
        "{all:?}"
    );
}

#[tokio::test]
async fn a_worker_deaf_to_sigterm_is_killed_after_the_stop_time() {
    let lines = Lines::default();
    let mut config = config("trap '' TERM; echo up; read x; read y", &lines);
    config.stop_timeout = Duration::from_millis(50);
    let supervisor = Supervisor::start(&config, vec![spec("a")], &Metrics::new("mock"));
    lines.wait_for(1).await;
    timeout(PATIENCE, supervisor.stop(&CancellationToken::new()))
        .await
        .expect("stop ends");
}

#[tokio::test]
async fn a_second_signal_kills_at_once() {
    let lines = Lines::default();
    let config = config("trap '' TERM; echo up; read x; read y", &lines);
    let supervisor = Supervisor::start(&config, vec![spec("a")], &Metrics::new("mock"));
    lines.wait_for(1).await;
    let now = CancellationToken::new();
    now.cancel();
    timeout(PATIENCE, supervisor.stop(&now))
        .await
        .expect("stop ends before the stop time");
}

#[tokio::test]
async fn stdin_ends_with_the_supervisor() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ended");
    let lines = Lines::default();
    // The shell that reads is a grandchild, so killing the worker itself does not end it: only EOF
    // does.
    let script = format!("(echo up; cat; echo > {}) <&0 & wait", file.display());
    let supervisor = Supervisor::start(
        &config(&script, &lines),
        vec![spec("a")],
        &Metrics::new("mock"),
    );
    lines.wait_for(1).await;
    drop(supervisor);
    let ended = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, ended).await.expect("stdin closed");
}

#[tokio::test]
async fn long_lines_are_cut_and_odd_bytes_replaced() {
    let lines = Lines::default();
    let script = "head -c 20000 /dev/zero | tr '\\0' x; echo; printf '\\377\\r\\n'; exit 2";
    let mut supervisor = Supervisor::start(
        &config(script, &lines),
        vec![spec("a")],
        &Metrics::new("mock"),
    );
    given_up(&mut supervisor).await;
    let lengths: Vec<usize> = lines
        .all()
        .iter()
        .map(|line| line.len() - "a: ".len())
        .collect();
    assert_eq!(lengths, [8192, 8192, 3616, 3]);
}

/// Says its name and waits to be told to end.
const PATIENT: &str = "trap 'exit 0' TERM; echo $2; read x";

fn one(script: &str, lines: &Lines, metrics: &Metrics) -> (Supervisor, Place) {
    let supervisor = Supervisor::start(&config(script, lines), vec![spec("a")], metrics);
    let place = supervisor.places().remove(0);
    (supervisor, place)
}

#[tokio::test]
async fn a_worker_is_replaced_without_having_died() {
    let (lines, metrics) = (Lines::default(), Metrics::new("mock"));
    let (supervisor, place) = one(PATIENT, &lines, &metrics);
    lines.wait_for(1).await;
    let old = place.now().unwrap();
    let new = place.replace(Replace::OldFirst).await.unwrap();
    assert_eq!(lines.wait_for(2).await, ["a: a", "a: a"]);
    assert_ne!(old.pid, new.pid);
    assert_eq!(place.now(), Some(new));
    assert!(!metrics.render(Format::Text).contains("worker=\"a\""));
    supervisor.stop(&CancellationToken::new()).await;
}

#[tokio::test]
async fn a_successor_started_first_takes_over_or_goes() {
    let (lines, metrics) = (Lines::default(), Metrics::new("mock"));
    let (supervisor, place) = one(PATIENT, &lines, &metrics);
    lines.wait_for(1).await;
    let mut stays = place.now().unwrap();
    for (count, is_attached, name) in [(2, true, "a.next"), (3, false, "a"), (4, true, "a")] {
        let new = place.replace(Replace::NewFirst).await.unwrap();
        let all = lines.wait_for(count).await;
        assert_eq!(all[count - 1], format!("{name}: {name}"));
        assert!(place.holds(stays.pid) && place.holds(new.pid));
        place.settle(is_attached).await;
        let goes = if is_attached {
            std::mem::replace(&mut stays, new).pid
        } else {
            new.pid
        };
        assert_eq!(place.now().as_ref(), Some(&stays));
        assert!(!std::path::Path::new(&format!("/proc/{goes}")).exists());
    }
    supervisor.stop(&CancellationToken::new()).await;
}

#[tokio::test]
async fn a_successor_that_fails_leaves_the_old_one() {
    let lines = Lines::default();
    let script = format!("test $2 = a || exit 3; {PATIENT}");
    let (supervisor, place) = one(&script, &lines, &Metrics::new("mock"));
    lines.wait_for(1).await;
    let old = place.now();
    let new = place.replace(Replace::NewFirst).await.unwrap();
    let gone = async {
        while place.holds(new.pid) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("its end is seen");
    place.settle(true).await;
    assert_eq!(place.now(), old);
    timeout(PATIENCE, supervisor.stop(&CancellationToken::new()))
        .await
        .expect("stop ends");
}

#[tokio::test]
async fn a_worker_that_hangs_is_killed_with_the_cause_named() {
    let lines = Lines::default();
    let script = "trap '' TERM; echo up; read x; read y";
    let (mut supervisor, place) = one(script, &lines, &Metrics::new("mock"));
    for life in 1..=5 {
        lines.wait_for(life).await;
        let pid = place.now().unwrap().pid;
        place.kill(pid + 1, "somebody else".to_owned()).await;
        place.kill(pid, "no progress for 30 s".to_owned()).await;
    }
    let given_up = given_up(&mut supervisor).await;
    assert!(given_up.cause.contains("last with no progress for 30 s"));
}

#[tokio::test]
async fn a_worker_that_was_given_up_can_be_replaced() {
    let lines = Lines::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mended");
    let script = format!("test -e {} || exit 2; {PATIENT}", file.display());
    let (mut supervisor, place) = one(&script, &lines, &Metrics::new("mock"));
    given_up(&mut supervisor).await;
    assert_eq!((supervisor.alive(), place.is_given_up()), (0, true));
    std::fs::write(&file, "").unwrap();
    place.replace(Replace::OldFirst).await.unwrap();
    lines.wait_for(1).await;
    assert_eq!((supervisor.alive(), place.is_given_up()), (1, false));
    supervisor.stop(&CancellationToken::new()).await;
}

#[tokio::test]
async fn the_stop_does_not_wait_for_a_drain() {
    let lines = Lines::default();
    let script = "trap 'test $n && exit 0; n=1; echo told' TERM; echo up; \
                  while :; do sleep 0.02; done";
    let (supervisor, place) = one(script, &lines, &Metrics::new("mock"));
    lines.wait_for(1).await;
    let replaced = tokio::spawn(async move { place.replace(Replace::OldFirst).await });
    lines.wait_for(2).await;
    timeout(PATIENCE / 2, supervisor.stop(&CancellationToken::new()))
        .await
        .expect("long before the drain time");
    assert!(replaced.await.unwrap().is_err());
}
