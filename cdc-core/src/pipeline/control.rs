//! What the outside tells a running stream, and what it can learn from it: stop, heartbeats, markers.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::gate::Gate;

/// Heartbeats kept while they are under way; older ones are forgotten (their lag is then unknown, not wrong).
const BEATS_UNDER_WAY: usize = 65_536;

/// Shared by a stream's sessions, its heartbeat writer and whoever waits for it. Outlives restarts.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    renew: AtomicBool,
    spare_lane: AtomicBool,
    deadline: Mutex<Option<Instant>>,
    /// a session's, or that of whoever needs the stream to stand still between two
    turn: tokio::sync::Mutex<()>,
    /// lets a verify hold the stream still
    pub gate: Gate,
    beats: Mutex<VecDeque<(i64, Instant)>>,
    markers: Mutex<HashSet<String>>,
    /// told when the session is to end
    ending: Notify,
    /// told when a marker has arrived
    arriving: Notify,
}

/// While it lives, no other session of the stream begins.
#[derive(Debug)]
#[must_use = "sessions go on as soon as it is dropped"]
pub struct SessionTurn<'a>(#[expect(dead_code, reason = "held")] tokio::sync::MutexGuard<'a, ()>);

/// Returns once `reached`, which whoever makes it so tells `told` of.
async fn until(told: &Notify, reached: impl Fn() -> bool) {
    loop {
        let mut next = pin!(told.notified());
        // Before it is looked: what is told from here on is not missed.
        next.as_mut().enable();
        if reached() {
            return;
        }
        next.await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// A control that lets the stream run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the stream to stop reading and to finish what it has within `timeout`; what is not finished then
    /// is rolled back.
    pub fn stop(&self, timeout: Duration) {
        lock(&self.deadline).get_or_insert_with(|| Instant::now() + timeout);
        self.stop.store(true, Ordering::SeqCst);
        self.ending.notify_waiters();
    }

    /// Whether a stop was asked for.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits until a session may begin, in the order of asking: it is run while what is returned lives. `None` when the
    /// stream is to stop.
    pub async fn begin_session(&self) -> Option<SessionTurn<'_>> {
        // First: who asks the session to end from here on is behind it in line, who did before is ahead of it.
        self.renew.store(false, Ordering::SeqCst);
        tokio::select! {
            biased;
            // Whoever has the turn may wait for what only goes on when the stream has stopped.
            () = until(&self.ending, || self.stopping()) => None,
            turn = self.turn.lock() => Some(SessionTurn(turn)),
        }
    }

    /// Has the session under way, which [`Control::begin_session`] let begin, end after what it has read, and returns when it
    /// has. The next one, which sees what has changed around it, begins when what is returned is dropped.
    pub async fn between_sessions(&self) -> SessionTurn<'_> {
        let ask = async {
            self.renew.store(true, Ordering::SeqCst);
            self.ending.notify_waiters();
        };
        // In line before it is asked: else one that ends at once makes way for the next, which nobody asks.
        let (turn, ()) = tokio::join!(biased; self.turn.lock(), ask);
        SessionTurn(turn)
    }

    /// Has the lane of the next session begin late: it may be what this one failed of.
    pub(crate) fn spare_lane(&self) {
        self.spare_lane.store(true, Ordering::SeqCst);
    }

    /// Whether the lane of the session that begins is to begin late.
    pub(crate) fn lane_is_spared(&self) -> bool {
        self.spare_lane.swap(false, Ordering::SeqCst)
    }

    /// Whether the session is to read no more.
    pub(crate) fn session_ends(&self) -> bool {
        self.stopping() || self.renew.load(Ordering::SeqCst)
    }

    /// Returns once the session is to read no more.
    pub(crate) async fn session_end(&self) {
        until(&self.ending, || self.session_ends()).await;
    }

    /// Whether a stop was asked for and its time is over.
    pub fn expired(&self) -> bool {
        self.stopping() && lock(&self.deadline).is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Notes that heartbeat `beat` is being written now.
    pub fn beat_sent(&self, beat: i64) {
        let mut beats = lock(&self.beats);
        if beats.len() == BEATS_UNDER_WAY {
            beats.pop_front();
        }
        beats.push_back((beat, Instant::now()));
    }

    /// How long ago the newest heartbeat up to `beat` was sent, now that it is committed on the target; older
    /// ones are done with too.
    pub(crate) fn beat_arrived(&self, beat: i64) -> Option<Duration> {
        let mut beats = lock(&self.beats);
        let mut lag = None;
        while let Some((number, sent)) = beats.front().copied() {
            if number > beat {
                break;
            }
            beats.pop_front();
            if number == beat {
                lag = Some(sent.elapsed());
            }
        }
        lag
    }

    /// How long the oldest heartbeat that has not arrived has been under way.
    pub fn oldest_beat_under_way(&self) -> Option<Duration> {
        lock(&self.beats).front().map(|(_, sent)| sent.elapsed())
    }

    /// Forgets heartbeats whose write failed or whose stream was interrupted: their lag means nothing.
    pub fn forget_beats(&self) {
        lock(&self.beats).clear();
    }

    /// Notes that the transaction of marker `id` is committed on the target.
    pub(crate) fn marker_arrived(&self, id: String) {
        lock(&self.markers).insert(id);
        self.arriving.notify_waiters();
    }

    /// Whether the transaction of marker `id` is committed on the target.
    pub fn marker_reached(&self, id: &str) -> bool {
        lock(&self.markers).contains(id)
    }

    /// Returns once the transaction of one of `markers` is committed on the target.
    pub async fn any_marker(&self, markers: &[String]) {
        until(&self.arriving, || {
            markers.iter().any(|id| self.marker_reached(id))
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_session_that_ends_at_once_makes_way_for_whoever_asked_it_to() {
        const ROUNDS: u32 = 20_000;
        let control = Arc::new(Control::new());
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime")
        };
        let of_sessions = Arc::clone(&control);
        let sessions = std::thread::spawn(move || {
            let runtime = runtime();
            while !of_sessions.stopping() {
                runtime.block_on(async {
                    let _turn = of_sessions.begin_session().await;
                    of_sessions.session_end().await;
                });
            }
        });
        let (done, is_done) = channel();
        let of_asking = Arc::clone(&control);
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                drop(runtime().block_on(of_asking.between_sessions()));
            }
            done.send(()).expect("it is waited for");
        });
        let met = is_done.recv_timeout(Duration::from_secs(300));
        assert!(met.is_ok(), "a session goes on beside one who waits for its end");
        control.stop(Duration::ZERO);
        sessions.join().expect("sessions end");
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let control = Control::new();
            let _standing_still = control.between_sessions().await;
            let (begun, ()) = tokio::time::timeout(Duration::from_secs(60), async {
                tokio::join!(control.begin_session(), async { control.stop(Duration::ZERO) })
            })
            .await
            .expect("nobody waits for a turn of a stream that stops");
            assert!(begun.is_none());
        });
    }
}
