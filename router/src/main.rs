//! The binary `dopd-router`: the same `main` as `dopd serve`, with an allocator of its own.

use std::process::ExitCode;

use dopd_router::Launch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let launch = Launch {
        argv: std::env::args_os()
            .skip(1)
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        worker_command: None,
        known_models: Vec::new(),
        worker_table: None,
        gpus: None,
        program: "dopd-router",
    };
    ExitCode::from(u8::try_from(dopd_router::main(&launch)).unwrap_or(u8::MAX))
}
