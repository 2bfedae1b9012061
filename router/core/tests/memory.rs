//! What a waiting request costs the brain: bytes, counted by the allocator, and what a decision
//! takes: CPU time of this thread, and instructions, counted by callgrind where there is valgrind.
#![expect(unsafe_code, reason = "an allocator that counts has no other way")]

#[path = "../examples/decision/desk.rs"]
#[expect(dead_code, reason = "the bench uses the rest")]
mod desk;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    env, fs,
    process::Command,
};

use desk::{Desk, thread_ns};

thread_local! {
    /// Bytes that this thread allocated and nobody freed here.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does all of it; this one only adds and subtracts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get().wrapping_add(layout.size()));
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(layout.size()));
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of a request that waits, everything that the brain keeps for it.
const BYTES_MAX: usize = 1_024;

/// One waiting request's bytes at so many, on top of what an empty brain takes.
fn bytes_each(waiting: usize, is_heavy: bool) -> usize {
    /// Past what the ring of decisions keeps, whose size is fixed.
    const BEFORE: usize = 9_000;
    let mut desk = Desk::new(8, is_heavy);
    desk.fill(BEFORE);
    let before = BYTES.get();
    desk.fill(BEFORE + waiting);
    (BYTES.get() - before) / waiting
}

#[test]
fn waiting_request_costs_a_kibibyte_at_most() {
    for waiting in [5_000, 10_000] {
        let plain = bytes_each(waiting, false);
        let heavy = bytes_each(waiting, true);
        println!("{waiting} wait: {plain} bytes each, {heavy} with the longest prefix");
        assert!(heavy <= BYTES_MAX, "{heavy} bytes for each of {waiting}");
        assert!(
            plain < heavy,
            "{plain} and {heavy} bytes: nobody has a prefix"
        );
    }
}

/// Of 100 arrivals in a debug build: what they take today, and 15 % more.
const ARRIVALS_MAX: u64 = 9_400_000;

#[test]
fn arrival_grows_by_log_n() {
    let arrivals = |waiting| {
        let mut desk = Desk::new(8, false);
        desk.fill(waiting);
        cpu_ns(|| desk.counted_arrivals(100))
    };
    // log2 grows from 6 to 15; anything that looks at all that wait grows 512-fold.
    let [few, many] = [64, 32_768].map(arrivals);
    println!("100 arrivals: {few} ns with 64 waiting, {many} with 32,768");
    assert!(
        many < few * 8,
        "{few} ns with 64 waiting, {many} with 32,768"
    );
    let counted = [64, 1_024].map(|waiting| instructions("arrivals_for_callgrind", waiting));
    let [Some(few), Some(many)] = counted else {
        println!("valgrind is not installed: instructions are not counted");
        return;
    };
    println!("instructions of 100 arrivals: {few} with 64 waiting, {many} with 1,024");
    assert!(
        many < few * 3 / 2,
        "{few} instructions with 64 waiting, {many} with 1,024"
    );
    assert!(few.max(many) < ARRIVALS_MAX, "{few}, {many} instructions");
}

/// A fleet of n workers attaches one after the other: that is not to cost n times n.
#[test]
fn join_grows_by_log_n() {
    let joins = |workers| {
        let mut desk = Desk::new(workers, false);
        cpu_ns(|| desk.counted_joins(32))
    };
    // log2 grows from 5 to 12; anything that looks at all workers grows 128-fold.
    let [few, many] = [32, 4_096].map(joins);
    println!("32 joins: {few} ns with 32 workers, {many} with 4,096");
    assert!(
        many < few * 6,
        "{few} ns with 32 workers, {many} with 4,096"
    );
    let counted = [32, 512].map(|workers| instructions("joins_for_callgrind", workers));
    let [Some(few), Some(many)] = counted else {
        println!("valgrind is not installed: instructions are not counted");
        return;
    };
    println!("instructions of 32 joins: {few} with 32 workers, {many} with 512");
    assert!(
        many < few * 5 / 2,
        "{few} instructions with 32 workers, {many} with 512"
    );
}

/// CPU time of this thread for one of these, the least of several: others disturb, nobody helps.
fn cpu_ns(mut act: impl FnMut()) -> u64 {
    let once = |_| {
        let begun = thread_ns();
        act();
        thread_ns() - begun
    };
    (0..10).map(once).min().unwrap_or_default()
}

/// How many there are before something is counted, if this process was started for that.
fn before_it_counts() -> Option<usize> {
    env::var("DOPD_DECISION_BEFORE").ok()?.parse().ok()
}

#[test]
fn arrivals_for_callgrind() {
    if let Some(waiting) = before_it_counts() {
        let mut desk = Desk::new(8, false);
        desk.fill(waiting);
        desk.counted_arrivals(100);
    }
}

#[test]
fn joins_for_callgrind() {
    if let Some(workers) = before_it_counts() {
        Desk::new(workers as u64, false).counted_joins(32);
    }
}

/// Instructions of what one of these counts under callgrind; `None` without it.
fn instructions(what: &str, before: usize) -> Option<u64> {
    let out = env::temp_dir().join(format!("dopd-{what}-{}-{before}", std::process::id()));
    let run = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg("--toggle-collect=*Desk*counted*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().ok()?)
        .args(["--exact", what, "--test-threads=1"])
        .env("DOPD_DECISION_BEFORE", before.to_string())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    let _ = fs::remove_file(&out);
    assert!(run.status.success(), "{text}");
    let line = text.lines().find(|line| line.contains("Collected :"));
    let count: Option<u64> = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    assert!(count > Some(0), "nothing was counted: {text}");
    count
}
