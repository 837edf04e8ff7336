//! Receives WAL over the wire as the server writes it, and brings it into the archive.
//!
//! What lives here: the conversation with one server, and going on after it broke. What does not: the
//! protocol's words (`wire`), and how files and slices are stored (`backstay_repo::Archive`).
//!
//! - A whole segment becomes the file that `archive_command` would have pushed, byte for byte, so that
//!   both may feed one archive. The segment in work is shipped in slices, every few seconds, or at once
//!   where commits wait for it.
//! - What is reported to the server as written and flushed is durable in *every* repository, as a
//!   segment or as a slice; nothing is kept anywhere else. So a slot holds back what is not, and
//!   `synchronous_standby_names` may name the receiver: a commit that returned is in the repository.
//! - Nothing is remembered here. After a restart the position is what the archive says: the segment
//!   behind the last whole one, from its beginning; its slices are compared with what comes again.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub(crate) mod begin;
pub(crate) mod incoming;
pub(crate) mod ship;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstay_repo::{Compression, Progress, Repository};
use jiff::Timestamp;
use serde::Serialize;

use crate::connection::Parameters;
use crate::session::Source;
use crate::wal::{Lsn, SegmentName, SegmentSize};
use crate::wire::{Message, Wire};
use crate::{PostgresError, PostgresErrorKind, Result};
use incoming::Incoming;
use ship::Shipper;

/// How often the server hears where this side is, at least. Servers give up after a minute.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How long a server may say nothing at all: it sends signs of life when it has nothing else.
const SILENCE: Duration = Duration::from_secs(120);
/// How often a wish to stop is looked for.
const TICK: Duration = Duration::from_millis(100);
/// The same, and how soon the server hears of it, while something is on its way to the repository.
const BUSY_TICK: Duration = Duration::from_millis(2);
/// Whole segments on their way before no more is read.
const SEGMENTS_AHEAD: usize = 2;
/// The first pause before a connection is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Seconds from PostgreSQL's epoch, 2000-01-01, to that of Unix, backwards.
pub(crate) const EPOCH: i64 = 946_684_800;

/// The replication slot that holds WAL back for a receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    /// Make it where it is not there.
    pub create: bool,
}

/// How to receive.
#[derive(Debug, Clone)]
pub struct ReceiveOptions {
    /// None: the server may remove WAL that was not received yet.
    pub slot: Option<Slot>,
    /// What the server calls this receiver, in `synchronous_standby_names` too.
    pub application_name: String,
    /// How often the segment in work is shipped.
    pub every: Duration,
    /// Ship at once. Also so when the server's `synchronous_standby_names` has the name.
    pub synchronous: bool,
    /// Begin where the server is, when it has removed what the archive lacks: a gap stays.
    pub skip_gap: bool,
    pub compression: Option<Compression>,
    /// Connect again when the connection broke.
    pub reconnect: bool,
    /// Receiving ends when it is cancelled.
    pub progress: Arc<Progress>,
    pub state: Arc<ReceiveState>,
}

impl ReceiveOptions {
    pub fn new(application_name: impl Into<String>) -> Self {
        Self {
            slot: None,
            application_name: application_name.into(),
            every: Duration::from_secs(5),
            synchronous: false,
            skip_gap: false,
            compression: None,
            reconnect: true,
            progress: Arc::default(),
            state: Arc::default(),
        }
    }
}

/// Where a receiver is, for others to look at.
#[derive(Debug, Default)]
pub struct ReceiveState(Mutex<ReceiveStatus>);

/// Where a receiver is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReceiveStatus {
    pub connected: bool,
    pub synchronous: bool,
    /// In digits: many readers of JSON round numbers of this size.
    pub system_identifier: Option<String>,
    pub timeline: u32,
    /// The end of what the server has, as it last said.
    pub server: Option<Lsn>,
    /// The end of what came.
    pub received: Option<Lsn>,
    /// The end of what is durable in every repository.
    pub durable: Option<Lsn>,
    /// Whole segments that were archived since the start.
    pub segments: u64,
    pub slices: u64,
    /// How often the connection broke.
    pub reconnects: u64,
}

