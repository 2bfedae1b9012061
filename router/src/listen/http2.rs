//! Counts the control frames of an HTTP/2 connection. They cost their sender nothing and us a
//! little, and neither hyper nor h2 bounds them: whoever sends too many is cut.

use std::{
    io,
    time::{Duration, Instant},
};

/// Bytes that a client sends before its first frame.
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;

/// Control frames a second that a client may send for long; three seconds' worth may come at once.
const FRAMES_PER_SECOND: u64 = 100;
const BURST: u64 = 3 * FRAMES_PER_SECOND;
/// What counts as a part of a frame: a client that cancels or reads much sends these for a reason.
const WHOLE: u64 = 100;
const RESET: u64 = 10;
const WINDOW_UPDATE: u64 = 1;

const END_STREAM: u8 = 1;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE_TYPE: u8 = 8;

/// Follows the frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes to pass over: the preface, then payloads.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_bytes: usize,
    /// Hundredths of frames that were not yet forgiven.
    debt: u64,
    forgiven: Option<Instant>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; FRAME_HEAD_BYTES],
            head_bytes: 0,
            debt: 0,
            forgiven: None,
        }
    }
}

impl Frames {
    /// Looks at bytes in their order; an error: the client sends too many control frames.
    pub(super) fn see(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let missing = FRAME_HEAD_BYTES - self.head_bytes;
            let (part, rest) = bytes.split_at(missing.min(bytes.len()));
            self.head[self.head_bytes..self.head_bytes + part.len()].copy_from_slice(part);
            self.head_bytes += part.len();
            bytes = rest;
            if self.head_bytes == FRAME_HEAD_BYTES {
                self.head_bytes = 0;
                let cost = self.frame();
                if cost > 0 {
                    self.charge(cost, now())?;
                }
            }
        }
        Ok(())
    }

    /// What the frame costs whose head is complete.
    fn frame(&mut self) -> u64 {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            // Data is bounded by windows, calls by their number; unless there is nothing in them.
            DATA if self.skip > 0 || flags & END_STREAM != 0 => 0,
            HEADERS => 0,
            RST_STREAM => RESET,
            WINDOW_UPDATE_TYPE => WINDOW_UPDATE,
            _ => WHOLE,
        }
    }

    fn charge(&mut self, cost: u64, now: Instant) -> io::Result<()> {
        let since = self.forgiven.map_or(Duration::ZERO, |before| now - before);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        if self.forgiven.is_none() || millis > 0 {
            self.forgiven = Some(now);
            let forgiven = millis.saturating_mul(FRAMES_PER_SECOND * WHOLE / 1_000);
            self.debt = self.debt.saturating_sub(forgiven);
        }
        self.debt += cost;
        if self.debt <= BURST * WHOLE {
            return Ok(());
        }
        let message = format!("more than {FRAMES_PER_SECOND} control frames a second");
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const CONTINUATION: u8 = 9;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(FRAME_HEAD_BYTES + payload, 6);
        frame
    }

    /// How many of `count` frames, `pause` apart, pass before the connection is cut; in pieces of
    /// `piece` bytes.
    fn passed(frame: &[u8], count: usize, pause: Duration, piece: usize) -> usize {
        let mut frames = Frames::default();
        let start = Instant::now();
        frames.see(&[0; PREFACE_BYTES], || start).unwrap();
        for index in 0..count {
            let now = start + pause * u32::try_from(index).unwrap();
            let sent = frame
                .chunks(piece)
                .try_for_each(|piece| frames.see(piece, || now));
            if sent.is_err() {
                return index;
            }
        }
        count
    }

    #[test]
    fn floods_are_cut_after_three_seconds_worth() {
        for (kind, payload) in [
            (PING, 8),
            (4, 0),
            (4, 6),
            (DATA, 0),
            (CONTINUATION, 1),
            (77, 3),
        ] {
            for piece in [1, 7, 1_000] {
                let frame = frame(kind, 0, payload);
                assert_eq!(passed(&frame, 10_000, Duration::ZERO, piece), 300, "{kind}");
            }
        }
        let resets = passed(&frame(RST_STREAM, 0, 4), 10_000, Duration::ZERO, 9);
        assert_eq!(resets, 3_000);
    }

    #[test]
    fn what_clients_send_for_a_reason_passes() {
        let count = 100_000;
        let each = Duration::from_millis;
        assert_eq!(passed(&frame(PING, 0, 8), count, each(10), 9), count);
        assert_eq!(passed(&frame(RST_STREAM, 0, 4), count, each(1), 9), count);
        assert_eq!(passed(&frame(DATA, 0, 100), count, each(0), 9), count);
        assert_eq!(
            passed(&frame(DATA, END_STREAM, 0), count, each(0), 9),
            count
        );
        assert_eq!(passed(&frame(HEADERS, 4, 100), count, each(0), 9), count);
        // Ten a millisecond.
        let updates = passed(
            &frame(WINDOW_UPDATE_TYPE, 0, 4),
            count,
            Duration::from_micros(100),
            9,
        );
        assert_eq!(updates, count);
    }
}
