//! Tests of the brain through its only door: events in, actions out.

mod binding;
mod breakers;
mod budgets;
mod cells;
mod decode_places;
mod ejection;
mod explain;
mod extremes;
mod flapping;
mod holdings;
mod liars;
mod lies;
mod limits;
mod order;
mod order_reference;
mod overload;
mod overtaking;
mod placing;
mod preempting;
mod random_events;
mod refusal;
mod share;
mod single_worker;
mod starvation;
mod stealing;
mod support;