impl ReceiveState {
    pub fn get(&self) -> ReceiveStatus {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn change(&self, change: impl FnOnce(&mut ReceiveStatus)) {
        change(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

/// Receives until it is told to stop; what came is durable then. Answers where it was.
///
/// # Errors
/// What does not pass by itself: a login that is refused, WAL that the server has removed, an archive
/// with other content, a repository that cannot be written to. With `reconnect`, a connection that
/// breaks is no error.
pub fn receive(
    repositories: &[Repository],
    source: &Source,
    options: &ReceiveOptions,
) -> Result<ReceiveStatus> {
    if repositories.is_empty() {
        return Err(PostgresError::usage("there is no repository to receive into"));
    }
    let mut parameters = Parameters::new(&source.connection)?;
    parameters.set_application_name(&options.application_name);
    let mut pause = FIRST_PAUSE;
    let mut skip = false;
    while !options.progress.is_cancelled() {
        let started = Instant::now();
        let done = receive_once(repositories, &parameters, options, std::mem::take(&mut skip));
        options.state.change(|state| state.connected = false);
        let error = match done {
            Ok(()) => continue,
            Err(error) if options.progress.is_cancelled() && error.is_transient() => break,
            // Only then: a gap at every new connection would be one too many. A server that removes
            // much may also remove where it was a moment ago.
            Err(error) if options.skip_gap && begin::was_removed(&error) => {
                tracing::warn!(source = source.name, %error, "a gap stays in the archive");
                skip = true;
                std::thread::sleep(TICK);
                continue;
            }
            Err(error) => error,
        };
        if !options.reconnect || !error.is_transient() {
            return Err(error);
        }
        if started.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tracing::warn!(source = source.name, %error, "receiving broke off, trying again");
        options.state.change(|state| state.reconnects += 1);
        let until = Instant::now() + pause;
        while Instant::now() < until && !options.progress.is_cancelled() {
            std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(options.state.get())
}

/// Removes a slot, so that the server holds nothing back for it any more.
pub fn drop_slot(source: &Source, slot: &str) -> Result<()> {
    let mut wire = Wire::connect(&Parameters::new(&source.connection)?)?;
    let name = begin::slot_name(slot)?;
    wire.query(&format!("remove the slot {slot}"), &format!("DROP_REPLICATION_SLOT {name}"))?;
    Ok(())
}

/// Receives over one connection, along as many timelines as the server has.
fn receive_once(
    repositories: &[Repository],
    parameters: &Parameters,
    options: &ReceiveOptions,
    skip: bool,
) -> Result<()> {
    let mut wire = Wire::connect(parameters)?;
    let server = begin::identify(&mut wire)?;
    let archives: Vec<_> = repositories
        .iter()
        .map(|repository| {
            let archive = repository.archive(server.system_identifier);
            match options.compression {
                Some(compression) => archive.with_compression(compression),
                None => archive,
            }
        })
        .collect();
    begin::slot(&mut wire, options)?;
    let synchronous =
        options.synchronous || begin::is_synchronous(&mut wire, &options.application_name)?;
    let mut at = match skip {
        true => begin::now(&server),
        false => begin::position(&mut wire, &server, &archives, options)?,
    };
    options.state.change(|state| {
        state.connected = true;
        state.synchronous = synchronous;
        state.system_identifier = Some(server.system_identifier.to_string());
    });
    std::thread::scope(|scope| {
        let shipper = Shipper::start(scope, &archives, &options.state);
        loop {
            begin::history(&mut wire, at.timeline, &archives)?;
            let next = Stream {
                wire: &mut wire,
                shipper: &shipper,
                options,
                server: &server,
                synchronous,
            }
            .follow(at)?;
            match next {
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
    })
}

/// A place in the log, at the beginning of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    timeline: u32,
    number: u64,
}

/// What a server says of itself.
pub(crate) struct Server {
    pub(crate) system_identifier: u64,
    pub(crate) timeline: u32,
    pub(crate) end: Lsn,
    pub(crate) segment_size: SegmentSize,
}

/// The stream of one timeline.
struct Stream<'a, 'env> {
    wire: &'a mut Wire,
    shipper: &'a Shipper<'env>,
    options: &'a ReceiveOptions,
    server: &'a Server,
    synchronous: bool,
}

const DOING: &str = "receive WAL";

impl Stream<'_, '_> {
    /// Receives until the timeline ends, which answers where the next one goes on, or until it is
    /// time to stop.
    fn follow(mut self, at: Position) -> Result<Option<Position>> {
        let size = self.server.segment_size;
        let name = segment_name(at, size)?;
        let start = size.start_of(at.number).ok_or_else(|| impossible(at))?;
        let slot = match &self.options.slot {
            Some(slot) => format!("SLOT {} ", begin::slot_name(&slot.name)?),
            None => String::new(),
        };
        let query = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {}", at.timeline);
        self.wire.send_query(DOING, &query)?;
        match self.wire.message(DOING)? {
            Message::CopyBoth => {}
            // The timeline ended exactly there.
            Message::Columns => return self.next_timeline(at),
            Message::Error(said) => return Err(begin::cannot_start(self.wire, name, said)),
            _ => return Err(self.wire.strange(DOING)),
        }
        let known = self.shipper.known(&name.to_string())?;
        let mut incoming = Incoming::new(name, size, self.server.system_identifier, known)?;
        self.options.state.change(|state| {
            state.timeline = at.timeline;
            state.received = Some(start);
            state.durable = Some(start);
        });
        self.shipper.begin(start);
        let done = self.pump(&mut incoming, name);
        if done.is_err() {
            self.rescue(&mut incoming)?;
        }
        match done? {
            true => self.next_timeline(at),
            false => Ok(None),
        }
    }

    /// Takes what comes and has it shipped; answers whether the timeline ended, and not the wish.
    fn pump(&mut self, incoming: &mut Incoming, name: SegmentName) -> Result<bool> {
        let mut reported = Instant::now();
        let mut heard = Instant::now();
        let mut shipped = Instant::now();
        let mut told = None;
        let mut urgent = false;
        let mut stopping = false;
        let mut ended = false;
        loop {
            self.shipper.check()?;
            if self.options.progress.is_cancelled() {
                stopping = true;
                self.shipper.hurry();
            }
            let over = stopping || ended;
            let due = over || urgent || self.synchronous || shipped.elapsed() >= self.options.every;
            // One slice at a time: what comes meanwhile is in the next one.
            if due && self.shipper.is_idle() {
                if let Some(slice) = incoming.slice() {
                    self.shipper.send(slice);
                }
                shipped = Instant::now();
                urgent = false;
            }
            let durable = self.shipper.durable();
            let news = durable != told;
            if news || reported.elapsed() >= REPORT_EVERY {
                // A server that has nothing to send is asked for a sign of life.
                self.report(durable, heard.elapsed() >= REPORT_EVERY)?;
                told = durable;
                reported = Instant::now();
            }
            if over && self.shipper.is_idle() && !incoming.has_unshipped() {
                // What could not be shipped is not on its way either.
                self.shipper.check()?;
                let durable = self.shipper.durable();
                self.report(durable, false)?;
                self.wire.finish_copy(DOING)?;
                if !ended {
                    return Ok(false);
                }
                return match self.wire.message(DOING)? {
                    Message::Columns => Ok(true),
                    // The server shuts down.
                    Message::Complete => Err(self.wire.lost(DOING, "the server ended the stream")),
                    Message::Error(said) => Err(self.wire.refused(DOING, said)),
                    _ => Err(self.wire.strange(DOING)),
                };
            }
            let tick =
                if self.shipper.is_idle() { TICK.min(self.options.every) } else { BUSY_TICK };
            if over || self.shipper.segments() >= SEGMENTS_AHEAD {
                std::thread::sleep(BUSY_TICK);
                continue;
            }
            let Some(message) = self.wire.message_within(DOING, Some(tick))? else {
                if heard.elapsed() > SILENCE {
                    return Err(self.wire.lost(DOING, "the server said nothing for two minutes"));
                }
                continue;
            };
            heard = Instant::now();
            match message {
                Message::CopyData(data) => match incoming::read(&data) {
                    Some(incoming::Piece::Wal { start, server, bytes }) => {
                        for whole in incoming.take(start, bytes)? {
                            self.shipper.send(whole);
                        }
                        let received = incoming.received();
                        self.options.state.change(|state| {
                            state.received = Some(received);
                            state.server = Some(server.max(received));
                        });
                    }
                    Some(incoming::Piece::Alive { server, reply }) => {
                        self.options.state.change(|state| state.server = Some(server));
                        if reply {
                            let durable = self.shipper.durable();
                            self.report(durable, false)?;
                            told = durable;
                            reported = Instant::now();
                            // A server that shuts down waits until all is durable here.
                            urgent = true;
                        }
                    }
                    None => return Err(self.wire.strange(DOING)),
                },
                Message::CopyDone => ended = true,
                Message::Complete => {
                    return Err(self.wire.lost(DOING, "the server shut down"));
                }
                Message::Error(said) => return Err(begin::cannot_start(self.wire, name, said)),
                _ => return Err(self.wire.strange(DOING)),
            }
        }
    }

    /// Ships what came before the stream broke, however long that takes: the server may be gone, and
    /// nobody else has it then.
    fn rescue(&self, incoming: &mut Incoming) -> Result<()> {
        loop {
            self.shipper.check()?;
            if self.options.progress.is_cancelled() {
                self.shipper.hurry();
            }
            if self.shipper.has_failed() {
                return Ok(());
            }
            if self.shipper.is_idle() {
                match incoming.slice() {
                    Some(slice) => self.shipper.send(slice),
                    None => return Ok(()),
                }
            }
            std::thread::sleep(BUSY_TICK);
        }
    }

    /// Tells the server up to where WAL is durable. Nothing is applied here.
    fn report(&mut self, durable: Option<Lsn>, answer: bool) -> Result<()> {
        let now = Timestamp::now().as_microsecond() - EPOCH * 1_000_000;
        let at = durable.map_or(0, |lsn| lsn.0);
        let mut body = vec![b'r'];
        for value in [at, at, 0, now as u64] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        body.push(u8::from(answer));
        self.wire.send_copy(DOING, &body)
    }

    /// Reads where the timeline ended and which one follows.
    fn next_timeline(&mut self, at: Position) -> Result<Option<Position>> {
        let answer = self.wire.next_answer(DOING)?;
        self.wire.answers(DOING)?;
        let row = answer.rows.first();
        let next = row.and_then(|row| row.text(0)?.parse::<u32>().ok());
        let start = row.and_then(|row| row.text(1)?.parse::<Lsn>().ok());
        let (Some(timeline), Some(start)) = (next, start) else {
            return Err(self.wire.strange(DOING));
        };
        if timeline <= at.timeline {
            return Err(self.wire.strange(DOING));
        }
        tracing::info!(from = at.timeline, to = timeline, at = %start, "the server is on a new timeline");
        Ok(Some(Position { timeline, number: start.segment(self.server.segment_size) }))
    }
}

fn segment_name(at: Position, size: SegmentSize) -> Result<SegmentName> {
    SegmentName::new(at.timeline, at.number, size).ok_or_else(|| impossible(at))
}

fn impossible(at: Position) -> PostgresError {
    PostgresError::new(
        PostgresErrorKind::Server,
        format!("no segment {} can be on timeline {}", at.number, at.timeline),
    )
}
