//! A way to a real server on which single requests come to harm.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What befalls a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// The connection is cut after so many bytes of its body.
    Cut(usize),
    /// It gets this status, and a word about it, and never reaches the server.
    Refused(u16, &'static str),
    /// One bit of its body arrives otherwise.
    Altered,
    /// It is done, and the answer is lost.
    AnswerLost,
}

pub struct Proxy {
    port: u16,
    stopped: Arc<AtomicBool>,
    /// Bytes of bodies that were sent to it.
    pub received: Arc<AtomicU64>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Proxy {
    /// In front of `server` (`http://127.0.0.1:port`). `harm` is asked with the first line of each
    /// request.
    pub fn start(
        server: &str,
        harm: impl Fn(&str) -> Option<Harm> + Send + Sync + 'static,
    ) -> Self {
        let server: u16 =
            server.split('/').nth(2).unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stopped, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop, bytes, harm) = (Arc::clone(&stopped), Arc::clone(&received), Arc::new(harm));
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (bytes, harm) = (Arc::clone(&bytes), Arc::clone(&harm));
                // Whatever breaks here is what a client must cope with.
                std::thread::spawn(move || pass(&client, server, &*harm, &bytes));
            }
        });
        Self { port, stopped, received }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// One request for each connection.
fn pass(
    client: &TcpStream,
    server: u16,
    harm: &dyn Fn(&str) -> Option<Harm>,
    bytes: &AtomicU64,
) -> Option<()> {
    let mut reader = BufReader::new(client);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let (mut head, mut length) = (first.clone(), 0_usize);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim_end().is_empty() {
            break;
        }
        if !lower.starts_with("connection:") {
            head.push_str(&line);
        }
    }
    head.push_str("connection: close\r\n\r\n");
    let harm = harm(first.trim_end());
    let wanted = if let Some(Harm::Cut(after)) = harm { after.min(length) } else { length };
    let mut body = vec![0; wanted];
    reader.read_exact(&mut body).ok()?;
    bytes.fetch_add(wanted as u64, Ordering::SeqCst);
    match harm {
        Some(Harm::Cut(_)) => {
            client.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
        Some(Harm::Refused(status, code)) => {
            let said = format!("<Error><Code>{code}</Code><Message>as told</Message></Error>");
            write!(
                &mut &*client,
                "HTTP/1.1 {status} Told\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{said}",
                said.len()
            )
            .ok()?;
            return None;
        }
        Some(Harm::Altered) => body[length / 2] ^= 1,
        _ => {}
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", server)).ok()?;
    upstream.write_all(head.as_bytes()).ok()?;
    upstream.write_all(&body).ok()?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).ok()?;
    if harm == Some(Harm::AnswerLost) {
        client.shutdown(std::net::Shutdown::Both).ok()?;
        return None;
    }
    (&mut &*client).write_all(&answer).ok()
}
