//! A TCP proxy in front of a server on this machine, to have the network fail on purpose.
//!
//! Each direction of each connection has a reader and a writer thread with a bounded queue between them, so a
//! delay adds latency without taking bandwidth, and a frozen proxy pushes back like a full network buffer.

mod aim;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use aim::Trace;
pub use aim::{Act, Aim, Passed, Place};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks held between reader and writer.
const QUEUE: usize = 64;

/// One of the two ways through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// A running proxy. Dropping it cuts every connection.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled at every change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    frozen: bool,
    refusing: bool,
    ended: bool,
    delay: Duration,
    connections: HashMap<u64, Link>,
    next_id: u64,
    /// The aim under way, and its number.
    aim: Option<(u64, Aim)>,
    aims: u64,
    hit: bool,
    /// What has passed both ways on the connection that was aimed at.
    passed: [Passed; 2],
    to_server: Flow,
    to_client: Flow,
}

/// An open connection.
struct Link {
    client: TcpStream,
    server: TcpStream,
    trace: Trace,
    /// Whether it passes nothing.
    frozen: bool,
    /// Whether what goes to the server is held back, and nothing goes to the client any more.
    held: bool,
}

impl Link {
    fn close(&self) {
        // An end that is closed already is what we want.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

/// What went one way.
#[derive(Default)]
struct Flow {
    bytes: u64,
    cut_at: Option<u64>,
}

impl State {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }

    fn cut_all(&mut self) {
        for (_, link) in self.connections.drain() {
            link.close();
        }
    }

    /// How much of `bytes` may pass on a connection before the place that is aimed at, which it does then; and whether
    /// the place is reached.
    fn pass(&mut self, id: u64, direction: Direction, bytes: &[u8]) -> (usize, bool) {
        let Some(link) = self.connections.get_mut(&id) else {
            return (0, false);
        };
        let Some((number, aim)) = self.aim else {
            link.trace.pass(direction, bytes);
            return (bytes.len(), false);
        };
        let mut begin = 0;
        if direction == Direction::ToServer
            && let Some(end) = link.trace.find(number, aim.text, bytes)
        {
            begin = end;
            if let Some((number, aim)) = self.aim.as_mut().filter(|(_, aim)| aim.skip > 0) {
                aim.skip -= 1;
                // For the next connections it is another aim.
                self.aims += 1;
                *number = self.aims;
            }
        }
        if !link.trace.is_found(number) || self.aim.is_none_or(|(now, _)| now != number) {
            link.trace.pass(direction, bytes.get(begin..).unwrap_or_default());
            return (bytes.len(), false);
        }
        let rest = bytes.get(begin..).unwrap_or_default();
        let place = if direction == aim.direction {
            aim.place
        } else {
            Place::Nowhere
        };
        let (room, reached) = link.trace.pass_to(direction, rest, place);
        self.passed = [Direction::ToServer, Direction::ToClient].map(|way| link.trace.passed(way));
        (begin + room, reached)
    }

    /// Does to a connection that is at its place what was aimed to.
    fn strike(&mut self, id: u64) {
        let Some((_, aim)) = self.aim.take() else { return };
        self.hit = true;
        match aim.act {
            Act::Cut => {
                if let Some(link) = self.connections.remove(&id) {
                    link.close();
                }
            }
            Act::Freeze => {
                if let Some(link) = self.connections.get_mut(&id) {
                    link.frozen = true;
                }
            }
            Act::Hold => {
                if let Some(link) = self.connections.get_mut(&id) {
                    link.held = true;
                    let _ = link.client.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

/// Whether bytes may pass.
enum Admission {
    /// The connection was cut.
    Never,
    /// So many; `true` when it is then at the place that is aimed at.
    Now(usize, bool),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until a chunk that arrived at `arrived` may go on, and tells how much of it may, counting it.
    fn admit(&self, id: u64, direction: Direction, arrived: Instant, bytes: &[u8]) -> Admission {
        let mut state = self.lock();
        loop {
            let Some(link) = state.connections.get(&id) else {
                return Admission::Never;
            };
            if link.held && direction == Direction::ToClient {
                return Admission::Never;
            }
            let stays = state.frozen || link.frozen || link.held;
            let due = arrived + state.delay;
            let wait = due.saturating_duration_since(Instant::now());
            if stays {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else if !wait.is_zero() {
                state = self
                    .changed
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            } else {
                break;
            }
        }
        let flow = state.flow(direction);
        let room = flow.cut_at.map_or(bytes.len(), |at| {
            usize::try_from(at.saturating_sub(flow.bytes)).map_or(bytes.len(), |room| room.min(bytes.len()))
        });
        let (room, reached) = state.pass(id, direction, bytes.get(..room).unwrap_or_default());
        state.flow(direction).bytes += room as u64;
        Admission::Now(room, reached)
    }

    /// Cuts everything if the limit of [`Proxy::cut_after`] is reached.
    fn cut_if_due(&self, direction: Direction) {
        self.change(|state| {
            let flow = state.flow(direction);
            if flow.cut_at.is_some_and(|at| flow.bytes >= at) {
                flow.cut_at = None;
                state.cut_all();
            }
        });
    }
}

impl Proxy {
    /// Starts a proxy to a port of 127.0.0.1.
    pub fn start(upstream: u16) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open the proxy's port")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let acceptor = Some(thread::spawn(move || accept(&listener, upstream, &accepting)));
        Ok(Proxy {
            port,
            shared,
            acceptor,
        })
    }

    /// The port of 127.0.0.1 to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts all connections, once, when so many more bytes have gone one way; exactly these go through.
    pub fn cut_after(&self, bytes: u64, direction: Direction) {
        self.shared.change(|state| {
            let flow = state.flow(direction);
            flow.cut_at = Some(flow.bytes + bytes);
        });
        if bytes == 0 {
            self.shared.cut_if_due(direction);
        }
    }

    /// Cuts all connections now. New ones are taken.
    pub fn cut_all(&self) {
        self.shared.change(State::cut_all);
    }

    /// Holds everything back, connections stay open; what is read meanwhile goes on after [`Proxy::thaw`].
    pub fn freeze(&self) {
        self.shared.change(|state| state.frozen = true);
    }

    /// Ends [`Proxy::freeze`].
    pub fn thaw(&self) {
        self.shared.change(|state| state.frozen = false);
    }

    /// Hits the next connection that fits, in place of what was aimed at before.
    pub fn aim(&self, aim: Aim) {
        self.shared.change(|state| {
            state.aims += 1;
            state.aim = Some((state.aims, aim));
            state.hit = false;
            state.passed = Default::default();
        });
    }

    /// Whether the aim has been hit.
    pub fn has_hit(&self) -> bool {
        self.shared.lock().hit
    }

    /// What has passed to the server and to the client on the connection that is aimed at.
    pub fn passed(&self) -> [Passed; 2] {
        self.shared.lock().passed
    }

    /// Lets the server have what [`Act::Hold`] held back.
    pub fn release(&self) {
        self.shared.change(|state| {
            for link in state.connections.values_mut() {
                link.held = false;
            }
        });
    }

    /// Adds latency, each way.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|state| state.delay = delay);
    }

    /// With `true`, closes new connections at once, as if the server were down; open ones stay.
    pub fn refuse(&self, refuse: bool) {
        self.shared.change(|state| state.refusing = refuse);
    }

    /// The bytes that have gone one way over all connections.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.lock().flow(direction).bytes
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.ended = true;
            state.cut_all();
        });
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, upstream: u16, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        let (refusing, ended) = {
            let state = shared.lock();
            (state.refusing, state.ended)
        };
        if ended {
            return;
        }
        // A server that is down shows to the client as a connection that closes at once.
        if let (Ok(client), false) = (client, refusing) {
            let _ = join(client, upstream, shared);
        }
    }
}

/// Connects a client through to the server.
fn join(client: TcpStream, upstream: u16, shared: &Arc<Shared>) -> std::io::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream));
    let server = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let link = Link {
        client: client.try_clone()?,
        server: server.try_clone()?,
        trace: Trace::default(),
        frozen: false,
        held: false,
    };
    let (client_out, server_out) = (client.try_clone()?, server.try_clone()?);
    let id = {
        let mut state = shared.lock();
        if state.ended {
            return Ok(());
        }
        state.next_id += 1;
        let id = state.next_id;
        state.connections.insert(id, link);
        id
    };
    let up = pump(id, Direction::ToServer, client, server_out, shared);
    let down = pump(id, Direction::ToClient, server, client_out, shared);
    let shared = shared.clone();
    thread::spawn(move || {
        // Both ways have ended: by themselves, or because the connection was cut.
        for way in up.into_iter().chain(down) {
            let _ = way.join();
        }
        shared.change(|state| {
            if let Some(link) = state.connections.remove(&id) {
                link.close();
            }
        });
    });
    Ok(())
}

