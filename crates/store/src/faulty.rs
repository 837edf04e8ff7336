//! A store that fails on purpose.
//!
//! [`Faulty`] wraps a back end and follows a list of rules: the n-th creation fails, every third
//! read is cut short, after ten writes everything is dead. Chance is drawn from the seed, the
//! operation, the key and how often that pair has come, so that it does not depend on the order
//! in which threads arrive.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{
    Backend, Environment, ErrorKind, Lock, LockPolicy, ObjectMeta, Random, Result, SeededRandom,
    StoreError,
};

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    /// Of a whole object or of a range.
    Read,
    Head,
    List,
    Delete,
}

/// Which of the operations that a rule looks at it strikes; they are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    Always,
    Nth(u64),
    /// The n-th, the 2n-th, …
    Every(u64),
    /// The first n.
    First(u64),
    /// All after the n-th.
    After(u64),
    /// Each with this probability, 0 to 1.
    Chance(f64),
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Does nothing and reports an error.
    Fail(ErrorKind),
    /// Does what was asked and reports an error all the same: the answer was lost.
    DoneButFail(ErrorKind),
    /// Reports success and does nothing. Of what is read it takes the answer away: an empty body
    /// or list.
    Pretend,
    /// Waits first, by the clock of the environment.
    Delay(Duration),
    /// Keeps this many bytes of what is read, or of an object that is created.
    Truncate(usize),
    /// Flips bits of the byte at this place (counted modulo the length) of what is read, or of an
    /// object that is created.
    Flip { at: usize, bits: u8 },
    /// Leaves out of a list the entries whose key contains this.
    Hide(String),
    /// Nothing works from here on, this operation included, until [`Faulty::revive`].
    Die,
    /// Does what was asked; the answer never comes, and nothing works from here on.
    DoneThenDie,
}

/// One fault, and what it strikes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// None: every kind.
    pub operation: Option<Operation>,
    /// What the key starts with.
    pub prefix: String,
    pub when: When,
    pub fault: Fault,
}

impl Rule {
    pub fn new(operation: impl Into<Option<Operation>>, when: When, fault: Fault) -> Self {
        Self { operation: operation.into(), prefix: String::new(), when, fault }
    }

    /// Only for keys that start with `prefix`.
    #[must_use]
    pub fn below(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }
}

/// A back end that does what its rules say. A clone is the same one: keep it to change the rules
/// while a [`Store`](crate::Store) uses it.
#[derive(Clone)]
pub struct Faulty {
    shared: Arc<Shared>,
}

struct Shared {
    backend: Arc<dyn Backend>,
    env: Environment,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<(Rule, u64)>,
    dead: bool,
    log: Vec<(Operation, String)>,
    seen: HashMap<(Operation, String), u64>,
}

impl Faulty {
    /// Without rules, it does what `backend` does.
    pub fn new(backend: impl Backend + 'static, env: Environment, seed: u64) -> Self {
        let backend = Arc::new(backend);
        Self { shared: Arc::new(Shared { backend, env, seed, state: Mutex::default() }) }
    }

    /// Adds a rule. It counts from now; rules strike in the order they were added.
    pub fn add(&self, rule: Rule) -> &Self {
        self.with(|state| state.rules.push((rule, 0)));
        self
    }

    /// Drops all rules.
    pub fn clear(&self) {
        self.with(|state| state.rules.clear());
    }

    /// Kills the store.
    pub fn die(&self) {
        self.with(|state| state.dead = true);
    }

    /// Brings a dead store back, with what it held.
    pub fn revive(&self) {
        self.with(|state| state.dead = false);
    }

    pub fn is_dead(&self) -> bool {
        self.with(|state| state.dead)
    }

    /// Every operation so far, in the order they arrived.
    pub fn operations(&self) -> Vec<(Operation, String)> {
        self.with(|state| state.log.clone())
    }

