//! The source on real servers.

mod decoded;
mod lifecycle;
mod promotion;
mod rolled_back;
mod stage;
