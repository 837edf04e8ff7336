//! A client of PostgreSQL's replication protocol: what SQL sessions have no words for.
//!
//! What lives here: connecting to the first server that fits, encryption, logging in, simple queries
//! and copies in either direction, all with calls that wait. What does not: what the queries mean,
//! which is for backups over the wire and for the receiver of WAL.
//!
//! The messages are those of PostgreSQL's `protocol.sgml`, "Message Formats". Nothing that a server
//! says is trusted to be well-formed: lengths are bounded, and a message that cannot be read ends the
//! connection.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub(crate) mod base;
pub(crate) mod login;
pub(crate) mod message;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;

use crate::connection::{Parameters, Wanted, not_wanted};
use crate::session::VERSIONS;
use crate::{PostgresError, PostgresErrorKind, Result};

pub(crate) use message::{Message, Row, ServerSaid};
use stream::Stream;

#[cfg(test)]
mod strangers;
#[cfg(test)]
mod tests;

/// What a server answered to a query.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) rows: Vec<Row>,
}

/// A connection with one server, in replication mode.
pub(crate) struct Wire {
    stream: Stream,
    buffer: BytesMut,
    place: String,
    /// What the server reported about itself.
    reported: BTreeMap<String, String>,
    version: u32,
    /// Nothing can be said any more: the connection broke, or lost its thread.
    broken: bool,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Wire {
    /// Connects to the first of the servers that takes the login and is what is wanted.
    pub(crate) fn connect(parameters: &Parameters) -> Result<Self> {
        let wanted = parameters.wanted()?;
        let endpoints = parameters.endpoints()?;
        let mut failure: Option<PostgresError> = None;
        // A standby where there is one, else any: in two rounds.
        let rounds = match wanted {
            Wanted::PreferStandby => vec![Wanted::Standby, Wanted::Any],
            other => vec![other],
        };
        for wanted in rounds {
            for endpoint in &endpoints {
                let connected = login::connect(parameters, endpoint)
                    .and_then(|mut wire| wire.fits(wanted).map(|()| wire));
                match connected {
                    Ok(wire) => return Ok(wire),
                    // The first reason is that of the server that is named first.
                    Err(error) => drop(failure.get_or_insert(error)),
                }
            }
        }
        Err(failure.unwrap_or_else(|| PostgresError::usage("the connection names no server")))
    }

    fn fits(&mut self, wanted: Wanted) -> Result<()> {
        if !VERSIONS.contains(&self.major()) {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the server on {} is PostgreSQL {}", self.place, self.major()),
            )
            .with_hint("PostgreSQL 13 to 18 are supported"));
        }
        if matches!(wanted, Wanted::Any | Wanted::PreferStandby) {
            return Ok(());
        }
        match wanted.refuses(self.in_recovery()?, self.is_read_only()?) {
            None => Ok(()),
            Some(what) => Err(not_wanted(&self.place, what)),
        }
    }

    /// Whether the server follows another.
    pub(crate) fn in_recovery(&mut self) -> Result<bool> {
        match self.reported.get("in_hot_standby") {
            Some(said) => Ok(said == "on"),
            // Before 14 the server does not say: what cannot be written to is taken for a standby.
            None => self.is_read_only(),
        }
    }

    fn is_read_only(&mut self) -> Result<bool> {
        Ok(self.show("transaction_read_only")? == "on")
    }

    pub(crate) fn major(&self) -> u32 {
        self.version / 10000
    }

    /// Host and port, for messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// Whether nothing can be said any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// A setting of the server.
    pub(crate) fn show(&mut self, name: &str) -> Result<String> {
        let doing = format!("read the setting {name}");
        let answers = self.query(&doing, &format!("SHOW {name}"))?;
        let value = answers.first().and_then(|a| a.rows.first()).and_then(|row| row.text(0));
        value.map(str::to_owned).ok_or_else(|| self.strange(&doing))
    }

    /// Sends a query and reads all that it answers, which must be no copy.
    pub(crate) fn query(&mut self, doing: &str, text: &str) -> Result<Vec<Answer>> {
        self.send_query(doing, text)?;
        self.answers(doing)
    }

    /// Sends a query without reading what it answers.
    pub(crate) fn send_query(&mut self, doing: &str, text: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(text, &mut out)
            .map_err(|error| PostgresError::usage(format!("could not {doing}: {error}")))?;
        self.send(doing, &out)
    }

    /// All answers up to where the server takes the next query.
    pub(crate) fn answers(&mut self, doing: &str) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        let mut failure = None;
        loop {
            match self.message(doing)? {
                Message::Columns => answers.push(Answer::default()),
                Message::Row(row) => match answers.last_mut() {
                    Some(Answer { rows }) => rows.push(row),
                    None => return Err(self.strange(doing)),
                },
                Message::Error(said) => drop(failure.get_or_insert(said)),
                Message::Complete => {}
                Message::Ready => break,
                _ => return Err(self.strange(doing)),
            }
        }
        match failure {
            Some(said) => Err(self.refused(doing, said)),
            None => Ok(answers),
        }
    }

    /// The rows of the next answer, up to its end, when more answers or a copy may follow.
    pub(crate) fn next_answer(&mut self, doing: &str) -> Result<Answer> {
        let mut answer = Answer::default();
        loop {
            match self.message(doing)? {
                Message::Columns => {}
                Message::Row(row) => answer.rows.push(row),
                Message::Complete => return Ok(answer),
                Message::Error(said) => return Err(self.refused(doing, said)),
                _ => return Err(self.strange(doing)),
            }
        }
    }

    /// The next message, however long it takes.
    pub(crate) fn message(&mut self, doing: &str) -> Result<Message> {
        loop {
            if let Some(message) = self.message_within(doing, None)? {
                return Ok(message);
            }
        }
    }

    /// The next message; none when the time is over. What the server only mentions is passed over.
    pub(crate) fn message_within(
        &mut self,
        doing: &str,
        time: Option<Duration>,
    ) -> Result<Option<Message>> {
        loop {
            let Some((tag, body)) = self.frame(doing, time)? else { return Ok(None) };
            let message = match message::read(tag, body) {
                Ok(message) => message,
                Err(what) => {
                    self.broken = true;
                    return Err(self.lost(doing, &what));
                }
            };
            match message {
                Message::Notice(said) => {
                    tracing::debug!(server = self.place, notice = said.message, "the server says");
                }
                Message::Status(name, value) => {
                    self.reported.insert(name, value);
                }
                other => return Ok(Some(other)),
            }
        }
    }

    fn frame(&mut self, doing: &str, time: Option<Duration>) -> Result<Option<(u8, Bytes)>> {
        loop {
            match message::split(&mut self.buffer) {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(what) => {
                    self.broken = true;
                    return Err(self.lost(doing, &what));
                }
            }
            match self.stream.receive(&mut self.buffer, time) {
                Ok(Some(0)) => {
                    self.broken = true;
                    return Err(self.lost(doing, "the server closed the connection"));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.broken = true;
                    return Err(self.lost(doing, &error.to_string()).with_source(error));
                }
            }
        }
    }

    /// Sends bytes of a message.
    pub(crate) fn send(&mut self, doing: &str, bytes: &[u8]) -> Result<()> {
        self.stream.send(bytes).map_err(|error| {
            self.broken = true;
            self.lost(doing, &error.to_string()).with_source(error)
        })
    }

    /// Sends one piece of a copy to the server.
    pub(crate) fn send_copy(&mut self, doing: &str, data: &[u8]) -> Result<()> {
        let length = u32::try_from(data.len() + 4).unwrap_or(u32::MAX);
        let mut out = Vec::with_capacity(data.len() + 5);
        out.push(b'd');
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(data);
        self.send(doing, &out)
    }

    /// Tells the server that this side of a copy is over.
    pub(crate) fn finish_copy(&mut self, doing: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.send(doing, &out)
    }

    /// What the server refused to do.
    pub(crate) fn refused(&self, doing: &str, said: ServerSaid) -> PostgresError {
        // Class 57P: the server ends the session.
        let broken = said.code.starts_with("57P");
        let kind = if broken { PostgresErrorKind::Connection } else { PostgresErrorKind::Server };
        let it = PostgresError::new(kind, format!("could not {doing}: {}", said.sentence()));
        let it = match said.code.as_str() {
            "42501" => {
                it.with_hint("the user needs the attribute REPLICATION: ALTER ROLE … REPLICATION")
            }
            "53300" | "53400" => {
                it.with_hint("raise max_wal_senders or max_replication_slots").transient()
            }
            "57P03" => it.with_hint("the server is starting up or shutting down; try again"),
            _ => match &said.hint {
                Some(hint) => it.with_hint(hint.clone()),
                None => it,
            },
        };
        let it = if broken { it.transient() } else { it };
        it.with_source(said)
    }

    /// The connection broke.
    pub(crate) fn lost(&self, doing: &str, what: &str) -> PostgresError {
        PostgresError::new(
            PostgresErrorKind::Connection,
            format!(
                "the connection with PostgreSQL on {} broke: could not {doing}: {what}",
                self.place
            ),
        )
        .with_hint("look into the server's log, and whether the network lets idle connections live")
        .transient()
    }

    /// The server said something that has no place here.
    pub(crate) fn strange(&mut self, doing: &str) -> PostgresError {
        self.broken = true;
        PostgresError::new(
            PostgresErrorKind::Server,
            format!("could not {doing}: the server on {} answered what was not asked", self.place),
        )
        .with_hint("is it a PostgreSQL server, or something in front of one that does not pass replication on?")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if !self.broken {
            // Only a courtesy: the server ends its side either way.
            let mut out = BytesMut::new();
            frontend::terminate(&mut out);
            let _ = self.stream.send(&out);
        }
    }
}
