//! When what is due: the boundary of each worker's step, in one heap with a place per worker.
//!
//! What travels takes the same time each, so it waits in plain queues (`engine`); only boundaries
//! move. Called by `engine`.

use dopd_core::units::Micros;

/// Never.
const NEVER: u64 = u64::MAX;

/// A heap over workers by the time of their next boundary, then by their place in the fleet.
#[derive(Debug)]
pub(crate) struct Calendar {
    heap: Vec<u32>,
    /// Where each worker is in `heap`.
    places: Vec<u32>,
    due: Vec<u64>,
}

impl Calendar {
    pub(crate) fn new(workers: u32) -> Self {
        Self {
            heap: (0..workers).collect(),
            places: (0..workers).collect(),
            due: vec![NEVER; workers as usize],
        }
    }

    /// The next boundary, and whose.
    pub(crate) fn first(&self) -> Option<(Micros, u32)> {
        let &worker = self.heap.first()?;
        let at = self.due[worker as usize];
        (at != NEVER).then_some((Micros(at), worker))
    }

    /// The next boundary of a worker is at `at`; `None`: it has none.
    pub(crate) fn set(&mut self, worker: u32, at: Option<Micros>) {
        let at = at.map_or(NEVER, |at| at.0);
        let before = std::mem::replace(&mut self.due[worker as usize], at);
        if at < before {
            self.rise(self.places[worker as usize] as usize);
        } else if at > before {
            self.sink(self.places[worker as usize] as usize);
        }
    }

    fn key(&self, place: usize) -> (u64, u32) {
        let worker = self.heap[place];
        (self.due[worker as usize], worker)
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.key(parent) <= self.key(place) {
                return;
            }
            self.swap(parent, place);
            place = parent;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let least = if right < self.heap.len() && self.key(right) < self.key(left) {
                right
            } else {
                left
            };
            if self.key(place) <= self.key(least) {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "no more places than workers, which are u32"
    )]
    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.places[self.heap[a] as usize] = a as u32;
        self.places[self.heap[b] as usize] = b as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_boundaries_by_time_then_by_worker() {
        let mut calendar = Calendar::new(5);
        assert_eq!(calendar.first(), None);
        for (worker, at) in [(3, 30), (1, 10), (4, 10), (0, 50), (2, 20), (1, 40)] {
            calendar.set(worker, Some(Micros(at)));
        }
        let mut seen = Vec::new();
        while let Some((at, worker)) = calendar.first() {
            seen.push((at.0, worker));
            calendar.set(worker, None);
        }
        assert_eq!(seen, [(10, 4), (20, 2), (30, 3), (40, 1), (50, 0)]);
    }
}
