//! The brain's event log in a file, for `dopd replay`.
//!
//! A replay starts with a fresh brain, so the beginning of a run is never given up: at its size
//! limit the record ends, whole and replayable. The record of the run before is kept as `FILE.1`.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use dopd_core::{
    action::Action,
    brain::BrainConfig,
    event::Event,
    log::{Line, encode_header},
    units::Micros,
};

use crate::error::{Error, Reason};

/// An open record.
#[derive(Debug)]
pub(super) struct Recorder {
    /// `None` once it is full or a write failed.
    file: Option<BufWriter<File>>,
    path: PathBuf,
    /// Bytes that may still be written.
    left: u64,
    is_dirty: bool,
}

impl Recorder {
    /// Begins a record of at most `bytes_max` bytes.
    pub(super) fn open(path: &Path, bytes_max: u64, config: &BrainConfig) -> Result<Self, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            let message = format!("the record {} {what}: {error}", path.display());
            Error::new(Reason::Internal, message)
        };
        let mut older = path.as_os_str().to_owned();
        older.push(".1");
        match std::fs::rename(path, older) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("of an earlier run cannot be renamed", &error));
            }
            _ => {}
        }
        let file = File::create(path).map_err(|error| failed("cannot be created", &error))?;
        let mut recorder = Self {
            file: Some(BufWriter::new(file)),
            path: path.to_owned(),
            left: bytes_max,
            is_dirty: false,
        };
        let header = encode_header(config).map_err(|error| failed("cannot be begun", &error))?;
        recorder.write(&header);
        recorder.flush();
        Ok(recorder)
    }

    /// Notes an event before the brain has it.
    pub(super) fn begin(&mut self, now: Micros, event: &Event) -> Option<Line> {
        self.file.as_ref()?;
        match Line::begin(now, event) {
            Ok(line) => Some(line),
            Err(error) => {
                self.stop(&format!("an event cannot be written: {error}"));
                None
            }
        }
    }

    /// Writes the event with what was decided.
    pub(super) fn end(&mut self, line: Line, actions: &[Action]) {
        match line.end(actions) {
            Ok(bytes) => self.write(&bytes),
            Err(error) => self.stop(&format!("a decision cannot be written: {error}")),
        }
    }

    /// Hands what was written to the system.
    pub(super) fn flush(&mut self) {
        if !std::mem::take(&mut self.is_dirty) {
            return;
        }
        if let Some(Err(error)) = self.file.as_mut().map(BufWriter::flush) {
            self.stop(&error.to_string());
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            self.stop("it has reached log.record_bytes_max");
            return;
        };
        self.left = left;
        self.is_dirty = true;
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(bytes)) {
            self.stop(&error.to_string());
        }
    }

    /// Ends the record: a gap in it would make everything after it useless.
    fn stop(&mut self, why: &str) {
        if let Some(mut file) = self.file.take() {
            // The last lines are lost if this fails, as `why` may be the disk itself.
            let flushed = file.flush().is_ok();
            let path = self.path.display();
            tracing::warn!(%path, why, flushed, "recording ends");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
    }
}
