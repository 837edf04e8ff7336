//! Large objects, sent in parts: several at once, each tried again by itself.
//!
//! An object shows only when its parts have been put together, and that is a conditional creation
//! like any other. What dies before leaves parts that nobody sees and that are paid for:
//! [`Store::unfinished_uploads`] finds them, and maintenance removes those of sessions that have
//! ended. Where the parts go one after the other, `in_order` sends them. Objects that decide something (snapshots, tombstones, runs) are never sent like this.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;

use crate::failpoint;
use crate::key::{check_key, check_prefix};
use crate::{ErrorKind, LockPolicy, Result, Store, StoreError, Use};

/// Parts of one object that are sent at once. Packs are sent several at once already.
const AT_ONCE: usize = 4;

/// How often an object is begun again whose parts somebody removed.
const BEGINNINGS: usize = 3;

/// Objects larger than this are sent in parts, where the store can do that. Bytes.
pub(crate) const USUAL: u64 = 32 << 20;

/// What services take: S3 no parts below this (but for the last), and not more than so many.
const SMALLEST: u64 = 5 << 20;
const MOST: u64 = 10_000;

/// Google takes whole multiples of this, but for the end. Bytes.
const STEP: u64 = 256 << 10;

/// A part where nothing else is wanted. Bytes.
const PART: u64 = 16 << 20;

/// In parts of how many bytes an object of `length` is sent; `None`: in one piece.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure", feature = "key-services"))]
pub(crate) fn part_size(key: &str, length: u64, above: u64) -> Option<u64> {
    // Names of packs are drawn by lot: nobody else creates them, and nothing is decided by who does.
    let suits = key.starts_with("packs/") && length > above.max(SMALLEST);
    let size = above.clamp(SMALLEST, PART).max(length.div_ceil(MOST));
    suits.then(|| size.next_multiple_of(STEP))
}

/// A part that has arrived, as the service wants it named when all are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub tag: String,
    /// The sum of it that was sent along; empty where the service does not ask for it again.
    pub sum: String,
}

/// An object that was begun in parts and does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    pub key: String,
    /// The service's name for the upload.
    pub upload: String,
    pub started: Option<SystemTime>,
}

/// What came of one beginning.
pub(crate) enum Sent {
    Created,
    /// There is an object; whether this is ours shows in its bytes, if an answer was lost.
    Exists {
        perhaps_ours: bool,
    },
    /// The parts are gone: somebody removed them, or an answer was lost.
    PartsGone,
}

impl Store {
    /// Creates an object in parts of `size`; none when the store refuses parts after all.
    pub(crate) fn create_in_parts(
        &self,
        purpose: Use,
        key: &str,
        body: &Bytes,
        size: u64,
    ) -> Result<Option<()>> {
        let created = self.create_of_parts(purpose, key, body, size)?;
        if created.is_some() {
            self.must_be_locked(key)?;
        }
        Ok(created)
    }

    /// Some services take the lock of an object in one piece, and forget that of one in parts.
    fn must_be_locked(&self, key: &str) -> Result<()> {
        let Some(policy) = self.lock_policy().filter(|_| LockPolicy::covers(key)) else {
            return Ok(());
        };
        let now = self.environment().now();
        let until = self.lock(key)?.and_then(|lock| lock.until);
        if until.is_some_and(|until| until > now + policy.period / 2) {
            return Ok(());
        }
        self.extend_lock(key, now + policy.period)
    }