/// Starts the two threads of one way.
fn pump(
    id: u64,
    direction: Direction,
    from: TcpStream,
    to: TcpStream,
    shared: &Arc<Shared>,
) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = sync_channel(QUEUE);
    let shared = shared.clone();
    [
        thread::spawn(move || read(from, &sender)),
        thread::spawn(move || write(id, direction, to, &receiver, &shared)),
    ]
}

fn read(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        let bytes = chunk.get(..length).unwrap_or_default().to_vec();
        if sender.send((Instant::now(), bytes)).is_err() {
            return;
        }
    }
}

fn write(
    id: u64,
    direction: Direction,
    mut to: TcpStream,
    receiver: &Receiver<(Instant, Vec<u8>)>,
    shared: &Shared,
) {
    while let Ok((arrived, bytes)) = receiver.recv() {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Admission::Now(room, reached) = shared.admit(id, direction, arrived, rest) else {
                return;
            };
            let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            let written = to.write_all(now);
            rest = later;
            if reached {
                shared.change(|state| state.strike(id));
            }
            shared.cut_if_due(direction);
            if written.is_err() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
        }
    }
    // A half-closed connection stays so on the other side.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A server that sends back what it gets, until it gets no more.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        port
    }

    fn client(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    #[test]
    fn passes_both_ways_and_keeps_a_half_close() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = client(&proxy);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();
        let mut out = stream.try_clone().unwrap();
        let copy = sent.clone();
        let writer = thread::spawn(move || {
            out.write_all(&copy).unwrap();
            out.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == sent);
        assert_eq!(proxy.bytes(Direction::ToClient), 3_000_000);
    }

    #[test]
    fn cuts_after_exactly_so_many_bytes_and_then_serves_again() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = client(&proxy);
        proxy.cut_after(100_001, Direction::ToClient);
        let mut out = stream.try_clone().unwrap();
        let writer = thread::spawn(move || out.write_all(&[1; 400_000]));
        let mut received = Vec::new();
        // The end may come as a reset; what was read before counts.
        let _ = stream.read_to_end(&mut received);
        assert_eq!(received.len(), 100_001);
        let _ = writer.join();
        let mut again = client(&proxy);
        again.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        again.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }

    #[test]
    fn freezes_thaws_delays_and_cuts() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = client(&proxy);
        proxy.freeze();
        stream.write_all(b"held").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(stream.read(&mut [0; 4]).is_err());
        stream.set_read_timeout(Some(LONG)).unwrap();
        proxy.thaw();
        stream.read_exact(&mut [0; 4]).unwrap();

        proxy.delay(Duration::from_millis(100));
        let begun = Instant::now();
        stream.write_all(b"slow").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(200));

        assert_eq!(proxy.connections(), 1);
        proxy.cut_all();
        assert_eq!(
            (stream.read(&mut [0; 4]).unwrap_or(0), proxy.connections()),
            (0, 0)
        );
    }

    #[test]
    fn refuses_new_connections_only() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut open = client(&proxy);
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0; 1]).unwrap();
        proxy.refuse(true);
        assert_eq!(client(&proxy).read(&mut [0; 1]).unwrap_or(0), 0);
        open.write_all(b"y").unwrap();
        open.read_exact(&mut [0; 1]).unwrap();
        proxy.refuse(false);
        let mut next = client(&proxy);
        next.write_all(b"z").unwrap();
        next.read_exact(&mut [0; 1]).unwrap();
    }
}
