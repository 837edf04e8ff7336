use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::RwLock;
use std::time::SystemTime;

use bytes::Bytes;

use crate::{Backend, ErrorKind, ObjectMeta, Result, StoreError};

/// A store in this process's memory, for tests.
#[derive(Default)]
pub struct Memory {
    objects: RwLock<BTreeMap<String, (Bytes, SystemTime)>>,
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn get(&self, doing: &'static str, key: &str) -> Result<(Bytes, SystemTime)> {
        let objects = self.objects.read().unwrap_or_else(|e| e.into_inner());
        objects.get(key).cloned().ok_or_else(|| StoreError::new(ErrorKind::NotFound, doing, key))
    }
}

impl Backend for Memory {
    fn url(&self) -> String {
        "memory://".into()
    }

    fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let mut objects = self.objects.write().unwrap_or_else(|e| e.into_inner());
        if objects.contains_key(key) {
            return Err(StoreError::new(ErrorKind::AlreadyExists, "create", key));
        }
        objects.insert(key.to_owned(), (body, SystemTime::now()));
        Ok(())
    }

    fn read(&self, key: &str) -> Result<Bytes> {
        Ok(self.get("read", key)?.0)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let (body, _) = self.get("read", key)?;
        if range.start > range.end || range.end > body.len() as u64 {
            return Err(StoreError::new(ErrorKind::Damaged, "read", key).with_detail(format!(
                "bytes {}..{} were asked for, it has {}",
                range.start,
                range.end,
                body.len()
            )));
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta> {
        let (body, modified) = self.get("look at", key)?;
        Ok(ObjectMeta { key: key.to_owned(), size: body.len() as u64, modified: Some(modified) })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let objects = self.objects.read().unwrap_or_else(|e| e.into_inner());
        Ok(objects
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (body, modified))| ObjectMeta {
                key: key.clone(),
                size: body.len() as u64,
                modified: Some(*modified),
            })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.write().unwrap_or_else(|e| e.into_inner()).remove(key);
        Ok(())
    }
}
