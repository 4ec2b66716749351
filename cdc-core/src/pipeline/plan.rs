//! The plan thread: groups transactions and plans them, sized by what the apply thread leaves time for.
//!
//! A group grows as long as the apply thread is busy and the limits allow; the moment it is free and nothing
//! is queued, what is there is planned: an idle target gets small groups at once, a busy one large groups.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::control::Control;
use super::grouper::{Gathered, Grouper};
use super::internal::{InternalRows, internal_rows};
use crate::batch::Batch;
use crate::engine::Barrier;
use crate::error::{Error, Result};
use crate::model::Position;
use crate::plan::{ApplyPlan, PlanMode, Planner, TxnGroup};

/// How often a waiting stream looks at its gate and its deadline.
const GATE_TICK: Duration = Duration::from_millis(20);

/// What the apply thread is given.
pub(super) enum Work {
    /// A plan, and whether the target transaction may be committed after it.
    Plan {
        plan: Box<ApplyPlan>,
        internal: InternalRows,
        at_boundary: bool,
    },
    /// A group that cannot be planned: it is to be applied up to the transaction that is the cause.
    Refused { group: TxnGroup, error: Error },
    /// The source attests this position; everything before it has been handed over.
    Idle(Position),
    /// The stream stands still for this barrier; everything before it has been handed over.
    Held(Barrier),
}

pub(super) struct PlanStage {
    pub(super) grouper: Grouper,
    pub(super) planner: Planner,
    pub(super) batches: Receiver<Arc<Batch>>,
    /// the apply thread's permission to send one more piece of work
    pub(super) free: Receiver<()>,
    pub(super) work: Sender<Work>,
    /// plans that were applied, cleared
    pub(super) recycled: Receiver<Box<ApplyPlan>>,
    pub(super) control: Arc<Control>,
}

impl PlanStage {
    pub(super) fn run(&mut self) -> Result<()> {
        let mut answered: Option<Barrier> = None;
        let mut free = false;
        let mut input_ended = false;
        while !self.control.expired() {
            let barrier = self.control.gate.wanted();
            if barrier != answered {
                answered = None;
            }
            let gathered = self.grouper.gather(barrier.as_ref())?;
            let queued = !self.grouper.has_waiting() && !self.batches.is_empty();
            match gathered {
                Gathered::Full if free || self.free.recv().is_ok() => {
                    free = false;
                    if self.plan()? { continue } else { break }
                }
                Gathered::Full => break,
                Gathered::Some if free && !queued => {
                    free = false;
                    if self.plan()? { continue } else { break }
                }
                Gathered::Nothing => {
                    if let Some(position) = self.grouper.take_idle() {
                        self.send(Work::Idle(position));
                    }
                    if let Some(barrier) = barrier.as_ref().filter(|_| answered.is_none())
                        && self.grouper.has_reached(barrier)?
                    {
                        answered = Some(barrier.clone());
                        self.send(Work::Held(barrier.clone()));
                    }
                    if input_ended && !self.grouper.has_waiting() {
                        break;
                    }
                }
                Gathered::Some | Gathered::Incomplete => {}
            }
            // After the end of input the rest of an open transaction never comes, and what the gate holds
            // back is read again by the next session.
            if input_ended && (gathered == Gathered::Incomplete || barrier.is_some()) {
                break;
            }
            let can_receive = !input_ended && !self.grouper.has_waiting();
            if !self.wait(
                gathered == Gathered::Some && !free,
                &mut free,
                can_receive.then_some(&mut input_ended),
            ) {
                break;
            }
        }
        Ok(())
    }

    /// Waits for a batch (unless `input_ended` is withheld), for the apply thread if `want_free`, or a tick;
    /// `false` when the apply thread is gone.
    fn wait(&mut self, want_free: bool, free: &mut bool, input_ended: Option<&mut bool>) -> bool {
        let never_batch = crossbeam_channel::never();
        let never_free = crossbeam_channel::never();
        let batches = if input_ended.is_some() {
            &self.batches
        } else {
            &never_batch
        };
        let permits = if want_free { &self.free } else { &never_free };
        crossbeam_channel::select! {
            recv(batches) -> batch => match batch {
                Ok(batch) => self.grouper.add(batch),
                Err(_) => if let Some(ended) = input_ended { *ended = true },
            },
            recv(permits) -> permit => {
                *free = permit.is_ok();
                return *free;
            }
            default(GATE_TICK) => {}
        }
        true
    }

    /// Plans what is gathered and hands it over; `false` when nobody takes it.
    fn plan(&mut self) -> Result<bool> {
        let mut plan = self.recycled.try_recv().unwrap_or_default();
        let at_boundary = self.grouper.cut(&mut plan.group);
        let internal = internal_rows(&plan.group)?;
        let work = match self.planner.compile_into(&mut plan, PlanMode::Net) {
            Ok(()) => Work::Plan {
                plan,
                internal,
                at_boundary,
            },
            Err(error) => Work::Refused {
                group: plan.group,
                error,
            },
        };
        Ok(self.send(work))
    }

    fn send(&self, work: Work) -> bool {
        self.work.send(work).is_ok()
    }
}
