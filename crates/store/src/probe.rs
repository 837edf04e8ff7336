//! Proof that a store keeps the promises everything else is built on.

use std::fmt::Write;
use std::sync::Mutex;

use bytes::Bytes;

use crate::{ErrorKind, Result, Store, StoreError};

/// How many creations race for one key.
const RACERS: u8 = 4;

impl Store {
    /// Proves that creation is conditional, with a few objects below `probe/` that are removed
    /// again: of two creations of one key the second fails and leaves the first one's bytes, of
    /// several at once (where a network lies between) one wins; what is created is listed and can
    /// be read in part, and what is not there is said to be absent.
    ///
    /// A credential that may not delete leaves the objects behind, and so does a bucket that locks
    /// all of them; that is not an error.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) with the promise that the store breaks, or
    /// whatever kept it from answering.
    pub fn probe(&self) -> Result<()> {
        let mut base = String::from("probe/");
        for byte in self.environment().random::<16>() {
            let _ = write!(base, "{byte:02x}");
        }
        let twice = format!("{base}-twice");
        let raced = format!("{base}-raced");
        let result = self
            .probe_twice(&twice, &base)
            .and_then(|()| if self.is_remote() { self.probe_race(&raced) } else { Ok(()) });
        for key in [&twice, &raced] {
            match self.delete(key) {
                Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Locked) => {}
                // What was found before matters more.
                Err(error) if result.is_ok() => return Err(error),
                _ => {}
            }
        }
        result
    }

    fn probe_twice(&self, key: &str, base: &str) -> Result<()> {
        let first = Bytes::from_static(b"the first object of this name");
        let second = Bytes::from_static(b"the second, which must be refused");
        if !self.list(base)?.is_empty() {
            return Err(broken(key, "it lists objects that nobody created"));
        }
        match self.read(key) {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(broken(key, "it returns an object that nobody created")),
        }
        self.create(key, first.clone())?;
        match self.create(key, second) {
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
            Ok(()) => {
                return Err(broken(
                    key,
                    "it ignores the condition that an object must not exist, and would overwrite; \
                     use a service with conditional writes (If-None-Match)",
                ));
            }
        }
        if self.read(key)? != first {
            return Err(broken(key, "a creation that was refused changed the object"));
        }
        if self.read_range(key, 4..9)? != "first" {
            return Err(broken(key, "it returns other bytes than the range asked for"));
        }
        let listed = self.list(base)?;
        if listed.len() != 1 || listed.iter().any(|o| o.key != key || o.size != first.len() as u64)
        {
            return Err(broken(key, "an object that was just created is not listed as it is"));
        }
        if self.head(key)?.size != first.len() as u64 {
            return Err(broken(key, "it reports another size than the object has"));
        }
        Ok(())
    }

    /// A service that looks first and writes afterwards passes the test above and fails here.
    fn probe_race(&self, key: &str) -> Result<()> {
        let winners = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let winners = &winners;
                    scope.spawn(move || match self.create(key, Bytes::from(vec![racer; 4096])) {
                        Ok(()) => {
                            winners.lock().unwrap_or_else(|e| e.into_inner()).push(racer);
                            Ok(())
                        }
                        Err(error) if error.is_already_exists() => Ok(()),
                        Err(error) => Err(error),
                    })
                })
                .collect();
            racers.into_iter().try_for_each(|racer| {
                racer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        let winners = winners.into_inner().unwrap_or_else(|e| e.into_inner());
        let [winner] = winners[..] else {
            return Err(broken(
                key,
                "of several creations of one object at once, not exactly one succeeds",
            ));
        };
        if self.read(key)? != vec![winner; 4096] {
            return Err(broken(key, "a creation that was refused changed the object"));
        }
        Ok(())
    }
}

fn broken(key: &str, what: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, "use the store, tried with", key)
        .with_detail(format!("the store cannot keep a repository: {what}"))
}
