//! `dopd-mock`: mock workers in one process. Exit codes: 0, 1 failed, 2 usage or refused for good.

use std::{
    io::{IsTerminal, Read},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use dopd_mock::{
    cli::Cli,
    worker::{self, Wish, WorkerConfig, WorkerError},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

/// Usage, configuration, or refused for good: starting again would not help.
const EXIT_FINAL: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match cli.log_filter() {
        Ok(filter) => filter,
        Err(why) => return usage(&why),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let configs = match cli.worker_configs() {
        Ok(configs) => configs,
        Err(why) => return usage(&why),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(serve(&cli, configs))
}

/// Says what is wrong with the flags, as clap does.
fn usage(why: &str) -> ExitCode {
    // If stderr is closed nobody can be told.
    let _ = Cli::command()
        .error(clap::error::ErrorKind::ValueValidation, why)
        .print();
    ExitCode::from(EXIT_FINAL)
}

/// Runs the workers until all have ended or the process is told to.
async fn serve(cli: &Cli, configs: Vec<WorkerConfig>) -> ExitCode {
    let (wish, wishes) = watch::channel(Wish::Run);
    let signals = signal(SignalKind::terminate())
        .and_then(|term| Ok((term, signal(SignalKind::interrupt())?)))
        .and_then(|signals| end_with_stdin(cli, &wish).map(|()| signals));
    let (mut term, mut interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "no signal handlers");
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(
        workers = configs.len(),
        join = cli.join,
        "mock workers start"
    );
    let mut workers = JoinSet::new();
    for config in configs {
        workers.spawn(worker::run(config, wishes.clone()));
    }
    let mut code = ExitCode::SUCCESS;
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                None => return code,
                Some(Ok(Ok(()))) => {}
                Some(ended) => {
                    code = failure(ended);
                    // One that cannot go on ends them all: a smaller fleet than asked for would
                    // spoil what is measured.
                    wish.send_replace(Wish::Stop);
                }
            },
            // The first drains, the second ends.
            _ = term.recv() => wish.send_modify(|wish| {
                *wish = if *wish == Wish::Run { Wish::Drain } else { Wish::Stop };
            }),
            // A single worker belongs to a router that the same key press reaches.
            _ = interrupt.recv() => if cli.workers.is_some() {
                wish.send_replace(Wish::Stop);
            },
        }
    }
}

fn failure(ended: Result<Result<(), WorkerError>, tokio::task::JoinError>) -> ExitCode {
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!("{error}");
            match error {
                WorkerError::Refused { .. } => ExitCode::from(EXIT_FINAL),
                WorkerError::Start { .. } => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            tracing::error!(%error, "a worker died");
            ExitCode::FAILURE
        }
    }
}

/// Nothing outlives the process that holds the other end of stdin, if asked so.
fn end_with_stdin(cli: &Cli, wish: &watch::Sender<Wish>) -> std::io::Result<()> {
    if !cli.exit_on_stdin_eof {
        return Ok(());
    }
    let wish = wish.clone();
    let reader = move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin().lock();
        // Whatever ends the reading ends the process: it cannot know its parent any more.
        while stdin.read(&mut buffer).is_ok_and(|count| count > 0) {}
        wish.send_replace(Wish::Stop);
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(reader)?;
    Ok(())
}
