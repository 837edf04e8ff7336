//! Bytes to and from a server: a socket of this machine, TCP, or TLS over TCP.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use rustls::{ClientConnection, StreamOwned};

/// How much is read at once. Bytes.
const READ: usize = 256 << 10;

pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// Whether nobody on the way can read along.
    pub(super) fn is_private(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// The server's certificate, where there is one.
    pub(super) fn certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(tls) => tls.conn.peer_certificates()?.first().map(AsRef::as_ref),
            _ => None,
        }
    }

    /// Reads what is there into `buffer`: none when the time is over, 0 at the end.
    pub(super) fn receive(
        &mut self,
        buffer: &mut BytesMut,
        time: Option<Duration>,
    ) -> io::Result<Option<usize>> {
        // The system takes zero for "for ever".
        self.set_timeout(time.map(|time| time.max(Duration::from_millis(1))))?;
        let start = buffer.len();
        buffer.resize(start + READ, 0);
        let (_, room) = buffer.split_at_mut(start);
        let read = loop {
            let read = match self {
                Self::Unix(socket) => socket.read(room),
                Self::Tcp(socket) => socket.read(room),
                Self::Tls(tls) => tls.read(room),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // TLS without its farewell: what was cut off is told by the protocol within.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break Ok(0),
                other => break other,
            }
        };
        buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(n) => Ok(Some(n)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.write_all(bytes),
            Self::Tcp(socket) => socket.write_all(bytes),
            Self::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    fn set_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.set_read_timeout(time),
            Self::Tcp(socket) => socket.set_read_timeout(time),
            Self::Tls(tls) => tls.sock.set_read_timeout(time),
        }
    }
}
