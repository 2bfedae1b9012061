//! From a report's columns to the client's answer: which sink gets which tokens.
pub mod sink;
