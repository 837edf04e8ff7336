//! The world that a seed decides: a store, a scheduler that says whose call comes next, and clocks.
//! Who does what in it is not here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use backstay_store::{
    Backend, Clock, ErrorKind, Lock, LockMode, LockPolicy, ObjectMeta, StoreError,
};

/// SplitMix64.
pub struct Lots(pub u64);

impl Lots {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What the store has under a name.
#[derive(Clone)]
pub struct Object {
    pub body: bytes::Bytes,
    pub modified: SystemTime,
    /// Until when it is locked.
    pub until: Option<SystemTime>,
}

#[derive(Default)]
struct Actor {
    /// Calls that wait for their turn.
    waiting: usize,
    granted: bool,
    ended: bool,
    dead: bool,
    /// Until so many calls of others have been made it is not its turn.
    asleep: u64,
}

pub struct World {
    state: Mutex<State>,
    changed: Condvar,
    /// How objects are locked, in some of the worlds.
    locks: Option<LockPolicy>,
}

pub struct State {
    pub objects: BTreeMap<String, Object>,
    actors: Vec<Actor>,
    pub lots: Lots,
    pub now: SystemTime,
    calls: u64,
}

impl World {
    pub fn new(seed: u64, actors: usize, locks: Option<LockPolicy>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                actors: (0..actors).map(|_| Actor::default()).collect(),
                lots: Lots(seed),
                now: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
                calls: 0,
            }),
            changed: Condvar::new(),
            locks,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits for this actor's turn. Without an actor nobody waits.
    fn turn(&self, actor: Option<usize>, key: &str) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.lock();
        let Some(me) = actor else { return Ok(state) };
        let dead = || StoreError::new(ErrorKind::Other, "reach", key).with_detail("this host died");
        if state.actors[me].dead {
            return Err(dead());
        }
        state.actors[me].waiting += 1;
        self.changed.notify_all();
        loop {
            if state.actors[me].dead {
                state.actors[me].waiting -= 1;
                self.changed.notify_all();
                return Err(dead());
            }
            if std::mem::take(&mut state.actors[me].granted) {
                state.actors[me].waiting -= 1;
                self.changed.notify_all();
                state.calls += 1;
                let step = state.lots.below(30) as u64;
                state.now += Duration::from_secs(step * step);
                return Ok(state);
            }
            state = self.changed.wait(state).unwrap();
        }
    }

    /// Hands out turns until all have ended.
    pub fn schedule(&self, deadly: bool) {
        let mut state = self.lock();
        loop {
            // A turn that was handed out must be taken, and whoever lives must have come to a call.
            let settled = state
                .actors
                .iter()
                .all(|actor| !actor.granted && (actor.ended || (actor.waiting > 0 && !actor.dead)));
            if !settled {
                state = self.changed.wait(state).unwrap();
                continue;
            }
            let living: Vec<usize> =
                (0..state.actors.len()).filter(|n| !state.actors[*n].ended).collect();
            if living.is_empty() {
                return;
            }
            let calls = state.calls;
            let awake: Vec<usize> =
                living.iter().copied().filter(|n| state.actors[*n].asleep <= calls).collect();
            let from = if awake.is_empty() { &living } else { &awake };
            let which = state.lots.below(from.len());
            let chosen = from[which];
            if deadly && state.lots.one_in(400) {
                state.actors[chosen].dead = true;
            } else {
                if state.lots.one_in(12) {
                    let nap = state.lots.below(120) as u64;
                    state.actors[chosen].asleep = calls + nap;
                }
                state.actors[chosen].granted = true;
            }
            self.changed.notify_all();
        }
    }

    pub fn end(&self, actor: usize) {
        self.lock().actors[actor].ended = true;
        self.changed.notify_all();
    }
}

pub struct Ends<'w> {
    pub world: &'w World,
    pub actor: usize,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.world.end(self.actor);
    }
}

/// One host's way to the store.
pub struct Seat {
    pub world: Arc<World>,
    pub actor: Option<usize>,
}

impl Seat {
    fn get(&self, doing: &'static str, key: &str) -> Result<Object, StoreError> {
        let state = self.world.turn(self.actor, key)?;
        state
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| StoreError::new(ErrorKind::NotFound, doing, key))
    }
}

impl Backend for Seat {
    fn url(&self) -> String {
        "simulated://".into()
    }

    fn create(&self, key: &str, body: bytes::Bytes) -> Result<(), StoreError> {
        let mut state = self.world.turn(self.actor, key)?;
        if state.objects.contains_key(key) {
            return Err(StoreError::new(ErrorKind::AlreadyExists, "create", key));
        }
        let now = state.now;
        let passing = ["sessions/", "probe/"].iter().any(|room| key.starts_with(room));
        let until = self.lock_policy().filter(|_| !passing).map(|policy| now + policy.period);
        state.objects.insert(key.to_owned(), Object { body, modified: now, until });
        Ok(())
    }

    fn read(&self, key: &str) -> Result<bytes::Bytes, StoreError> {
        Ok(self.get("read", key)?.body)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<bytes::Bytes, StoreError> {
        let body = self.get("read", key)?.body;
        if range.start > range.end || range.end > body.len() as u64 {
            return Err(StoreError::new(ErrorKind::Damaged, "read", key));
        }
        Ok(body.slice(range.start as usize..range.end as usize))
    }

    fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let Object { body, modified, .. } = self.get("look at", key)?;
        Ok(ObjectMeta { key: key.to_owned(), size: body.len() as u64, modified: Some(modified) })
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let state = self.world.turn(self.actor, prefix)?;
        let found = state.objects.range(prefix.to_owned()..);
        Ok(found
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, object)| ObjectMeta {
                key: key.clone(),
                size: object.body.len() as u64,
                modified: Some(object.modified),
            })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let mut state = self.world.turn(self.actor, key)?;
        let now = state.now;
        if state.objects.get(key).is_some_and(|object| object.until.is_some_and(|at| at > now)) {
            return Err(StoreError::new(ErrorKind::Locked, "delete", key));
        }
        state.objects.remove(key);
        Ok(())
    }

    fn lock_policy(&self) -> Option<LockPolicy> {
        // Who looks at the end locks nothing.
        self.world.locks.filter(|_| self.actor.is_some())
    }

    fn lock(&self, key: &str) -> Result<Option<Lock>, StoreError> {
        if self.world.locks.is_none() {
            return Ok(None);
        }
        let until = self.get("look at", key)?.until;
        Ok(Some(Lock { mode: until.map(|_| LockMode::Compliance), until, held: false }))
    }

    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<(), StoreError> {
        let mut state = self.world.turn(self.actor, key)?;
        let object = state.objects.get_mut(key);
        let object = object.ok_or_else(|| StoreError::new(ErrorKind::NotFound, "lock", key))?;
        object.until = object.until.max(Some(until));
        Ok(())
    }
}

/// A host's own clock, which is wrong by some hours.
pub struct Wrong {
    pub world: Arc<World>,
    /// Seconds ahead of the store's.
    pub ahead: i64,
}

impl Clock for Wrong {
    fn now(&self) -> SystemTime {
        let (now, by) = (self.world.lock().now, Duration::from_secs(self.ahead.unsigned_abs()));
        if self.ahead < 0 { now - by } else { now + by }
    }

    fn sleep(&self, duration: Duration) {
        self.world.lock().now += duration;
    }
}
