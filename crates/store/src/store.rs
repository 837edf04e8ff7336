use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::key::{check_key, check_prefix};
use crate::{Backend, Memory, ObjectMeta, Result};

/// A handle to a store. Cheap to clone; safe to use from any thread.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
}

impl Store {
    pub fn new(backend: impl Backend + 'static) -> Self {
        Self { backend: Arc::new(backend) }
    }

    /// A store in memory, for tests.
    pub fn memory() -> Self {
        Self::new(Memory::new())
    }

    /// The address without secrets.
    pub fn url(&self) -> String {
        self.backend.url()
    }

    /// Creates an object that must not exist; durable when this returns.
    pub fn create(&self, key: &str, body: Bytes) -> Result<()> {
        check_key("create", key)?;
        self.backend.create(key, body)
    }

    /// The whole object.
    pub fn read(&self, key: &str) -> Result<Bytes> {
        check_key("read", key)?;
        self.backend.read(key)
    }

    /// Exactly the bytes of `range`.
    pub fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        check_key("read", key)?;
        self.backend.read_range(key, range)
    }

    pub fn head(&self, key: &str) -> Result<ObjectMeta> {
        check_key("look at", key)?;
        self.backend.head(key)
    }

    /// Every object whose key starts with `prefix`, sorted by key.
    pub fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        check_prefix("list", prefix)?;
        self.backend.list(prefix)
    }

    /// Removes an object; one that is not there is not an error.
    pub fn delete(&self, key: &str) -> Result<()> {
        check_key("delete", key)?;
        self.backend.delete(key)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.url()).finish()
    }
}
