use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{
    Access, Arrived, ErrorKind, Lock, LockPolicy, Move, Part, Result, StoreError, ThawSpeed,
    Unfinished, Use,
};

/// What a store knows of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Slash-separated, relative to the repository's root, without a leading slash.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// The store's own time of creation, where it has one.
    pub modified: Option<SystemTime>,
}

/// A place that keeps objects. Every call blocks, and none retries: that is the handle's work.
pub trait Backend: Send + Sync {
    /// The address without secrets, for messages.
    fn url(&self) -> String;

    /// Whether a network lies between.
    fn is_remote(&self) -> bool {
        false
    }

    /// Creates an object that must not exist; durable when this returns.
    ///
    /// Fails with [`AlreadyExists`](crate::ErrorKind::AlreadyExists), and changes nothing, when
    /// there is one of that key.
    fn create(&self, key: &str, body: Bytes) -> Result<()>;

    /// The same, for an object that is stored according to its use.
    fn create_for(&self, purpose: Use, key: &str, body: Bytes) -> Result<()> {
        let _ = purpose;
        self.create(key, body)
    }

    /// The whole object.
    fn read(&self, key: &str) -> Result<Bytes>;

    /// Exactly the bytes of `range`; a range that reaches past the end is
    /// [`Damaged`](crate::ErrorKind::Damaged).
    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes>;

    /// Size and time of an object.
    fn head(&self, key: &str) -> Result<ObjectMeta>;

    /// Every object whose key starts with `prefix`, sorted by key. Unfinished uploads never show.
    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;

    /// Removes an object; one that is not there is not an error.
    fn delete(&self, key: &str) -> Result<()>;

    /// In parts of how many bytes an object is sent; `None`: in one piece, by
    /// [`create`](Self::create).
    fn part_size(&self, key: &str, length: u64) -> Option<u64> {
        let _ = (key, length);
        None
    }

    /// Begins an object in parts; the service's name for that. Nothing shows of it yet.
    fn begin_upload(&self, purpose: Use, key: &str, body: &Bytes) -> Result<String> {
        let _ = (purpose, body);
        Err(no_parts("begin", key))
    }

    /// Whether what was begun arrives one part after the other, by [`send_on`](Self::send_on); else
    /// by [`upload_part`](Self::upload_part) and [`finish_upload`](Self::finish_upload).
    fn in_order(&self) -> bool {
        false
    }

    /// Sends the bytes of `range`, which begins where the last answer said. With the last byte of
    /// `body` the object is created, which must not exist; like [`create`](Self::create) otherwise.
    /// An empty range only asks how far it is.
    fn send_on(&self, key: &str, upload: &str, body: &Bytes, range: Range<u64>) -> Result<Arrived> {
        let _ = (upload, body, range);
        Err(no_parts("send a part of", key))
    }

    /// Sends one part; the first is number 1. Sent again, it replaces what was sent before.
    fn upload_part(&self, key: &str, upload: &str, number: u32, part: Bytes) -> Result<Part> {
        let _ = (upload, number, part);
        Err(no_parts("send a part of", key))
    }

    /// Makes an object that must not exist of its parts; like [`create`](Self::create) otherwise.
    /// [`NotFound`](crate::ErrorKind::NotFound) when the parts are gone.
    fn finish_upload(&self, purpose: Use, key: &str, upload: &str, parts: &[Part]) -> Result<()> {
        let _ = (purpose, upload, parts);
        Err(no_parts("create", key))
    }

    /// Removes the parts of an object that was not finished.
    fn abort_upload(&self, key: &str, upload: &str) -> Result<()> {
        let _ = upload;
        Err(no_parts("remove parts of", key))
    }

    /// What was begun below `prefix` and not finished; `None` where the service removes that by
    /// itself, or has no parts.
    fn unfinished_uploads(&self, prefix: &str) -> Result<Option<Vec<Unfinished>>> {
        let _ = prefix;
        Ok(None)
    }

    /// Whether new data goes where it must be fetched from before it can be read.
    fn archives_data(&self) -> bool {
        false
    }

    /// Whether objects are moved by age here, in place and with the bytes that they have.
    fn moves_by_age(&self) -> bool {
        false
    }

    /// Which of these objects below `prefix`, of which the age is given, are due for a colder class.
    fn due(&self, prefix: &str, objects: &[(String, Duration)]) -> Result<Vec<Move>> {
        let _ = (prefix, objects);
        Ok(Vec::new())
    }

