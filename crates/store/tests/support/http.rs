//! An HTTP/1.1 server that answers what a closure says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the query, still escaped.
    pub path: String,
    pub query: BTreeMap<String, String>,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Closes the connection without any answer.
    pub hang_up: bool,
}

impl Response {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// An error as S3, GCS and Azure write them.
    pub fn error(status: u16, code: &str) -> Self {
        let xml = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>because</Message></Error>"
        );
        Self::status(status).header("content-type", "application/xml").body(xml)
    }
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;

pub struct Server {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stopping = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let stop = Arc::clone(&stopping);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(stream), handler) = (stream, Arc::clone(&handler)) else { continue };
                std::thread::spawn(move || serve(&stream, &*handler));
            }
        });
        Self { address, stopping }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: &TcpStream, handler: &Handler) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let request = receive(&mut reader)?;
        let response = handler(&request);
        if response.hang_up {
            return None;
        }
        let mut head = format!("HTTP/1.1 {} Status\r\n", response.status);
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !response.headers.iter().any(|(name, _)| *name == "content-length") {
            head += &format!("content-length: {}\r\n", response.body.len());
        }
        let closes = request.headers.get("connection").is_some_and(|value| value == "close");
        if closes {
            head += "connection: close\r\n";
        }
        let mut whole = format!("{head}\r\n").into_bytes();
        if request.method == "HEAD" {
            writer.write_all(&whole).ok()?;
            if closes {
                return None;
            }
            continue;
        }
        let sent = response.cut.unwrap_or(response.body.len());
        // In one piece: two small ones wait for each other on their way.
        whole.extend_from_slice(&response.body[..sent]);
        writer.write_all(&whole).ok()?;
        if response.cut.is_some() || closes {
            return None;
        }
    }
}

fn receive(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query
        .split('&')
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (!name.is_empty()).then(|| (unescape(name), unescape(value)))
        })
        .collect();
    Some(Request { method, path: path.to_owned(), query, headers, body })
}

pub fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
