//! What a worker writes: forwarded line by line, and the last lines kept to name the cause of its
//! death.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// Lines kept of a worker's standard error. A Python traceback of a deep stack is about this long.
const TAIL_LINES: usize = 20;

/// Longest line; what is longer is cut into several.
const LINE_BYTES_MAX: u64 = 8 << 10;

/// Takes a worker's name and one line of its output.
pub type LineSink = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// The last lines of one life of a worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock();
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }
}

/// Forwards the lines of `stream` to `sink` until it ends; keeps the last ones in `tail`.
pub(super) async fn forward(
    stream: impl AsyncRead + Unpin,
    name: String,
    sink: LineSink,
    tail: Option<Tail>,
) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut bytes)
            .await
        {
            // A pipe whose other end is gone: nothing more to forward either way.
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches(['\n', '\r']);
        sink(&name, line);
        if let Some(tail) = &tail {
            tail.push(line);
        }
    }
}
