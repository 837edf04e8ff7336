//! Large objects whose bytes arrive one after the other (Google's resumable uploads).
//!
//! After a failure the service is asked how far it has come, and only the rest is sent again. The
//! object shows when its last byte has arrived, and that is a conditional creation like any other.
//! What dies before leaves nothing that could be found: the service forgets it after a week.

use bytes::Bytes;

use crate::parts::Sent;
use crate::{ErrorKind, Result, Store, StoreError, failpoint};

/// How often the service may keep nothing of what it said had arrived.
const STUCK: u32 = 5;

/// How far an object has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// So many bytes, from the beginning on.
    UpTo(u64),
    /// All of it: the object exists.
    Whole,
    /// Nothing of it is left, or what arrived is not what was sent: begin again.
    Lost,
}

impl Store {
    /// Sends what was begun as `upload`, in parts of `size` bytes.
    pub(crate) fn send_in_order(
        &self,
        key: &str,
        body: &Bytes,
        size: u64,
        upload: &str,
    ) -> Result<Sent> {
        let length = body.len() as u64;
        let (mut from, mut stuck, mut failed_before) = (0_u64, 0, false);
        loop {
            let to = from.saturating_add(size).min(length);
            let mut unsure = false;
            let sent = self.retried(|| {
                let mut start = from;
                if unsure {
                    failed_before = true;
                    match self.backend().send_on(key, upload, body, length..length)? {
                        Arrived::UpTo(known) if known < to => start = known,
                        other => return Ok(other),
                    }
                }
                unsure = true;
                self.wait_to_send(usize::try_from(to - start).unwrap_or(usize::MAX));
                self.backend().send_on(key, upload, body, start..to)
            });
            match sent {
                Ok(Arrived::Whole) => return Ok(Sent::Created),
                Ok(Arrived::Lost) => return Ok(Sent::PartsGone),
                Ok(Arrived::UpTo(known)) if known <= length => {
                    failpoint::hit("upload-part-sent");
                    stuck = if known > from { 0 } else { stuck + 1 };
                    if stuck > STUCK {
                        return Err(StoreError::new(ErrorKind::Transient, "create", key)
                            .with_detail("the service keeps nothing of what it is sent"));
                    }
                    from = known;
                }
                Ok(Arrived::UpTo(known)) => {
                    return Err(StoreError::new(ErrorKind::Damaged, "create", key).with_detail(
                        format!("{known} bytes are there of {length} that were sent"),
                    ));
                }
                Err(error) if error.is_already_exists() => {
                    return Ok(Sent::Exists { perhaps_ours: failed_before });
                }
                Err(error) => return Err(error),
            }
        }
    }
}
