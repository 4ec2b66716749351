//! Tests that start real servers.

mod account;
mod cluster;
mod compare;
mod network;
mod workload;
