//! Drives the brain: turns requests and reports into events, actions into commands. Holds the prompts.
pub mod submission;
