//! Records of packs, read by several threads and compared with their ids; what comes of it is handed
//! on in the order in which it was asked for.
//!
//! A pack is read in pieces, and of it no more than what is wanted: a thread holds a few MiB, however
//! large packs are.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use crossbeam_channel::Receiver;

use crate::codec::Codec;
use crate::crypto::PackKey;
use crate::index::{Location, PackInfo};
use crate::pack::{Record, read_records};
use crate::repository::Repository;
use crate::session::content_id;
use crate::{Compression, Progress, Result};

/// Read at once of a pack. Bytes.
const PIECE: u64 = 4 << 20;
/// What lies between two wanted records and is read along. Bytes.
const GAP: u64 = 128 << 10;
const THREADS: usize = 4;

/// A record as the index tells of it: whoever may only write can list a chunk where another one lies,
/// which is what it says itself, and not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Listed {
    pub offset: u32,
    pub length: u32,
    /// The first half of its id.
    pub id: u128,
}

impl Listed {
    pub fn new(id: &[u8; 16], at: Location) -> Self {
        Self { offset: at.offset, length: at.length, id: u128::from_be_bytes(*id) }
    }

    pub fn of(record: &Record) -> Self {
        Self { offset: record.offset, length: record.length, id: record.id.prefix() }
    }
}

/// Some records of a pack.
pub(super) struct Wanted<'i> {
    pub pack: &'i PackInfo,
    pub records: HashSet<Listed>,
}

/// Records that are what their ids say.
pub(super) struct Piece {
    bytes: Vec<u8>,
    records: Vec<(Record, Range<usize>)>,
}

impl Piece {
    /// Each record, and its content as the codec wrote it.
    pub fn records(&self) -> impl Iterator<Item = (&Record, &[u8])> {
        let plain = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
        self.records.iter().map(move |(record, range)| (record, plain(range)))
    }
}

/// Reads the records of `wanted`, and tells of each pack by its place in that list, of one after the
/// other: of its records that are right, piece by piece, then whether it could be read to its end.
///
/// # Errors
/// Those of `tell`; damage of a pack is told.
pub(super) fn each_right(
    repository: &Repository,
    wanted: &[Wanted<'_>],
    progress: &Progress,
    mut tell: impl FnMut(usize, Told<'_>) -> Result<()>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    let threads = threads.clamp(1, THREADS).min(wanted.len());
    let next = AtomicUsize::new(0);
    let ended = AtomicBool::new(false);
    type Sent = Result<Option<Piece>>;
    let (mut senders, mut receivers) = (Vec::new(), Vec::<Receiver<Sent>>::new());
    for _ in wanted {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        senders.push(Mutex::new(Some(sender)));
        receivers.push(receiver);
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut reader = Reader::new(repository);
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    let at = (wanted.get(number), senders.get(number));
                    let (Some(one), Some(sender)) = at else { return };
                    // Owned, so that who listens notices when this thread panics.
                    let sender = sender.lock().unwrap_or_else(|e| e.into_inner()).take();
                    let Some(sender) = sender.filter(|_| !ended.load(Relaxed)) else { return };
                    // Nobody listens any more only when it has been given up.
                    let end = reader.read(one, |piece| sender.send(Ok(Some(piece))).is_ok());
                    let _ = sender.send(end.map(|()| None));
                }
            });
        }
        let mut listen = |receivers: &[Receiver<Sent>]| -> Result<()> {
            for (number, receiver) in receivers.iter().enumerate() {
                loop {
                    progress.check()?;
                    match receiver.recv() {
                        Ok(Ok(Some(piece))) => tell(number, Told::Piece(&piece))?,
                        Ok(Ok(None)) => break tell(number, Told::End(Ok(())))?,
                        Ok(Err(error)) => break tell(number, Told::End(Err(error)))?,
                        // Its thread panicked, and the scope says so.
                        Err(_) => return Ok(()),
                    }
                }
            }
            Ok(())
        };
        let listened = listen(&receivers);
        ended.store(true, Relaxed);
        drop(receivers);
        listened
    })
}

/// What there is to say of a pack.
pub(super) enum Told<'p> {
    Piece(&'p Piece),
    End(Result<()>),
}

/// One thread's way to read.
struct Reader<'r> {
    repository: &'r Repository,
    codec: Codec,
    content: Vec<u8>,
}

impl<'r> Reader<'r> {
    fn new(repository: &'r Repository) -> Self {
        Self { repository, codec: Codec::new(Compression::None), content: Vec::new() }
    }

    /// Hands on pieces of a pack, until `take` wants no more.
    fn read(&mut self, wanted: &Wanted<'_>, mut take: impl FnMut(Piece) -> bool) -> Result<()> {
        let (pack, store) = (wanted.pack, self.repository.store());
        let name = pack.key();
        let key = self.repository.pack_key(pack)?;
        let mut records =
            read_records(&name, pack.size, &key, |range| Ok(store.read_range(&name, range)?))?;
        records.retain(|record| wanted.records.contains(&Listed::of(record)));
        records.sort_unstable_by_key(|record| record.offset);
        let mut rest = records.as_slice();
        while let Some(first) = rest.first() {
            let start = u64::from(first.offset);
            let mut end = start;
            let fits = |record: &&Record| {
                let (from, to) = bounds(record);
                let near = end == start || (from <= end + GAP && to - start <= PIECE);
                end = if near { to.max(end) } else { end };
                near
            };
            let count = rest.iter().take_while(fits).count();
            let (these, others) = rest.split_at(count);
            rest = others;
            let bytes = Vec::from(store.read_range(&name, start..end)?);
            if !take(self.open(&key, start, bytes, these)) {
                break;
            }
        }
        Ok(())
    }

    /// Opens records in place, and keeps those that are right.
    fn open(&mut self, key: &PackKey, start: u64, mut bytes: Vec<u8>, these: &[Record]) -> Piece {
        let keys = self.repository.keys();
        let mut records = Vec::with_capacity(these.len());
        for record in these {
            let from = (u64::from(record.offset) - start) as usize;
            let sealed = bytes.get_mut(from..from + record.length as usize).unwrap_or_default();
            let (kind, offset) = (record.kind as u8, u64::from(record.offset));
            let Some(plain) = key.open(kind, offset, &record.id.0, sealed) else { continue };
            let id_key = if record.kind.is_metadata() { &keys.metadata_id } else { &keys.data_id };
            if self.codec.decode(plain, &mut self.content).is_some()
                && content_id(id_key, record.kind, &self.content) == record.id
            {
                records.push((*record, from..from + plain.len()));
            }
        }
        Piece { bytes, records }
    }
}

fn bounds(record: &Record) -> (u64, u64) {
    let from = u64::from(record.offset);
    (from, from + u64::from(record.length))
}
