//! The source on real servers.

mod decoded;
mod lifecycle;
mod stage;
