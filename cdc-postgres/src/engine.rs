//! [`PgEngine`]: how PostgreSQL is reached and its log decoded.

use std::time::Duration;

use cdc_core::source::StreamStart;
use cdc_core::{BoxFuture, Decoder, Engine, Result, Site};

use crate::pgoutput::{PgDecoder, ProtocolVersion};
use crate::site::PgSite;

/// PostgreSQL 12 and later.
#[derive(Debug, Default, Clone, Copy)]
pub struct PgEngine;

/// What a URL of ours begins with.
pub(crate) const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

impl Engine for PgEngine {
    fn schemes(&self) -> &'static [&'static str] {
        &SCHEMES
    }

    fn connect<'a>(&'a self, url: &'a str, timeout: Duration) -> BoxFuture<'a, Box<dyn Site>> {
        Box::pin(async move {
            let site = PgSite::connect(url, timeout).await?;
            Ok(Box::new(site) as Box<dyn Site>)
        })
    }

    fn decoder(&self, start: &StreamStart) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(PgDecoder::new(ProtocolVersion::V1, start)?))
    }
}
