//! Messages of a server, read from bytes that are not trusted.
//!
//! ```text
//! tag (1) ‖ length (4, big-endian, counts itself) ‖ body
//! ```

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};

/// What one piece of a copy may have at most; servers send far less. Bytes.
const MAX_COPY: usize = 64 << 20;
/// What any other message may have at most. Bytes.
const MAX_OTHER: usize = 1 << 20;

/// A message of the server.
#[derive(Debug)]
pub(crate) enum Message {
    /// What it wants to log in, by its number, and what goes with it.
    Authentication(u32, Bytes),
    Status(String, String),
    Notice(ServerSaid),
    Error(ServerSaid),
    /// Rows follow.
    Columns,
    Row(Row),
    /// The end of one answer.
    Complete,
    /// It takes the next query.
    Ready,
    /// A copy from the server begins.
    CopyOut,
    /// A copy in both directions begins.
    CopyBoth,
    CopyData(Bytes),
    CopyDone,
    /// Keys to cancel queries with, which nothing here does.
    Key,
}

/// Fields of one row, as text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row(Vec<Option<Bytes>>);

impl Row {
    /// None for NULL, for a field that is not there, and for what is no text.
    pub(crate) fn text(&self, at: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(at)?).ok()
    }

    pub(crate) fn bytes(&self, at: usize) -> Option<&[u8]> {
        self.0.get(at)?.as_deref()
    }
}

/// An error or a notice.
#[derive(Debug, Clone, Default)]
pub(crate) struct ServerSaid {
    /// SQLSTATE.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl ServerSaid {
    /// In one line.
    pub(crate) fn sentence(&self) -> String {
        match &self.detail {
            Some(detail) => format!("{} ({detail})", self.message),
            None => self.message.clone(),
        }
    }
}

impl fmt::Display for ServerSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.sentence(), self.code)
    }
}

impl std::error::Error for ServerSaid {}

/// Takes a whole message off the buffer, if one is there.
pub(crate) fn split(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, String> {
    let Some((&tag, rest)) = buffer.split_first() else { return Ok(None) };
    let Some((length, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let most = if tag == b'd' { MAX_COPY } else { MAX_OTHER };
    if length < 4 || length > most {
        return Err(format!("it sent a message of {length} bytes, which no server does"));
    }
    // No room is made for what only its length is known of.
    if buffer.len() < length + 1 {
        return Ok(None);
    }
    let mut whole = buffer.split_to(length + 1).freeze();
    whole.advance(5);
    Ok(Some((tag, whole)))
}

/// Understands one message.
pub(crate) fn read(tag: u8, mut body: Bytes) -> Result<Message, String> {
    let short = || format!("its message of the kind {:?} is cut short", tag as char);
    Ok(match tag {
        b'R' => Message::Authentication(body.try_get_u32().map_err(|_| short())?, body),
        b'S' => {
            let name = string(&mut body).ok_or_else(short)?;
            Message::Status(name, string(&mut body).ok_or_else(short)?)
        }
        b'N' => Message::Notice(said(body).ok_or_else(short)?),
        b'E' => Message::Error(said(body).ok_or_else(short)?),
        b'T' => Message::Columns,
        b'D' => Message::Row(row(body).ok_or_else(short)?),
        b'C' | b'I' => Message::Complete,
        b'Z' => Message::Ready,
        b'H' => Message::CopyOut,
        b'W' => Message::CopyBoth,
        b'd' => Message::CopyData(body),
        b'c' => Message::CopyDone,
        b'K' => Message::Key,
        // A newer server that offers less of the protocol than was asked for; nothing new was.
        b'v' => Message::Key,
        other => return Err(format!("it sent a message of the unknown kind {other:#04x}")),
    })
}

/// A text that ends with a zero.
pub(crate) fn string(body: &mut Bytes) -> Option<String> {
    let end = body.iter().position(|byte| *byte == 0)?;
    let text = String::from_utf8_lossy(body.get(..end)?).into_owned();
    body.advance(end + 1);
    Some(text)
}

fn said(mut body: Bytes) -> Option<ServerSaid> {
    let mut it = ServerSaid::default();
    loop {
        let kind = body.try_get_u8().ok()?;
        if kind == 0 {
            return Some(it);
        }
        let text = string(&mut body)?;
        match kind {
            b'C' => it.code = text,
            b'M' => it.message = text,
            b'D' => it.detail = Some(text),
            b'H' => it.hint = Some(text),
            _ => {}
        }
    }
}

fn row(mut body: Bytes) -> Option<Row> {
    let count = body.try_get_u16().ok()?;
    let mut fields = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = body.try_get_i32().ok()?;
        if length < 0 {
            fields.push(None);
            continue;
        }
        let length = length as usize;
        if length > body.len() {
            return None;
        }
        fields.push(Some(body.split_to(length)));
    }
    Some(Row(fields))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn messages_are_taken_whole_and_in_order() {
        let mut all = frame(b'C', b"SELECT 1\0");
        all.extend(frame(b'D', &[0, 2, 0, 0, 0, 2, b'o', b'k', 0xff, 0xff, 0xff, 0xff]));
        all.extend(frame(b'E', b"SERROR\0C28P01\0Mno\0Dwhy\0\0"));
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in all {
            buffer.extend_from_slice(&[byte]);
            while let Some((tag, body)) = split(&mut buffer).unwrap() {
                seen.push(read(tag, body).unwrap());
            }
        }
        assert!(buffer.is_empty());
        let [Message::Complete, Message::Row(row), Message::Error(said)] = &seen[..] else {
            panic!("{seen:?}");
        };
        assert_eq!((row.text(0), row.text(1), row.text(2)), (Some("ok"), None, None));
        assert_eq!(said.code, "28P01");
        assert_eq!(said.sentence(), "no (why)");
    }

    #[test]
    fn a_length_that_no_server_sends_is_refused_before_it_is_waited_for() {
        for length in [0u32, 3, MAX_OTHER as u32 + 1, u32::MAX] {
            let mut buffer = BytesMut::from(&b"T"[..]);
            buffer.extend_from_slice(&length.to_be_bytes());
            assert!(split(&mut buffer).is_err(), "{length}");
        }
        // HTTP in place of a server.
        assert!(split(&mut BytesMut::from(&b"HTTP/1.1 400"[..])).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail_otherwise_than_by_saying_so(
            tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(tag, Bytes::from(body.clone()));
            let mut buffer = BytesMut::from(&body[..]);
            while let Ok(Some((tag, body))) = split(&mut buffer) {
                let _ = read(tag, body);
            }
        }
    }
}
