//! What is recorded of keys in the repository itself: `audit/keys/<id>`, evidence that is written
//! once and that only somebody with the root key could have signed.
//!
//! A change of slots is recorded before it takes effect, so that there is no change without a
//! record. The other way round there may be: a process that dies in between leaves the record of
//! something that did not happen. An id begins with the time, so that records are listed in order;
//! nothing is decided by it.
//!
//! The body is JSON, sealed and signed as objects that lead to deletions are: a host that may only
//! write must not be able to record anything here.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::crypto::{Class, epoch_of};
use crate::id::{hex, unhex};
use crate::keys::{KeySlot, SlotKind, timestamp};
use crate::layout::AUDIT_KEYS;
use crate::session::host;
use crate::{RepoError, Repository, Result, maintenance};

/// What was done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAction {
    /// A slot is about to be created.
    Add,
    /// A slot is about to be removed.
    Remove,
    /// A removal that was recorded does not take place.
    Keep,
    /// The repository was opened with a key for emergencies.
    Open,
    /// A page was made that says how to restore.
    Sheet,
    /// Written by a newer version of the program.
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for KeyAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Keep => "keep",
            Self::Open => "open",
            Self::Sheet => "sheet",
            Self::Unknown => "unknown",
        })
    }
}

/// A record of what was done with a key, by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// 32 hexadecimal digits; the name of its object.
    #[serde(skip_deserializing)]
    pub id: String,
    pub time: Timestamp,
    pub action: KeyAction,
    /// The slot that it was done to.
    pub slot: String,
    #[serde(default, with = "known_kind")]
    pub kind: Option<SlotKind>,
    #[serde(default)]
    pub label: String,
    /// The command that did it.
    #[serde(default)]
    pub command: String,
    /// The slot that the repository was opened with.
    #[serde(default)]
    pub opened_with: String,
    pub host: String,
    /// The number and, where there is one, the name of the user.
    pub user: String,
    /// The removal that does not take place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
}

/// A kind that is not known yet is none.
mod known_kind {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::keys::SlotKind;

    pub fn serialize<S: Serializer>(kind: &Option<SlotKind>, to: S) -> Result<S::Ok, S::Error> {
        kind.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SlotKind>, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        Ok(serde_json::from_value(value).ok())
    }
}

/// The user as the system knows it: `0 (root)`, or the number alone.
pub fn user() -> String {
    let number = rustix::process::geteuid().as_raw();
    // The name is for people; where nothing says it, the number is enough.
    let name = std::fs::read_to_string("/etc/passwd").ok().and_then(|users| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
        })
    });
    match name {
        Some(name) => format!("{number} ({name})"),
        None => number.to_string(),
    }
}

/// Writes a record of a slot; its id.
pub(crate) fn record(
    repository: &Repository,
    action: KeyAction,
    slot: &KeySlot,
    about: Option<&str>,
) -> Result<String> {
    write(repository, action, (&slot.id, slot.kind, &slot.label), about)
}

/// Writes a record of a host that may only write, which has no slot: its writer stands for it.
pub(crate) fn record_host(
    repository: &Repository,
    action: KeyAction,
    writer: &str,
    label: &str,
) -> Result<String> {
    write(repository, action, (writer, SlotKind::WriteOnly, label), None)
}

fn write(
    repository: &Repository,
    action: KeyAction,
    (slot, kind, label): (&str, SlotKind, &str),
    about: Option<&str>,
) -> Result<String> {
    repository.keys().must_own("record what is done with keys")?;
    let env = repository.environment();
    let time = timestamp(env);
    let mut id = [0; 16];
    let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
    id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    id[6..].copy_from_slice(&env.random::<10>());
    let record = KeyRecord {
        id: hex(&id),
        time,
        action,
        slot: slot.to_owned(),
        kind: Some(kind),
        label: label.to_owned(),
        command: repository.command().to_owned(),
        opened_with: repository.slot().to_owned(),
        host: host(),
        user: user(),
        about: about.map(str::to_owned),
    };
    let key = format!("{AUDIT_KEYS}{}", record.id);
    let body = serde_json::to_string(&record).expect("plain JSON");
    let object = maintenance::sign(repository.keys(), env, Class::Audit, &key, &body);
    repository.store().create(&key, object)?;
    Ok(record.id)
}

/// A record; `None` of one that was made with a root key after that was replaced, as whoever still
/// has it can: it says nothing.
fn read(repository: &Repository, key: &str, id: &str) -> Result<Option<KeyRecord>> {
    let object = repository.store().read(key)?;
    let keys = repository.keys();
    let body: String = maintenance::open_of_any_time(keys, Class::Audit, key, &object)?;
    if !keys.counts_as_record(epoch_of(&object), key) {
        tracing::warn!(
            record = key,
            "it does not count: it was made with a root key that had been replaced"
        );
        return Ok(None);
    }
    let record: KeyRecord =
        serde_json::from_str(&body).map_err(|error| RepoError::damaged(key, error))?;
    Ok(Some(KeyRecord { id: id.to_owned(), ..record }))
}

/// For [`internals`](crate::internals): whether a body is a record.
pub(crate) fn parses(body: &[u8]) -> bool {
    let record = postcard::from_bytes::<String>(body);
    record.is_ok_and(|json| serde_json::from_str::<KeyRecord>(&json).is_ok())
}

/// Valid bodies, for tests that alter them.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let record = KeyRecord {
        id: String::new(),
        time: Timestamp::UNIX_EPOCH,
        action: KeyAction::Keep,
        slot: "ab".repeat(16),
        kind: Some(SlotKind::WriteOnly),
        label: "a host".into(),
        command: "key add".into(),
        opened_with: "cd".repeat(16),
        host: "here".into(),
        user: "0 (root)".into(),
        about: Some("ef".repeat(16)),
    };
    let json = serde_json::to_string(&record).unwrap_or_default();
    debug_assert!(postcard::to_stdvec(&json).is_ok_and(|body| parses(&body)));
    postcard::to_stdvec(&json).into_iter().collect()
}

/// Every record, oldest first; those that cannot be used as errors.
pub(crate) fn records(repository: &Repository) -> Result<Vec<(String, Result<KeyRecord>)>> {
    let mut records = Vec::new();
    for object in repository.store().list(AUDIT_KEYS)? {
        let Some(id) = object.key.strip_prefix(AUDIT_KEYS) else { continue };
        if unhex::<16>(id).is_none() {
            continue;
        }
        match read(repository, &object.key, id).transpose() {
            Some(Err(error)) if !error.is_about_an_object() => return Err(error),
            Some(record) => records.push((object.key, record)),
            None => {}
        }
    }
    Ok(records)
}

/// The slots that somebody may be removing right now: a removal was recorded, not by `own`, and
/// nothing says that it does not take place. A record that cannot be read may be one of any slot, so
/// it is an error.
pub(crate) fn leaving(repository: &Repository, own: &str) -> Result<BTreeSet<String>> {
    let mut removals = Vec::new();
    let mut kept = BTreeSet::new();
    for (key, record) in records(repository)? {
        let record = record.map_err(|error| {
            error.with_hint(format!(
                "no key is removed while it may be the record of another removal; when nobody \
                 removes keys right now, move {key} out of the store"
            ))
        })?;
        match record.action {
            KeyAction::Remove if record.id != own && record.kind != Some(SlotKind::WriteOnly) => {
                removals.push((record.id, record.slot))
            }
            KeyAction::Keep => kept.extend(record.about),
            _ => {}
        }
    }
    Ok(removals.into_iter().filter(|(id, _)| !kept.contains(id)).map(|(_, slot)| slot).collect())
}