    /// How many operations of this kind there were.
    pub fn count(&self, operation: Operation) -> u64 {
        self.with(|state| state.log.iter().filter(|(o, _)| *o == operation).count() as u64)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.shared.state.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Counts the operation, and returns the faults that strike it.
    fn strike(&self, operation: Operation, doing: &'static str, key: &str) -> Result<Struck<'_>> {
        let faults = self.with(|state| {
            state.log.push((operation, key.to_owned()));
            if state.dead {
                return Err(dead(doing, key));
            }
            let seen = state.seen.entry((operation, key.to_owned())).or_default();
            *seen += 1;
            let seen = *seen;
            let mut faults = Vec::new();
            for (index, (rule, count)) in state.rules.iter_mut().enumerate() {
                if rule.operation.is_some_and(|o| o != operation) || !key.starts_with(&rule.prefix)
                {
                    continue;
                }
                *count += 1;
                let strikes = match rule.when {
                    When::Always => true,
                    When::Nth(n) => *count == n,
                    When::Every(n) => *count % n.max(1) == 0,
                    When::First(n) => *count <= n,
                    When::After(n) => *count > n,
                    When::Chance(p) => self.lot(index, operation, key, seen) < p,
                };
                if strikes {
                    faults.push(rule.fault.clone());
                }
            }
            if faults.contains(&Fault::Die) {
                state.dead = true;
                return Err(dead(doing, key));
            }
            Ok(faults)
        })?;
        for fault in &faults {
            match fault {
                Fault::Delay(time) => self.shared.env.clock.sleep(*time),
                Fault::Fail(kind) => return Err(injected(*kind, doing, key)),
                _ => {}
            }
        }
        Ok(Struck { faulty: self, faults, doing, key: key.to_owned() })
    }

    /// A number from 0 to 1 that follows from the seed and from what is asked.
    fn lot(&self, rule: usize, operation: Operation, key: &str, seen: u64) -> f64 {
        // FNV-1a, stable between releases of the compiler, over everything that tells two calls
        // apart; SplitMix64 mixes it.
        let numbers = [self.shared.seed, rule as u64, operation as u64, seen];
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).chain(key.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut lot = [0; 8];
        SeededRandom::new(hash).fill(&mut lot);
        (u64::from_le_bytes(lot) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn dead(doing: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Other, doing, key).with_detail("the store is dead (injected)")
}

fn injected(kind: ErrorKind, doing: &'static str, key: &str) -> StoreError {
    StoreError::new(kind, doing, key).with_detail("injected")
}

/// The faults that strike one operation.
struct Struck<'a> {
    faulty: &'a Faulty,
    faults: Vec<Fault>,
    doing: &'static str,
    key: String,
}

impl Struck<'_> {
    fn pretends(&self) -> bool {
        self.faults.contains(&Fault::Pretend)
    }

    fn damage(&self, body: Bytes) -> Bytes {
        let mut body = body;
        for fault in &self.faults {
            match fault {
                Fault::Truncate(keep) => body.truncate(*keep),
                Fault::Flip { at, bits } if !body.is_empty() => {
                    let mut bytes = body.to_vec();
                    let at = at % bytes.len();
                    bytes[at] ^= bits;
                    body = bytes.into();
                }
                _ => {}
            }
        }
        body
    }

    /// What becomes of an operation that was carried out.
    fn done<T>(self, result: Result<T>) -> Result<T> {
        let value = result?;
        for fault in &self.faults {
            match fault {
                Fault::DoneButFail(kind) => return Err(injected(*kind, self.doing, &self.key)),
                Fault::DoneThenDie => {
                    self.faulty.die();
                    return Err(dead(self.doing, &self.key));
                }
                _ => {}
            }
        }
        Ok(value)
    }
}

impl Backend for Faulty {
    fn url(&self) -> String {
        self.shared.backend.url()
    }

    fn is_remote(&self) -> bool {
        self.shared.backend.is_remote()
    }

    fn create(&self, key: &str, body: Bytes) -> Result<()> {
        let struck = self.strike(Operation::Create, "create", key)?;
        if struck.pretends() {
            return Ok(());
        }
        let body = struck.damage(body);
        struck.done(self.shared.backend.create(key, body))
    }

    fn read(&self, key: &str) -> Result<Bytes> {
        let struck = self.strike(Operation::Read, "read", key)?;
        if struck.pretends() {
            return Ok(Bytes::new());
        }
        let body = self.shared.backend.read(key)?;
        let body = struck.damage(body);
        struck.done(Ok(body))
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let struck = self.strike(Operation::Read, "read", key)?;
        if struck.pretends() {
            return Ok(Bytes::new());
        }
        let body = self.shared.backend.read_range(key, range)?;
        let body = struck.damage(body);
        struck.done(Ok(body))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta> {
        let struck = self.strike(Operation::Head, "look at", key)?;
        let result = self.shared.backend.head(key);
        struck.done(result)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let struck = self.strike(Operation::List, "list", prefix)?;
        if struck.pretends() {
            return Ok(Vec::new());
        }
        let mut found = self.shared.backend.list(prefix)?;
        for fault in &struck.faults {
            if let Fault::Hide(part) = fault {
                found.retain(|object| !object.key.contains(part.as_str()));
            }
        }
        struck.done(Ok(found))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let struck = self.strike(Operation::Delete, "delete", key)?;
        if struck.pretends() {
            return Ok(());
        }
        let result = self.shared.backend.delete(key);
        struck.done(result)
    }

    fn lock_policy(&self) -> Option<LockPolicy> {
        self.shared.backend.lock_policy()
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>> {
        let struck = self.strike(Operation::Head, "look at", key)?;
        let result = self.shared.backend.lock(key);
        struck.done(result)
    }

    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        self.shared.backend.extend_lock(key, until)
    }

    fn hold(&self, key: &str, on: bool) -> Result<()> {
        self.shared.backend.hold(key, on)
    }
}
