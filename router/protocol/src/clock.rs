//! What happens next: simulated time, the events that wait, the record of those that happened.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering as Memory},
    },
};

use dopd_core::units::Micros;

use crate::random::Random;

/// Something that is to happen. Workers, streams and links are named by their index; `u32` is the
/// life of the process (of the router: its epoch) that the event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ev {
    /// A client submits its request.
    Submit(usize),
    /// A client goes away.
    Cancel(usize),
    /// A running sequence is told to move.
    Move(usize),
    /// The brain reads its queue.
    Brain(u32),
    /// A front thread reads its queue.
    Front(u32, u16),
    /// The brain's timer.
    Wake(u32),
    /// A report interval of a stream passed at the router.
    Tick(usize),
    /// The router has been silent on a stream for long.
    Beat(usize),
    /// The next message of a worker reaches the router.
    Up(usize),
    /// The next message of the router reaches the worker.
    Down(usize),
    /// The router sees the end of a stream.
    RouterSees(usize),
    /// The worker sees the end of a stream.
    WorkerSees(usize),
    /// A worker dials the router.
    Dial(usize, u32),
    /// A worker's step is over.
    StepEnd(usize, u32, u64),
    /// A worker looks at its clock: heartbeat, lease.
    Poll(usize, u32),
    /// A worker looks at its fences.
    Fence(usize, u32),
    /// A data link is accepted by the destination.
    Accept(usize),
    /// The source learns that its dial worked.
    LinkUp(usize),
    /// The next message of a source reaches the destination.
    Forward(usize),
    /// The next message of a destination reaches the source.
    Backward(usize),
    /// An end of a link sees that it is gone; true: the source's.
    LinkDown(usize, bool),
    /// A fault of the plan.
    Fault(usize),
    /// A process starts again.
    Restart(usize, u32),
    /// A look at bounds and ends.
    Check,
}

struct Waiting {
    at: Micros,
    /// Events of one instant happen in any order.
    tie: u64,
    count: u64,
    event: Ev,
}

impl Waiting {
    fn key(&self) -> (Micros, u64, u64) {
        (self.at, self.tie, self.count)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    /// The earliest is the greatest: a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// Time, events, random numbers, trace and verdict of one simulation.
pub(crate) struct Clock {
    now: Arc<AtomicU64>,
    heap: BinaryHeap<Waiting>,
    count: u64,
    pub(crate) random: Random,
    trace: Option<Vec<String>>,
    broken: Option<String>,
}

impl Clock {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        Self {
            now: Arc::default(),
            heap: BinaryHeap::new(),
            count: 0,
            random: Random::new(seed ^ 0x51_4D),
            trace: is_traced.then(Vec::new),
            broken: None,
        }
    }

    pub(crate) fn now(&self) -> Micros {
        Micros(self.now.load(Memory::Relaxed))
    }

    /// The time, for those who live elsewhere.
    pub(crate) fn shared(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.now)
    }

    /// `event` is to happen at `at`, or now if that is over.
    pub(crate) fn at(&mut self, at: Micros, event: Ev) {
        self.count += 1;
        let waiting = Waiting {
            at: at.max(self.now()),
            tie: self.random.any(),
            count: self.count,
            event,
        };
        self.heap.push(waiting);
    }

    /// `event` is to happen in `us` microseconds.
    pub(crate) fn after(&mut self, us: u64, event: Ev) {
        self.at(self.now().plus(Micros(us)), event);
    }

    /// Goes to the next event.
    pub(crate) fn next(&mut self) -> Option<Ev> {
        let next = self.heap.pop()?;
        self.now.store(next.at.0, Memory::Relaxed);
        Some(next.event)
    }

    /// Writes a line of the trace, if there is one.
    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(trace) = &mut self.trace {
            let (ms, us) = (now.0 / 1_000, now.0 % 1_000);
            trace.push(format!("{ms:>6}.{us:03}  {}", line()));
        }
    }

    /// An invariant does not hold. The first one counts.
    pub(crate) fn broken(&mut self, what: String) {
        self.say(|| format!("BROKEN {what}"));
        self.broken.get_or_insert(what);
    }

    pub(crate) fn verdict(&mut self) -> Option<String> {
        self.broken.take()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(crate) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }
}
