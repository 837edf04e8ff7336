//! The handle: a back end, with retries and limits around every call.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::key::{check_key, check_prefix};
use crate::limit::Limit;
use crate::{
    Backend, Environment, ErrorKind, Lock, LockPolicy, Memory, ObjectMeta, Parity, Result,
    RetryPolicy, StoreError, Use,
};

/// A handle to a store. Cheap to clone; safe to use from any thread.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    backend: Arc<dyn Backend>,
    retries: RetryPolicy,
    env: Environment,
    upload: Option<Arc<Limit>>,
    download: Option<Arc<Limit>>,
}

impl Store {
    /// A handle that tries everything once and limits nothing.
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend: Arc::new(backend),
                retries: RetryPolicy::NONE,
                env: Environment::system(),
                upload: None,
                download: None,
            }),
        }
    }

    /// A store in memory, for tests.
    pub fn memory() -> Self {
        Self::new(Memory::new())
    }

    /// The same store, with transient failures tried again.
    #[must_use]
    pub fn with_retries(self, retries: RetryPolicy) -> Self {
        Self { inner: Arc::new(Inner { retries, ..(*self.inner).clone() }) }
    }

    /// The same store, waiting and drawing lots through `env`.
    #[must_use]
    pub fn with_environment(self, env: Environment) -> Self {
        Self { inner: Arc::new(Inner { env, ..(*self.inner).clone() }) }
    }

    /// The same store, with new limits, shared by all clones of the result. In bytes a second, on
    /// average: one object may pass at full speed, and the next one waits the longer.
    #[must_use]
    pub fn with_limits(self, upload: Option<u64>, download: Option<u64>) -> Self {
        let limit = |rate: Option<u64>| rate.map(|rate| Arc::new(Limit::new(rate)));
        Self {
            inner: Arc::new(Inner {
                upload: limit(upload),
                download: limit(download),
                ..(*self.inner).clone()
            }),
        }
    }

    /// The address without secrets.
    pub fn url(&self) -> String {
        self.inner.backend.url()
    }

    /// Whether a network lies between.
    pub fn is_remote(&self) -> bool {
        self.inner.backend.is_remote()
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    /// Calls until it succeeds, fails for good, or the policy is used up.
    pub(crate) fn retried<T>(&self, call: impl FnMut() -> Result<T>) -> Result<T> {
        self.inner.retried(call)
    }

    /// Waits until so many bytes more may be sent.
    pub(crate) fn wait_to_send(&self, bytes: usize) {
        self.inner.wait(&self.inner.upload, bytes);
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.inner.env
    }

    /// Creates an object that must not exist; durable when this returns.
    ///
    /// A failed attempt may have created it all the same. When a later attempt meets an object, it
    /// is read: the same bytes are ours. So two writers of the same bytes may both succeed, and
    /// bytes that decide a race must differ from writer to writer.
    pub fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.create_for(Use::Everything, key, body)
    }

    /// The same, for an object that is stored according to its use.
    pub fn create_for(&self, purpose: Use, key: &str, body: Bytes) -> Result<()> {
        check_key("create", key)?;
        let inner = &self.inner;
        if let Some(size) = inner.backend.part_size(key, body.len() as u64)
            && let Some(()) = self.create_in_parts(purpose, key, &body, size)?
        {
            return Ok(());
        }
        let mut failed_before = false;
        let created = inner.retried(|| {
            inner.wait(&inner.upload, body.len());
            let result = inner.backend.create_for(purpose, key, body.clone());
            match &result {
                Err(error) if error.is_already_exists() && failed_before => Ok(Some(())),
                Err(_) => {
                    failed_before = true;
                    result.map(|()| None)
                }
                Ok(()) => Ok(None),
            }
        })?;
        if created.is_none() {
            return Ok(());
        }
        self.must_be_ours(key, &body)
    }

    /// There is an object after an attempt whose answer was lost: the same bytes are ours.
    pub(crate) fn must_be_ours(&self, key: &str, body: &Bytes) -> Result<()> {
        match self.read(key) {
            Ok(found) if found == *body => Ok(()),
            Ok(_) => Err(StoreError::new(ErrorKind::AlreadyExists, "create", key)),
            // It was there a moment ago, and whose it was will never be known.
            Err(error) if error.is_not_found() => {
                Err(StoreError::new(ErrorKind::AlreadyExists, "create", key)
                    .with_detail("it has been removed since"))
            }
            Err(error) => Err(error),
        }
    }

    /// The whole object.
    pub fn read(&self, key: &str) -> Result<Bytes> {
        check_key("read", key)?;
        let inner = &self.inner;
        let body = inner.retried(|| inner.backend.read(key))?;
        inner.wait(&inner.download, body.len());
        Ok(body)
    }

    /// Exactly the bytes of `range`.
    pub fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        check_key("read", key)?;
        let inner = &self.inner;
        let body = inner.retried(|| inner.backend.read_range(key, range.clone()))?;
        inner.wait(&inner.download, body.len());
        if body.len() as u64 != range.end.saturating_sub(range.start) {
            return Err(StoreError::new(ErrorKind::Damaged, "read", key).with_detail(format!(
                "bytes {}..{} were asked for, {} came",
                range.start,
                range.end,
                body.len()
            )));
        }
        Ok(body)
    }

    /// Size and time of an object.
    pub fn head(&self, key: &str) -> Result<ObjectMeta> {
        check_key("look at", key)?;
        self.inner.retried(|| self.inner.backend.head(key))
    }

    /// Every object whose key starts with `prefix`, sorted by key.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        check_prefix("list", prefix)?;
        self.inner.retried(|| self.inner.backend.list(prefix))
    }

    /// Removes an object; one that is not there is not an error.
    pub fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        self.inner.retried(|| self.inner.backend.delete(key))
    }

    /// Its parity, where it can have that. Nothing there is tried again: the disk is at hand.
    pub fn parity(&self) -> Option<&dyn Parity> {
        self.inner.backend.parity()
    }

    /// How new objects are locked; none: they are not.
    pub fn lock_policy(&self) -> Option<LockPolicy> {
        self.inner.backend.lock_policy()
    }

    /// What keeps an object from being removed; `None` where the store has no locks.
    pub fn lock(&self, key: &str) -> Result<Option<Lock>> {
        check_key("look at", key)?;
        self.inner.retried(|| self.inner.backend.lock(key))
    }

    /// Locks an object until `until`, in the mode of the policy. A lock is never made shorter.
    pub fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        check_key("lock", key)?;
        self.inner.retried(|| self.inner.backend.extend_lock(key, until))
    }

    /// Puts an object on hold, or lifts that.
    pub fn hold(&self, key: &str, on: bool) -> Result<()> {
        check_key("hold", key)?;
        self.inner.retried(|| self.inner.backend.hold(key, on))
    }
}