    fn create_of_parts(
        &self,
        purpose: Use,
        key: &str,
        body: &Bytes,
        size: u64,
    ) -> Result<Option<()>> {
        for _ in 0..BEGINNINGS {
            let sent = match self.send(purpose, key, body, size) {
                Ok(sent) => sent,
                // It may create objects and no parts: so say policies that were made before these.
                Err(error)
                    if error.kind() == ErrorKind::Denied
                        && self.backend().part_size(key, body.len() as u64).is_none() =>
                {
                    tracing::debug!(%error, "sent in one piece");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            match sent {
                Sent::Created => return Ok(Some(())),
                Sent::Exists { perhaps_ours: true } => {
                    return self.must_be_ours(key, body).map(Some);
                }
                Sent::Exists { perhaps_ours: false } => {
                    return Err(StoreError::new(ErrorKind::AlreadyExists, "create", key));
                }
                // The answer to the last step may be what was lost.
                Sent::PartsGone => match self.head(key) {
                    Ok(_) => return self.must_be_ours(key, body).map(Some),
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                },
            }
        }
        Err(StoreError::new(ErrorKind::Transient, "create", key)
            .with_detail("what had arrived of it was gone again and again before it was whole"))
    }

    fn send(&self, purpose: Use, key: &str, body: &Bytes, size: u64) -> Result<Sent> {
        let upload = self.retried(|| self.backend().begin_upload(purpose, key, body))?;
        failpoint::hit("upload-begun");
        let sent = if self.backend().in_order() {
            self.send_in_order(key, body, size, &upload)
        } else {
            self.send_parts(key, body, size, &upload).and_then(|parts| {
                failpoint::hit("upload-parts-sent");
                self.put_together(purpose, key, &upload, &parts)
            })
        };
        if !matches!(sent, Ok(Sent::Created | Sent::PartsGone)) {
            // What stays is removed by maintenance; the error that counts is the other one.
            if let Err(error) = self.retried(|| self.backend().abort_upload(key, &upload)) {
                tracing::debug!(%error, "parts are left for maintenance");
            }
        }
        match sent {
            Err(error) if error.is_not_found() => Ok(Sent::PartsGone),
            other => other,
        }
    }

    /// Sends all parts, several at once; none is copied.
    fn send_parts(&self, key: &str, body: &Bytes, size: u64, upload: &str) -> Result<Vec<Part>> {
        let ranges = ranges(body.len(), size);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let done = Mutex::new(vec![None; ranges.len()]);
        let stop = || failed.lock().unwrap_or_else(|e| e.into_inner()).is_some();
        let work = || {
            while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed))
                && let Some(range) = ranges.get(number)
                && !stop()
            {
                let part = body.slice(range.clone());
                let sent = self.retried(|| {
                    self.wait_to_send(part.len());
                    self.backend().upload_part(key, upload, number as u32 + 1, part.clone())
                });
                match sent {
                    Ok(part) => {
                        let mut done = done.lock().unwrap_or_else(|e| e.into_inner());
                        if let Some(place) = done.get_mut(number) {
                            *place = Some(part);
                        }
                        failpoint::hit("upload-part-sent");
                    }
                    Err(error) => {
                        failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..AT_ONCE.min(ranges.len()) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let parts = done.into_inner().unwrap_or_else(|e| e.into_inner());
        parts.into_iter().collect::<Option<_>>().ok_or_else(|| {
            StoreError::new(ErrorKind::Other, "create", key).with_detail("a part was not sent")
        })
    }

    fn put_together(&self, purpose: Use, key: &str, upload: &str, parts: &[Part]) -> Result<Sent> {
        let mut failed_before = false;
        self.retried(|| match self.backend().finish_upload(purpose, key, upload, parts) {
            Ok(()) => Ok(Sent::Created),
            Err(error) if error.is_already_exists() => {
                Ok(Sent::Exists { perhaps_ours: failed_before })
            }
            Err(error) => {
                failed_before = true;
                Err(error)
            }
        })
    }

    /// Objects below `prefix` of which parts have arrived, and nobody has put them together;
    /// `None` where the store removes such parts by itself, or has none.
    pub fn unfinished_uploads(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>> {
        check_prefix("list", prefix)?;
        self.retried(|| self.backend().unfinished_uploads(prefix))
    }

    /// Removes the parts of an object that does not exist. Whoever is still sending them has to
    /// begin again.
    pub fn abort_upload(&self, unfinished: &Unfinished) -> Result<()> {
        check_key("remove parts of", &unfinished.key)?;
        match self.retried(|| self.backend().abort_upload(&unfinished.key, &unfinished.upload)) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }
}

fn ranges(length: usize, size: u64) -> Vec<Range<usize>> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
    (0..length).step_by(size).map(|from| from..length.min(from.saturating_add(size))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_an_object_and_are_what_services_take() {
        for (length, size) in [(1, 5), (5, 5), (6, 5), (100, 7), (0, 3)] {
            let ranges = ranges(length, size);
            assert_eq!(ranges.iter().map(Range::len).sum::<usize>(), length);
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(ranges.iter().all(|range| range.len() as u64 <= size && !range.is_empty()));
        }
        assert_eq!(part_size("packs/a", USUAL, USUAL), None);
        assert_eq!(part_size("packs/a", USUAL + 1, USUAL), Some(PART));
        assert_eq!(part_size("snapshots/a", 10 * USUAL, USUAL), None);
        assert_eq!(part_size("packs/a", SMALLEST + 1, 1), Some(SMALLEST));
        assert_eq!(part_size("packs/a", SMALLEST, 1), None);
        let huge = 5 << 40;
        assert!(huge_parts(huge) <= MOST);
    }

    fn huge_parts(length: u64) -> u64 {
        length.div_ceil(part_size("packs/a", length, USUAL).unwrap())
    }
}