    /// Moves an object into a class, in the service's own word.
    fn set_class(&self, key: &str, class: &str) -> Result<()> {
        Err(StoreError::new(ErrorKind::Configuration, "move", key)
            .with_detail(format!("this kind of store has no class {class}")))
    }

    /// Whether an object can be read now.
    fn access(&self, key: &str) -> Result<Access> {
        self.head(key).map(|_| Access::Ready { until: None })
    }

    /// Asks for an object in an archive.
    fn thaw(&self, key: &str, speed: ThawSpeed, days: u32) -> Result<()> {
        let _ = (speed, days);
        Err(StoreError::new(ErrorKind::Configuration, "thaw", key)
            .with_detail("this kind of store has no archive"))
    }

    /// Its parity, where it can have that.
    fn parity(&self) -> Option<&dyn Parity> {
        None
    }

    /// How new objects are locked; none: they are not.
    fn lock_policy(&self) -> Option<LockPolicy> {
        None
    }

    /// What keeps an object from being removed; `None` where the store has no locks.
    fn lock(&self, key: &str) -> Result<Option<Lock>> {
        let _ = key;
        Ok(None)
    }

    /// Locks an object until `until`, in the mode of the policy. A lock is never made shorter.
    fn extend_lock(&self, key: &str, until: SystemTime) -> Result<()> {
        let _ = until;
        Err(no_locks("lock", key))
    }

    /// Puts an object on hold, or lifts that.
    fn hold(&self, key: &str, on: bool) -> Result<()> {
        let _ = on;
        Err(no_locks("hold", key))
    }
}

fn no_parts(doing: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail("this kind of store takes no objects in parts")
}

/// Whether an object has parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParityState {
    Whole,
    /// None, or one that a crash cut off while it was written.
    Missing,
    /// The parity file is not what was written, or not of this object; the object may be right.
    Damaged,
}

/// Says whether bytes are what was written under a key: whoever has the keys to the objects. None:
/// there is no telling.
///
/// It is asked while an object is read, so it must read nothing from the store and wait for nobody
/// who does.
pub type Judge = dyn Fn(&str, &[u8]) -> Option<bool> + Send + Sync;

/// What repairs objects that the medium has damaged, where a store has that.
///
/// Damaged objects are read as they were, as long as their parity gives that; [`rebuilt`] says which
/// ones, so that whoever has authenticated what was read may [`mend`] them.
///
/// Parity proves nothing, it may be damaged, forged, or made of damage. So a [`Judge`] decides where
/// object and parity differ: what lies there stands if it is right, and only what is right takes its
/// place. Until there is one, the parity is believed.
///
/// [`rebuilt`]: Self::rebuilt
/// [`mend`]: Self::mend
pub trait Parity: Send + Sync {
    /// Whom to ask from now on. What was decided before is decided again.
    fn set_judge(&self, judge: Arc<Judge>);

    /// Reads this object as it lies from now on, until there is a judge: what its parity gave turned
    /// out to be of no use.
    fn distrust(&self, key: &str);

    /// How much of each new object can be repaired, in percent; none: no parity is made.
    fn share(&self) -> Result<Option<u8>>;

    /// Sets the share for objects to come; none: and removes all parity.
    fn set_share(&self, share: Option<u8>) -> Result<()>;

    /// Keys of damaged objects that were read through their parity since the store was opened.
    fn rebuilt(&self) -> Vec<String>;

    /// Reads the parity of an object, and not the object.
    fn state(&self, key: &str) -> Result<ParityState>;

    /// Puts what was rebuilt into the place of the damaged object. Only for bytes that have passed
    /// the object's own authentication.
    fn mend(&self, key: &str) -> Result<()>;

    /// Keys of objects without parity, sorted. Only the ends of parity files are read.
    fn missing(&self) -> Result<Vec<String>>;

    /// Makes the parity of an object anew, after the judge has found the object right. False: no
    /// parity is wanted here, or there is no telling whether the object is right.
    ///
    /// # Errors
    /// `Damaged` of an object that is not right, or without a judge is not what its parity knows.
    fn complete(&self, key: &str) -> Result<bool>;

    /// Removes parity without an object, and what finished repairs kept; returns how many of the
    /// former.
    fn tidy(&self) -> Result<u64>;
}

fn no_locks(doing: &'static str, key: &str) -> StoreError {
    StoreError::new(ErrorKind::Configuration, doing, key)
        .with_detail("this kind of store has no locks")
}
