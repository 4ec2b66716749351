//! What the benches work on: streams made from a seed, the same bytes on every machine.

pub mod corpus;
pub mod target;
pub mod totals;

pub use corpus::Corpus;
pub use totals::Totals;
