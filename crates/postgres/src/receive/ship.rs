//! The thread that brings what came into the repositories, while more comes.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::Scope;
use std::time::Duration;

use backstay_repo::{Archive, RepoError, RepoErrorKind, Slice, push_to_all};
use backstay_store::failpoint;

use super::ReceiveState;
use crate::wal::{Lsn, SegmentName};
use crate::{PostgresError, Result};

/// The first pause before a repository is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Something to be made durable.
pub(crate) enum Parcel {
    Segment {
        name: SegmentName,
        end: Lsn,
        content: Vec<u8>,
    },
    Slice {
        name: SegmentName,
        start: u32,
        end: Lsn,
        bytes: Vec<u8>,
    },
    /// An earlier run shipped up to here.
    There {
        end: Lsn,
    },
}

#[derive(Default)]
struct Shared {
    durable: Option<Lsn>,
    /// Parcels on their way, and how many of them are segments.
    parcels: usize,
    segments: usize,
    failure: Option<PostgresError>,
    /// Nothing is shipped any more, whoever was told why.
    failed: bool,
    stopped: bool,
}

pub(super) struct Shipper<'env> {
    archives: &'env [Archive],
    sender: Option<Sender<Parcel>>,
    shared: Arc<Mutex<Shared>>,
    state: &'env ReceiveState,
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|e| e.into_inner())
}

impl<'env> Shipper<'env> {
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, 'env>,
        archives: &'env [Archive],
        state: &'env ReceiveState,
    ) -> Self {
        let (sender, parcels) = mpsc::channel::<Parcel>();
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let theirs = shared.clone();
        scope.spawn(move || {
            for parcel in parcels {
                let segment = matches!(parcel, Parcel::Segment { .. });
                let slice = matches!(parcel, Parcel::Slice { .. });
                let done = ship(archives, &parcel, &theirs);
                let mut shared = lock(&theirs);
                shared.parcels -= 1;
                shared.segments -= usize::from(segment);
                match done {
                    Ok(end) => {
                        shared.durable = Some(end);
                        state.change(|state| {
                            state.durable = Some(end);
                            state.segments += u64::from(segment);
                            state.slices += u64::from(slice);
                        });
                    }
                    Err(error) => {
                        shared.failure = Some(error);
                        shared.failed = true;
                        return;
                    }
                }
                drop(shared);
                clear_away(archives, &parcel);
            }
        });
        Self { archives, sender: Some(sender), shared, state }
    }

    /// A stream begins here: all before is durable.
    pub(super) fn begin(&self, start: Lsn) {
        lock(&self.shared).durable = Some(start);
        self.state.change(|state| state.durable = Some(start));
    }

    /// What the archives have of a segment in slices: as much as all of them have.
    pub(super) fn known(&self, segment: &str) -> Result<Vec<u8>> {
        let mut known: Option<Vec<u8>> = None;
        for archive in self.archives {
            let has = match archive.assemble(segment) {
                Ok(has) => has.unwrap_or_default(),
                // A host that may only add cannot look: it stores once more what is there.
                Err(error) if error.kind() == RepoErrorKind::WrongKey => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            known = Some(match known {
                Some(less) if less.len() <= has.len() => less,
                _ => has,
            });
        }
        Ok(known.unwrap_or_default())
    }

    pub(super) fn send(&self, parcel: Parcel) {
        let mut shared = lock(&self.shared);
        shared.parcels += 1;
        shared.segments += usize::from(matches!(parcel, Parcel::Segment { .. }));
        // A thread that ended left its reason.
        if let Some(sender) = &self.sender {
            let _ = sender.send(parcel);
        }
    }

    pub(super) fn durable(&self) -> Option<Lsn> {
        lock(&self.shared).durable
    }

    pub(super) fn is_idle(&self) -> bool {
        lock(&self.shared).parcels == 0
    }

    pub(super) fn segments(&self) -> usize {
        lock(&self.shared).segments
    }

    /// From here on each parcel is tried once more at most: somebody waits for the end.
    pub(super) fn hurry(&self) {
        lock(&self.shared).stopped = true;
    }

    pub(super) fn has_failed(&self) -> bool {
        lock(&self.shared).failed
    }

    /// Says why nothing is shipped any more, once.
    pub(super) fn check(&self) -> Result<()> {
        lock(&self.shared).failure.take().map_or(Ok(()), Err)
    }
}

impl Drop for Shipper<'_> {
    fn drop(&mut self) {
        lock(&self.shared).stopped = true;
        self.sender.take();
    }
}

/// Makes a parcel durable in every archive, however often it takes; answers up to where WAL is there.
fn ship(archives: &[Archive], parcel: &Parcel, shared: &Mutex<Shared>) -> Result<Lsn> {
    let mut pause = FIRST_PAUSE;
    loop {
        let done = match parcel {
            Parcel::Segment { name, content, .. } => {
                let content: &[u8] = content;
                // It may be there from `archive_command`.
                first_error(push_to_all(archives, &name.to_string(), &content, true))
            }
            Parcel::Slice { name, start, bytes, .. } => {
                let name = name.to_string();
                let end = *start + bytes.len() as u32;
                let name = Slice { start: *start, end }.name(&name);
                let bytes: &[u8] = bytes;
                first_error(push_to_all(archives, &name, &bytes, false))
            }
            Parcel::There { end } => return Ok(*end),
        };
        let error = match done {
            Ok(()) => {
                return Ok(match parcel {
                    Parcel::Segment { end, .. } => {
                        failpoint::hit("wal-receive-segment");
                        *end
                    }
                    Parcel::Slice { end, .. } | Parcel::There { end } => {
                        failpoint::hit("wal-receive-slice");
                        *end
                    }
                });
            }
            Err(error) => error,
        };
        let passes = error.is_transient()
            || matches!(error.kind(), RepoErrorKind::Store | RepoErrorKind::Io);
        if !passes || lock(shared).stopped {
            return Err(error.into());
        }
        tracing::warn!(%error, "WAL could not be stored, trying again; the server keeps it");
        // In steps, so that a wish to stop is heard.
        let mut left = pause;
        while left > Duration::ZERO && !lock(shared).stopped {
            let step = left.min(Duration::from_millis(100));
            std::thread::sleep(step);
            left -= step;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn first_error<T>(results: Vec<std::result::Result<T, RepoError>>) -> Result<(), RepoError> {
    results.into_iter().try_for_each(|result| result.map(drop))
}

/// Removes slices that the parcel replaces. What cannot be removed is worth nothing and harms nobody:
/// maintenance looks again.
fn clear_away(archives: &[Archive], parcel: &Parcel) {
    let (name, whole, end) = match parcel {
        Parcel::Segment { name, .. } => (name, true, 0),
        Parcel::Slice { name, start: 0, bytes, .. } => (name, false, bytes.len() as u32),
        Parcel::Slice { .. } | Parcel::There { .. } => return,
    };
    for archive in archives {
        let cleared = archive.remove_slices(&name.to_string(), |slice| !whole && slice.end < end);
        if let Err(error) = cleared {
            tracing::debug!(segment = %name, %error, "slices were not removed");
        }
    }
}
