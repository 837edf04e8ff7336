//! What keeps objects from being removed: asked before a removal, set and lifted.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use object_store::path::Path;

use super::extras::SharedExtras;
use super::{Remote, wait};
use crate::{ErrorKind, Lock, Result, StoreError};

pub(super) fn no_locks(doing: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail("the objects of this bucket cannot be locked")
}

impl Remote {
    /// The extras, where objects of the bucket can be locked.
    pub(super) fn locks(&self, doing: &'static str, key: &str) -> Result<Option<SharedExtras>> {
        let extras = &self.extras;
        let known = match self.has_locks.get() {
            Some(known) => *known,
            None if self.lock.is_some() => true,
            None => {
                let asking = Arc::clone(extras);
                wait(doing, key, async move { asking.has_locks().await })?
            }
        };
        let known = *self.has_locks.get_or_init(|| known);
        Ok(known.then(|| Arc::clone(extras)))
    }

    /// Removes the current version of an object that is not locked; whether that was all there is
    /// to do.
    pub(super) async fn delete_locked(
        extras: &SharedExtras,
        path: &Path,
        key: &str,
    ) -> Result<bool> {
        let (lock, version) = match extras.lock(path.as_ref(), key).await {
            Ok(known) => known,
            // The bucket may be what is missing: the usual way finds out.
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        // The store's own clock decides in the end; this one only spares it the question.
        if lock.keeps(SystemTime::now()) {
            return Err(lock.refusal(key));
        }
        let Some(version) = version else { return Ok(false) };
        match extras.delete_version(path.as_ref(), key, &version).await {
            // The lock ran out by our clock and not by the store's, or was made longer just now.
            Err(error) if error.kind() == ErrorKind::Denied && lock.until.is_some() => {
                Err(lock.refusal(key))
            }
            other => other.map(|()| true),
        }
    }

    fn with_locks<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        doing: &'static str,
        key: &str,
        ask: impl FnOnce(SharedExtras, Path, String) -> F,
    ) -> Result<Option<T>> {
        let path = self.path(doing, key)?;
        let Some(extras) = self.locks(doing, key)? else { return Ok(None) };
        wait(doing, key, ask(extras, path, key.to_owned())).map(Some)
    }

    pub(super) fn lock_of(&self, key: &str) -> Result<Option<Lock>> {
        self.with_locks("look at", key, |extras, path, key| async move {
            Ok(extras.lock(path.as_ref(), &key).await?.0)
        })
    }

    pub(super) fn lock_longer(&self, key: &str, until: SystemTime) -> Result<()> {
        let Some(policy) = self.lock else { return Err(no_locks("lock", key)) };
        let done = self.with_locks("lock", key, move |extras, path, key| async move {
            let (lock, _) = extras.lock(path.as_ref(), &key).await?;
            if lock.until.is_some_and(|known| known >= until) {
                return Ok(());
            }
            extras.extend(path.as_ref(), &key, &policy, until).await
        })?;
        done.ok_or_else(|| no_locks("lock", key))
    }

    pub(super) fn put_on_hold(&self, key: &str, on: bool) -> Result<()> {
        let done = self.with_locks("hold", key, move |extras, path, key| async move {
            extras.hold(path.as_ref(), &key, on).await
        })?;
        done.ok_or_else(|| no_locks("hold", key))
    }
}
