//! Whether a server takes connections: what `pg_isready` does, without needing a login.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Sends a startup packet and looks at the answer's first message. Anything but "starting up"
/// (SQLSTATE 57P03) means that sessions can be opened: even a refusal comes from the authentication rules.
pub(super) fn accepts_connections(port: u16) -> bool {
    answer(port).is_ok_and(|answer| !answer.windows(7).any(|field| field == b"C57P03\0"))
}

fn answer(port: u16) -> std::io::Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // StartupMessage: length, protocol 3.0, parameters, terminator ("Message Formats" in the manual).
    let parameters = b"user\0postgres\0database\0postgres\0\0";
    let mut packet = Vec::new();
    packet.extend_from_slice(&(8 + parameters.len() as u32).to_be_bytes());
    packet.extend_from_slice(&196_608_u32.to_be_bytes());
    packet.extend_from_slice(parameters);
    stream.write_all(&packet)?;
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [kind, length @ ..] = header;
    let mut body = Vec::new();
    if kind == b'E' {
        let length = u64::from(u32::from_be_bytes(length))
            .saturating_sub(4)
            .min(65_536);
        stream.take(length).read_to_end(&mut body)?;
    }
    Ok(body)
}
