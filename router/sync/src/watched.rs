//! A value that one task waits for and anybody changes.

use std::task::{Context, Poll, Waker};

use crate::imp::Mutex;

/// A value with the task that waits for it. One task may wait at a time: the one that polled last.
#[derive(Debug, Default)]
pub struct Watched<T>(Mutex<Inner<T>>);

#[derive(Debug, Default)]
struct Inner<T> {
    value: T,
    waker: Option<Waker>,
}

impl<T> Watched<T> {
    /// Nobody waits for `value`.
    #[cfg(not(test))]
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(Inner { value, waker: None }))
    }

    /// Nobody waits for `value`.
    #[cfg(test)]
    pub fn new(value: T) -> Self {
        Self(Mutex::new(Inner { value, waker: None }))
    }

    /// Changes the value and wakes who waits for it, if anybody does.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let (result, waker) = {
            let mut inner = self.0.lock();
            (change(&mut inner.value), inner.waker.take())
        };
        // Without the lock: the task may run at once.
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Looks at the value without waking anybody.
    pub fn look<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.0.lock().value)
    }

    /// What `take` finds in the value; if it finds nothing, the task is woken at the next change.
    pub fn poll_take<R>(
        &self,
        cx: &Context<'_>,
        take: impl FnOnce(&mut T) -> Option<R>,
    ) -> Poll<R> {
        let mut inner = self.0.lock();
        if let Some(found) = take(&mut inner.value) {
            return Poll::Ready(found);
        }
        inner.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The same as a future.
    pub async fn take<R>(&self, mut take: impl FnMut(&mut T) -> Option<R>) -> R {
        std::future::poll_fn(|cx| self.poll_take(cx, &mut take)).await
    }
}

#[cfg(test)]
mod tests {
    use loom::{future::block_on, model, thread};

    use super::*;
    use crate::imp::Arc;

    /// Takes everything there is.
    fn all(queue: &mut Vec<u32>) -> Option<Vec<u32>> {
        (!queue.is_empty()).then(|| std::mem::take(queue))
    }

    #[test]
    fn no_change_is_slept_through() {
        model(|| {
            let queue: Arc<Watched<Vec<u32>>> = Arc::default();
            let pushers: Vec<_> = [1, 2]
                .map(|number| {
                    let queue = Arc::clone(&queue);
                    thread::spawn(move || queue.change(|queue| queue.push(number)))
                })
                .into();
            let mut got = Vec::new();
            // A lost wake-up is a deadlock, which loom finds.
            while got.len() < 2 {
                got.extend(block_on(queue.take(all)));
            }
            got.sort_unstable();
            assert_eq!(got, [1, 2]);
            for pusher in pushers {
                pusher.join().unwrap();
            }
        });
    }

    /// Commands are pushed while their stream is closed: the reader sees the end whatever comes
    /// first, and nothing after it.
    #[test]
    fn an_end_is_seen_whatever_races_with_it() {
        #[derive(Default)]
        struct Queue {
            waiting: Vec<u32>,
            is_closed: bool,
        }
        model(|| {
            let queue: Arc<Watched<Queue>> = Arc::default();
            let (pushing, closing) = (Arc::clone(&queue), Arc::clone(&queue));
            let pusher = thread::spawn(move || {
                pushing.change(|queue| {
                    if !queue.is_closed {
                        queue.waiting.push(1);
                    }
                });
            });
            let closer = thread::spawn(move || {
                closing.change(|queue| {
                    queue.waiting.clear();
                    queue.is_closed = true;
                });
            });
            let mut got = Vec::new();
            loop {
                let next = block_on(queue.take(|queue| match queue.waiting.pop() {
                    Some(number) => Some(Some(number)),
                    None => queue.is_closed.then_some(None),
                }));
                match next {
                    Some(number) => got.push(number),
                    None => break,
                }
            }
            pusher.join().unwrap();
            closer.join().unwrap();
            assert!(got.is_empty() || got == [1]);
            assert!(queue.look(|queue| queue.waiting.is_empty()));
        });
    }

    /// Who takes over from a task that is gone is the one that is woken.
    #[test]
    fn the_last_to_ask_is_woken() {
        model(|| {
            let queue: Arc<Watched<Vec<u32>>> = Arc::default();
            let waker = Waker::noop();
            let first = queue.poll_take(&Context::from_waker(waker), all);
            assert_eq!(first, Poll::Pending);
            let pushing = Arc::clone(&queue);
            let pusher = thread::spawn(move || pushing.change(|queue| queue.push(7)));
            assert_eq!(block_on(queue.take(all)), [7]);
            pusher.join().unwrap();
        });
    }
}
