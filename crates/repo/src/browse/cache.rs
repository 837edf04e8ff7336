//! A bounded cache of what was read by id, in which several that want the same wait for one who
//! reads it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::{ObjectId, Result};

pub(crate) struct Cache<V> {
    shelf: Mutex<Shelf<V>>,
    changed: Condvar,
    limit: usize,
}

struct Shelf<V> {
    slots: HashMap<ObjectId, Slot<V>>,
    /// What is here, by when it was last asked for.
    order: BTreeMap<u64, ObjectId>,
    /// Of all that is here.
    bytes: usize,
    /// Counts questions.
    now: u64,
}

enum Slot<V> {
    /// Somebody reads it.
    Coming,
    Here {
        value: Arc<V>,
        size: usize,
        asked: u64,
    },
}

impl<V> Cache<V> {
    /// Keeps so many bytes at most, and the newest in any case.
    pub fn new(limit: usize) -> Self {
        let shelf = Shelf { slots: HashMap::new(), order: BTreeMap::new(), bytes: 0, now: 0 };
        Self { shelf: Mutex::new(shelf), changed: Condvar::new(), limit }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<V>> {
        self.shelf.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What is kept under `id`, or what `read` reads, with its size in bytes. An error is not kept:
    /// whoever asks next tries again.
    pub fn get(&self, id: &ObjectId, read: impl FnOnce() -> Result<(V, usize)>) -> Result<Arc<V>> {
        let mut shelf = self.shelf();
        loop {
            if let Some(value) = shelf.touch(id) {
                return Ok(value);
            }
            if shelf.slots.contains_key(id) {
                shelf = self.changed.wait(shelf).unwrap_or_else(|e| e.into_inner());
                continue;
            }
            shelf.slots.insert(*id, Slot::Coming);
            break;
        }
        drop(shelf);
        let coming = Coming { cache: self, id };
        let (value, size) = read()?;
        let value = Arc::new(value);
        self.shelf().put(*id, value.clone(), size, self.limit);
        drop(coming);
        Ok(value)
    }

    pub fn contains(&self, id: &ObjectId) -> bool {
        self.shelf().slots.contains_key(id)
    }
}

impl<V> Shelf<V> {
    fn touch(&mut self, id: &ObjectId) -> Option<Arc<V>> {
        let Some(Slot::Here { value, asked, .. }) = self.slots.get_mut(id) else { return None };
        self.order.remove(asked);
        self.now += 1;
        *asked = self.now;
        self.order.insert(self.now, *id);
        Some(value.clone())
    }

    fn put(&mut self, id: ObjectId, value: Arc<V>, size: usize, limit: usize) {
        self.now += 1;
        self.slots.insert(id, Slot::Here { value, size, asked: self.now });
        self.order.insert(self.now, id);
        self.bytes += size;
        while self.bytes > limit && self.order.len() > 1 {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            if let Some(Slot::Here { size, .. }) = self.slots.remove(&oldest) {
                self.bytes -= size;
            }
        }
    }
}

/// Lets the others go on, whatever became of the reading.
struct Coming<'c, V> {
    cache: &'c Cache<V>,
    id: &'c ObjectId,
}

impl<V> Drop for Coming<'_, V> {
    fn drop(&mut self) {
        let mut shelf = self.cache.shelf();
        if let Some(Slot::Coming) = shelf.slots.get(self.id) {
            shelf.slots.remove(self.id);
        }
        drop(shelf);
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::{RepoError, RepoErrorKind};

    fn id(number: u8) -> ObjectId {
        ObjectId([number; 32])
    }

    #[test]
    fn the_least_recently_asked_for_goes_first() {
        let cache = Cache::new(30);
        for number in 1..=3 {
            cache.get(&id(number), || Ok((number, 10))).unwrap();
        }
        cache.get(&id(1), || panic!("it is there")).unwrap();
        cache.get(&id(4), || Ok((4, 10))).unwrap();
        assert!(cache.contains(&id(1)) && cache.contains(&id(3)) && cache.contains(&id(4)));
        assert!(!cache.contains(&id(2)));
        // What is larger than all of it is kept alone.
        cache.get(&id(5), || Ok((5, 100))).unwrap();
        assert!(cache.contains(&id(5)) && !cache.contains(&id(4)));
        assert_eq!(cache.shelf().bytes, 100);
    }

    #[test]
    fn many_that_want_the_same_read_it_once() {
        let cache = Cache::new(1000);
        let reads = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let read = || {
                        std::thread::yield_now();
                        Ok((reads.fetch_add(1, SeqCst), 1))
                    };
                    assert_eq!(*cache.get(&id(1), read).unwrap(), 0);
                });
            }
        });
        assert_eq!(reads.load(SeqCst), 1);
    }

    #[test]
    fn nobody_waits_for_one_who_failed_or_panicked() {
        let cache: Cache<u32> = Cache::new(1000);
        let failed = cache.get(&id(1), || Err(RepoError::new(RepoErrorKind::Store, "gone")));
        assert!(failed.is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cache.get(&id(1), || panic!("in the middle of it"))
        }));
        assert!(panicked.is_err());
        assert_eq!(*cache.get(&id(1), || Ok((7, 1))).unwrap(), 7);
    }
}
