//! From the router to one worker: commands wait here until the connection asks for the next
//! message.
//!
//! All that wait are merged into one `Cmd`, up to [`CMD_BYTES`]. The queue is bounded by the open
//! seats of the session, and a worker that does not read loses its session by its lease.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use dopd_sync::Watched;
use futures_util::Stream;
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
    queue: Watched<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    first: Option<attach_response::Kind>,
    session: Option<u64>,
    commands: VecDeque<Command>,
    closed: bool,
}

impl Outgoing {
    /// The first message: the worker is welcome; commands may follow.
    pub(super) fn welcome(&self, welcome: Welcome) {
        self.queue.change(|queue| {
            queue.session = Some(welcome.session);
            queue.first = Some(attach_response::Kind::Welcome(welcome));
        });
    }

    /// The first and last message: the worker may not join.
    pub(super) fn refuse(&self, message: String, retry: bool) {
        self.queue.change(|queue| {
            queue.first = Some(attach_response::Kind::Refusal(Refusal { message, retry }));
            queue.closed = true;
        });
    }

    /// One more command; nobody reads it once the stream is closed.
    pub(super) fn push(&self, kind: command::Kind) {
        self.queue.change(|queue| {
            if !queue.closed {
                queue.commands.push_back(Command { kind: Some(kind) });
            }
        });
    }

    /// The next message, if there is something to say.
    pub(super) fn next(&self) -> Option<attach_response::Kind> {
        self.queue.look(Queue::next)
    }

    /// Ends the stream; what waits is dropped.
    pub(super) fn close(&self) {
        self.queue.change(|queue| {
            queue.commands.clear();
            queue.closed = true;
        });
    }
}

impl Queue {
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
        let Self {
            outgoing,
            heartbeat,
        } = &mut *self;
        let waker = cx.waker().clone();
        let next = outgoing
            .queue
            .poll_take(&Context::from_waker(&waker), |queue| {
                if let Some(kind) = queue.next() {
                    return Some(Some(kind));
                }
                if queue.closed {
                    return Some(None);
                }
                if heartbeat.poll_tick(cx).is_pending() {
                    return None;
                }
                if let Some(session) = queue.session {
                    let commands = Vec::new();
                    return Some(Some(attach_response::Kind::Cmd(Cmd { session, commands })));
                }
                // Not welcome yet: nothing to say. Polled again so that the next tick wakes.
                if heartbeat.poll_tick(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                None
            });
        next.map(|kind| kind.map(|kind| Ok(AttachResponse { kind: Some(kind) })))
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
        assert_eq!(outgoing.next(), None, "not before the welcome");
        let welcome = Welcome {
            session: 5,
            ..Welcome::default()
        };
        outgoing.welcome(welcome.clone());
        let first = outgoing.next();
        assert_eq!(first, Some(attach_response::Kind::Welcome(welcome)));
        let merged = outgoing.next().unwrap();
        assert_eq!(commands(merged).len(), 3);
        assert_eq!(outgoing.next(), None);
    }

    #[test]
    fn no_message_is_larger_than_a_worker_takes() {
        let outgoing = Outgoing::default();
        outgoing.welcome(Welcome::default());
        outgoing.next().unwrap();
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
        while let Some(kind) = outgoing.next() {
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
