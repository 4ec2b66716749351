//! What the planner makes of small groups, in words.

mod transitions;
mod windows;
mod words;
