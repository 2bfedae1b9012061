//! Lines to standard output and error that never hold up who writes them.
//!
//! A pipe whose reader stands still would otherwise stop every thread that logs. While the router
//! runs, one thread per stream writes, behind a bounded queue: what finds it full is dropped,
//! counted, and told of once lines flow again. Before and without [`start`] lines are written
//! directly.

use std::{
    io::{self, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// Lines that may wait for a stream.
const LINES_MAX: usize = 2_048;
/// Longest wait for what is queued when the program ends.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

static OUT: OnceLock<Option<Lines>> = OnceLock::new();
static ERR: OnceLock<Option<Lines>> = OnceLock::new();

enum Message {
    Line(Box<[u8]>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The way to one stream.
#[derive(Debug)]
struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// `None`: the system has no thread left; lines are written directly then.
    fn over(name: &str, stream: impl Write + Send + 'static) -> Option<Self> {
        let (queue, lines) = sync_channel(LINES_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let told = Arc::clone(&dropped);
        let thread = thread::Builder::new().name(format!("dopd-{name}"));
        let started = thread.spawn(move || write(stream, &lines, &told));
        started.ok().map(|_| Self { queue, dropped })
    }

    fn put(&self, line: &[u8]) {
        // Full, or its thread has panicked.
        if self.queue.try_send(Message::Line(line.into())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was put is written, for at most `limit`.
    fn flush(&self, limit: Duration) {
        let (told, done) = sync_channel(1);
        if self.queue.try_send(Message::Flush(told)).is_ok() {
            // Late, or never: then the lines are lost.
            let _ = done.recv_timeout(limit);
        }
    }
}

/// Writes until nobody sends any more. A stream whose reader has gone takes every line and shows
/// none: that is no reason to stop serving.
fn write(mut stream: impl Write, lines: &Receiver<Message>, dropped: &AtomicU64) {
    let mut told = 0;
    while let Ok(message) = lines.recv() {
        match message {
            Message::Line(line) => drop(stream.write_all(&line).and_then(|()| stream.flush())),
            Message::Flush(done) => drop(done.try_send(())),
        }
        let now = dropped.load(Ordering::Relaxed);
        if now > told {
            let count = now - told;
            drop(writeln!(
                stream,
                "{count} lines were dropped: nobody read this stream"
            ));
            told = now;
        }
    }
}

/// From now on lines go through threads.
pub fn start() {
    OUT.get_or_init(|| Lines::over("stdout", io::stdout()));
    ERR.get_or_init(|| Lines::over("stderr", io::stderr()));
}

/// Bytes for standard output, whole lines.
pub fn out(bytes: &[u8]) {
    match OUT.get() {
        Some(Some(lines)) => lines.put(bytes),
        // A reader that left (`dopd serve | head`) is no failure.
        _ => drop(io::stdout().lock().write_all(bytes)),
    }
}

/// Bytes for standard error, whole lines.
pub fn err(bytes: &[u8]) {
    match ERR.get() {
        Some(Some(lines)) => lines.put(bytes),
        _ => drop(io::stderr().lock().write_all(bytes)),
    }
}

/// Waits until everything is written, for a bounded time.
pub fn flush() {
    for lines in [&OUT, &ERR]
        .into_iter()
        .filter_map(|lines| lines.get()?.as_ref())
    {
        lines.flush(FLUSH_LIMIT);
    }
}

/// Lines that nobody read.
pub fn dropped() -> u64 {
    let both = [&OUT, &ERR]
        .into_iter()
        .filter_map(|lines| lines.get()?.as_ref());
    both.map(|lines| lines.dropped.load(Ordering::Relaxed))
        .sum()
}

/// Standard error for the log: one call of `write` per event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        err(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A pipe: the first write waits for the gate.
    struct Pipe {
        gate: Option<Receiver<()>>,
        seen: Sender<Vec<u8>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(gate) = self.gate.take() {
                let _ = gate.recv();
            }
            let _ = self.seen.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_holds_nobody_up_and_learns_what_it_missed() {
        let (open, gate) = channel();
        let (seen, lines) = channel();
        let gate = Some(gate);
        let way = Lines::over("test", Pipe { gate, seen }).unwrap();
        // The first may be with the writer, so that one more fits.
        for _ in 0..LINES_MAX + 11 {
            way.put(b"line\n");
        }
        let dropped = way.dropped.load(Ordering::Relaxed);
        assert!((10..=11).contains(&dropped), "{dropped}");
        open.send(()).unwrap();
        let mut text = String::new();
        while !text.contains(&format!("{dropped} lines were dropped")) {
            let piece = lines.recv_timeout(PATIENCE).unwrap();
            text.push_str(&String::from_utf8(piece).unwrap());
        }
    }

    #[test]
    fn a_flush_waits_for_what_was_put() {
        let (seen, lines) = channel();
        let way = Lines::over("test", Pipe { gate: None, seen }).unwrap();
        way.put(b"line\n");
        way.flush(PATIENCE);
        assert_eq!(lines.try_recv().unwrap(), b"line\n");
    }
}
