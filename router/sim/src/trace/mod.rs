//! Arrivals: read from files, made from a line of words, scaled to another rate.
//!
//! Called by `dopd._router`. Pure: takes bytes, gives a [`Trace`](crate::scenario::Trace); chance
//! comes from a seed.
//!
//! | file | what |
//! |---|---|
//! | `read` | bytes, gzip or plain, to a trace; knows the format by its first line |
//! | `table`, `mooncake`, `shape` | CSV, JSON lines, load by the minute |
//! | `spec`, `make` | `poisson:rate=8,prompt=1024` and what it stands for |
//! | `scale` | another rate on the trace's own clock |

mod error;
mod make;
mod mooncake;
mod random;
mod read;
mod scale;
mod shape;
mod spec;
mod table;

pub use self::{
    error::TraceError,
    make::{Sources, make},
    random::Random,
    read::{BYTES_MAX, ROWS_MAX, Read, SECONDS_MAX, TOKENS_MAX, micros, read},
    scale::{FACTOR_MAX, NEIGHBOURS, SHIFT_MAX, first_seconds, scale},
    shape::{Shape, read_shape},
    spec::{Lengths, Process, Range, Spec, SpecError},
};
