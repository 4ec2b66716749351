//! A view of the source at the position where the target stands, for as long as rows are written by it.

use std::collections::BTreeMap;

use cdc_core::engine::CompareView;
use cdc_core::{Checkpoint, Error, Kind, Result, TableName};

use super::align::{ATTEMPTS, Aligner, Request};
use super::before;

/// The source as it was at the target's checkpoint. A running instance stands still while this lives.
pub(crate) struct Standstill {
    pub(crate) source: Box<dyn CompareView>,
    /// where the target stands; what is written by `source` has to find it there
    pub(crate) checkpoint: Checkpoint,
    /// tables of which `source` shows changes that are not applied, without a running instance
    pub(crate) pending: BTreeMap<TableName, u64>,
    request: Option<Request>,
}

impl std::fmt::Debug for Standstill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standstill")
            .field("checkpoint", &self.checkpoint)
            .field("pending", &self.pending)
            .finish()
    }
}

impl Standstill {
    /// Whether an instance waits for its end.
    pub(crate) fn holds_up(&self) -> bool {
        self.request.is_some()
    }

    /// Lets the instance go on.
    pub(crate) async fn release(self) -> Result<()> {
        match self.request {
            Some(request) => request.withdraw().await.map_err(|error| {
                error.context(
                    "the running instance could not be told to go on; it goes on when this process ends",
                )
            }),
            None => Ok(()),
        }
    }
}

impl Aligner<'_> {
    /// Opens a view of the source where the target stands.
    pub(crate) async fn standstill(&self) -> Result<Standstill> {
        for _ in 0..ATTEMPTS {
            let deadline = self.options.deadline;
            let (state, holder) = before(deadline, self.situation()).await?;
            let Some(checkpoint) = state.checkpoint.clone() else {
                return Err(Error::new(Kind::Unverifiable, "the target stores no checkpoint")
                    .object(self.names.job.clone())
                    .remedy("let `run` copy the tables first"));
            };
            let standstill = match holder {
                Some(holder) => self.behind_running(&holder).await?,
                None => {
                    let opened = before(deadline, self.source_and_gap(&state, &checkpoint)).await?;
                    opened.map(|(source, pending)| Standstill {
                        source,
                        checkpoint,
                        pending,
                        request: None,
                    })
                }
            };
            if let Some(standstill) = standstill {
                return Ok(standstill);
            }
        }
        Err(Error::new(
            Kind::Unverifiable,
            "the stream was not left alone: instances of the job, or verifies, keep coming and going",
        )
        .object(self.names.job.clone())
        .remedy("leave the job running or stopped while a repair writes"))
    }

    async fn behind_running(&self, holder: &str) -> Result<Option<Standstill>> {
        before(self.options.deadline, self.turn()).await?;
        let request = Request::new(self.target, self.names);
        let held = self.while_held(holder, async |source: Box<dyn CompareView>| {
            let state = self.target.stream_state(&self.names.job).await?;
            Ok((source, state.checkpoint))
        });
        let held = before(self.options.deadline, held).await;
        match held {
            Ok(Some((source, Some(checkpoint)))) => Ok(Some(Standstill {
                source,
                checkpoint,
                pending: BTreeMap::new(),
                request: Some(request),
            })),
            Ok(_) => request.withdraw().await.map(|()| None),
            Err(error) => {
                // The error says more than that the instance could not be told; it goes on without us, too.
                let _ = request.withdraw().await;
                Err(error)
            }
        }
    }
}
