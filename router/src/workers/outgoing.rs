//! From the router to one worker: commands wait here until the connection asks for the next
//! message.
//!
//! All that wait are merged into one `Cmd`, up to [`CMD_BYTES`]. The queue is bounded by the open
//! seats of the session, and a worker that does not read loses its session by its lease.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::Stream;
use parking_lot::Mutex;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use crate::wire::worker::{
    AttachResponse, Cmd, Command, Refusal, Welcome, attach_response, command, open,
};

/// Time between two commands at most; an empty one is the heartbeat.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(500);

/// Estimated size up to which commands are merged: half of the 16 MiB that a worker takes.
const CMD_BYTES: usize = 8 << 20;

/// Most bytes of one token id as a varint.
const TOKEN_BYTES: usize = 5;

/// A command without its tokens, at most: the label is 128 bits in hex, grants hold names.
const COMMAND_BYTES: usize = 1_024;

/// What waits for one worker. Shared between its link and its connection, both on one thread.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    first: Option<attach_response::Kind>,
    session: Option<u64>,
    commands: VecDeque<Command>,
    closed: bool,
    waker: Option<Waker>,
}

impl Outgoing {
    /// The first message: the worker is welcome; commands may follow.
    pub(super) fn welcome(&self, welcome: Welcome) {
        let mut inner = self.inner.lock();
        inner.session = Some(welcome.session);
        inner.first = Some(attach_response::Kind::Welcome(welcome));
        inner.wake();
    }

    /// The first and last message: the worker may not join.
    pub(super) fn refuse(&self, message: String, retry: bool) {
        let mut inner = self.inner.lock();
        inner.first = Some(attach_response::Kind::Refusal(Refusal { message, retry }));
        inner.closed = true;
        inner.wake();
    }

    /// One more command.
    pub(super) fn push(&self, kind: command::Kind) {
        let mut inner = self.inner.lock();
        inner.commands.push_back(Command { kind: Some(kind) });
        inner.wake();
    }

    /// The next message, if there is something to say.
    pub(super) fn next(&self) -> Option<attach_response::Kind> {
        self.inner.lock().next()
    }

    /// Ends the stream; what waits is dropped.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.commands.clear();
        inner.closed = true;
        inner.wake();
    }
}

impl Inner {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next message, if there is something to say.
    fn next(&mut self) -> Option<attach_response::Kind> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let session = self.session?;
        let mut bytes = 0;
        let mut take = 0;
        for command in &self.commands {
            bytes += size(command);
            if take > 0 && bytes > CMD_BYTES {
                break;
            }
            take += 1;
        }
        if take == 0 {
            return None;
        }
        let commands = self.commands.drain(..take).collect();
        Some(attach_response::Kind::Cmd(Cmd { session, commands }))
    }
}

/// Upper bound of a command's encoded size.
fn size(command: &Command) -> usize {
    let tokens = match &command.kind {
        Some(command::Kind::Open(open)) => {
            let stops = open.limits.as_ref().map_or(0, |l| l.stop_token_ids.len());
            match &open.kind {
                Some(open::Kind::Compute(compute)) => {
                    stops + compute.prompt.len() + compute.answer.len()
                }
                _ => stops,
            }
        }
        _ => 0,
    };
    COMMAND_BYTES + tokens * TOKEN_BYTES
}

/// The response stream of one attachment.
#[derive(Debug)]
pub(super) struct Responses {
    outgoing: Arc<Outgoing>,
    heartbeat: Interval,
}

impl Responses {
    /// What `outgoing` brings, with a heartbeat.
    pub(super) fn new(outgoing: Arc<Outgoing>) -> Self {
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            outgoing,
            heartbeat,
        }
    }
}

impl Stream for Responses {
    type Item = Result<AttachResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut inner = this.outgoing.inner.lock();
        if let Some(kind) = inner.next() {
            return Poll::Ready(Some(Ok(AttachResponse { kind: Some(kind) })));
        }
        if inner.closed {
            return Poll::Ready(None);
        }
        if this.heartbeat.poll_tick(cx).is_ready() {
            if let Some(session) = inner.session {
                let commands = Vec::new();
                let kind = Some(attach_response::Kind::Cmd(Cmd { session, commands }));
                return Poll::Ready(Some(Ok(AttachResponse { kind })));
            }
            // Not welcome yet: nothing to say. Polled again so that the next tick wakes.
            if this.heartbeat.poll_tick(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        inner.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        // Nobody will read it: do not let it grow until the lease is over.
        self.outgoing.close();
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::wire::worker::{Close, Compute, Open};

    fn commands(kind: attach_response::Kind) -> Vec<Command> {
        match kind {
            attach_response::Kind::Cmd(cmd) => cmd.commands,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_waits_is_merged_after_the_welcome() {
        let outgoing = Outgoing::default();
        for slot in 0..3 {
            outgoing.push(command::Kind::Close(Close { slot }));
        }
        assert_eq!(outgoing.inner.lock().next(), None, "not before the welcome");
        let welcome = Welcome {
            session: 5,
            ..Welcome::default()
        };
        outgoing.welcome(welcome.clone());
        let first = outgoing.inner.lock().next();
        assert_eq!(first, Some(attach_response::Kind::Welcome(welcome)));
        let merged = outgoing.inner.lock().next().unwrap();
        assert_eq!(commands(merged).len(), 3);
        assert_eq!(outgoing.inner.lock().next(), None);
    }

    #[test]
    fn no_message_is_larger_than_a_worker_takes() {
        let outgoing = Outgoing::default();
        outgoing.welcome(Welcome::default());
        outgoing.inner.lock().next().unwrap();
        for slot in 0..40 {
            let compute = Compute {
                prompt: vec![u32::MAX; 200_000],
                answer: Vec::new(),
                prompt_group: 0,
            };
            outgoing.push(command::Kind::Open(Open {
                slot,
                kind: Some(open::Kind::Compute(compute)),
                ..Open::default()
            }));
        }
        let mut slots = Vec::new();
        while let Some(kind) = outgoing.inner.lock().next() {
            let message = AttachResponse { kind: Some(kind) };
            assert!(message.encoded_len() <= 16 << 20);
            for command in commands(message.kind.unwrap()) {
                match command.kind {
                    Some(command::Kind::Open(open)) => slots.push(open.slot),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(slots, (0..40).collect::<Vec<_>>(), "all of them, in order");
    }
}