impl Inner {
    /// Calls until it succeeds, fails for good, or the policy is used up.
    fn retried<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        let mut started: Option<SystemTime> = None;
        let mut attempt = 1;
        loop {
            let error = match call() {
                Err(error) if error.is_transient() && attempt < self.retries.attempts => error,
                other => return other,
            };
            let now = self.env.now();
            // A clock that is set back costs tries, no more.
            let spent = now.duration_since(*started.get_or_insert(now)).unwrap_or(Duration::ZERO);
            let wait = self.jitter(attempt);
            if spent + wait > self.retries.budget {
                return Err(error);
            }
            tracing::debug!(%error, attempt, ?wait, "trying again");
            self.env.clock.sleep(wait);
            attempt += 1;
        }
    }

    /// Anything between nothing and the exponential step, so that many clients that failed
    /// together do not come back together.
    fn jitter(&self, attempt: u32) -> Duration {
        let step = 2_u32.saturating_pow(attempt - 1);
        let longest = self.retries.first.saturating_mul(step).min(self.retries.longest);
        let lot = u32::from_le_bytes(self.env.random());
        longest.mul_f64(f64::from(lot) / f64::from(u32::MAX))
    }

    fn wait(&self, limit: &Option<Arc<Limit>>, bytes: usize) {
        if let Some(limit) = limit {
            let wait = limit.take(bytes as u64, self.env.now());
            if !wait.is_zero() {
                self.env.clock.sleep(wait);
            }
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.url()).finish()
    }
}
