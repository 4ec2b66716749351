//! A lane that applies nothing: it keeps what it is given, and answers as it is told.

use crate::ahead::{Ahead, Outcome, SharedSpill, Taken, Task, lane};
use crate::error::Result;

/// The other end of an [`Ahead`].
#[derive(Debug)]
pub struct LaneModel {
    taken: Taken,
    /// the transaction that it has
    given: Option<Given>,
}

#[derive(Debug)]
struct Given {
    number: u64,
    bytes: Vec<u8>,
    frames: SharedSpill,
    /// segments that were read as soon as they were told of
    segments: usize,
    ended: bool,
}

impl LaneModel {
    /// A lane, and the source's end of it.
    pub fn new() -> (Ahead, LaneModel) {
        let (ahead, taken) = lane();
        (ahead, LaneModel { taken, given: None })
    }

    /// Takes in what was told, reading what is written.
    ///
    /// # Errors
    /// When what is written cannot be read.
    pub fn listen(&mut self) -> Result<()> {
        while let Ok(task) = self.taken.tasks.try_recv() {
            match (task, &mut self.given) {
                (
                    Task::Begin {
                        number,
                        opening,
                        frames,
                    },
                    given,
                ) => {
                    *given = Some(Given {
                        number,
                        bytes: opening,
                        frames,
                        segments: 0,
                        ended: false,
                    });
                }
                (Task::More(_), Some(given)) => {
                    let is_there = given.frames.lock().read(given.segments, &mut given.bytes)?;
                    given.segments += 1;
                    if !is_there {
                        // It was taken back meanwhile.
                        self.give_up();
                    }
                }
                (Task::End(_), Some(given)) => {
                    let more = given.frames.lock().read(given.segments, &mut given.bytes)?;
                    assert!(!more, "a segment was not told of");
                    given.ended = true;
                }
                (Task::Drop, given) => *given = None,
                // Of a transaction that was given up.
                (Task::More(_) | Task::End(_), None) => {}
            }
        }
        Ok(())
    }

    /// Gives up the transaction that it has.
    pub fn give_up(&mut self) {
        if let Some(given) = self.given.take() {
            let _ = self.taken.outcome.send((given.number, Outcome::GivenUp));
        }
    }

    /// Says that it has all of the transaction that has ended; what it was given of it.
    pub fn is_ready(&mut self) -> Option<Vec<u8>> {
        let given = self.given.take_if(|given| given.ended)?;
        let _ = self.taken.outcome.send((given.number, Outcome::Ready));
        Some(given.bytes)
    }
}
