//! The registry of engines: the only place that names them.

use std::time::Duration;

use cdc_core::source::StreamStart;
use cdc_core::{Decoder, Engine, Error, Kind, Result, Site};

use crate::config::DatabaseUrl;

/// Every engine this build has. Adding one is one line.
fn engines() -> Vec<Box<dyn Engine>> {
    vec![Box::new(cdc_postgres::PgEngine)]
}

/// The URL schemes there are.
pub fn schemes() -> Vec<&'static str> {
    engines()
        .iter()
        .flat_map(|engine| engine.schemes())
        .copied()
        .collect()
}

/// Connects to a database by the engine that its URL's scheme names.
///
/// # Errors
/// [`Kind::Config`] for a URL without a known scheme; else as [`Engine::connect`].
pub async fn connect(url: &DatabaseUrl, timeout: Duration) -> Result<Box<dyn Site>> {
    let unknown = |message: &str| {
        let known: Vec<String> = schemes().iter().map(|scheme| format!("{scheme}://")).collect();
        Err(Error::new(Kind::Config, message)
            .remedy(format!("a database URL begins with {}", known.join(" or "))))
    };
    let Some((scheme, _)) = url.expose().split_once("://") else {
        return unknown("not a database URL");
    };
    let scheme = scheme.to_ascii_lowercase();
    for engine in engines() {
        if engine.schemes().contains(&scheme.as_str()) {
            return engine.connect(url.expose(), timeout).await;
        }
    }
    unknown("there is no engine for URLs of this scheme")
}

/// A decoder of what the engine of this name has read.
///
/// # Errors
/// [`Kind::Config`] when this build has no such engine, or `start` does not suit it.
pub fn decoder(engine: &str, start: &StreamStart) -> Result<Box<dyn Decoder>> {
    let engines = engines();
    let found = engines.iter().find(|known| known.schemes().contains(&engine));
    found
        .ok_or_else(|| {
            Error::new(
                Kind::Config,
                format!("it was taken from a database of {engine:?}, which this build does not know"),
            )
            .remedy("read it with the version that wrote it")
        })?
        .decoder(start)
}
