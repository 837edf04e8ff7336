//! What is different between two catalogues of a database, object by object, and the history of one
//! object over many.
//!
//! Who made a change is nothing that a server keeps: the owner is named, and no author is guessed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use super::catalogue::{Catalogue, Column, Object, ObjectKind};

/// How an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeType {
    Added,
    Removed,
    Changed,
    /// It is the same object under another name, or in another schema; it may have changed as well.
    Renamed,
}

impl ChangeType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Renamed => "renamed",
        }
    }
}

/// One difference of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `owner`, `definition`, `column total`, `column total type` …
    pub field: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// What happened to an object between two catalogues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub change: ChangeType,
    pub kind: ObjectKind,
    /// `schema.name`; of what was removed, as it was.
    pub object: String,
    /// What it was called, where that is another name.
    pub was: Option<String>,
    pub owner: Option<String>,
    pub what: Vec<Difference>,
}

/// What is different from `a` to `b`, in the order of kinds and names. Sizes, and what happens to
/// rows, is no difference.
pub fn drift(a: &Catalogue, b: &Catalogue) -> Vec<Change> {
    let before: BTreeMap<_, &Object> = a.objects.iter().map(|one| (one.key(), one)).collect();
    let after: BTreeMap<_, &Object> = b.objects.iter().map(|one| (one.key(), one)).collect();
    let by_oid: HashMap<(ObjectKind, u32), &Object> = b
        .objects
        .iter()
        .filter(|one| !before.contains_key(&one.key()))
        .map(|one| ((one.kind, one.oid), one))
        .collect();
    let mut renamed = BTreeSet::new();
    let mut changes = Vec::new();
    for (key, old) in &before {
        match (after.get(key), by_oid.get(&(old.kind, old.oid))) {
            (Some(new), _) => {
                let what = differences(old, new);
                if !what.is_empty() {
                    changes.push(change(ChangeType::Changed, new, what));
                }
            }
            (None, Some(new)) => {
                renamed.insert(new.key());
                let mut it = change(ChangeType::Renamed, new, differences(old, new));
                it.was = Some(old.qualified());
                changes.push(it);
            }
            (None, None) => changes.push(change(ChangeType::Removed, old, Vec::new())),
        }
    }
    for (key, new) in after {
        if !before.contains_key(&key) && !renamed.contains(&key) {
            changes.push(change(ChangeType::Added, new, Vec::new()));
        }
    }
    changes.sort_by(|x, y| (x.kind, &x.object, x.change).cmp(&(y.kind, &y.object, y.change)));
    changes
}

fn change(change: ChangeType, object: &Object, what: Vec<Difference>) -> Change {
    Change {
        change,
        kind: object.kind,
        object: object.qualified(),
        was: None,
        owner: object.owner.clone(),
        what,
    }
}

/// What two versions of an object differ in.
pub fn differences(a: &Object, b: &Object) -> Vec<Difference> {
    let mut what = Vec::new();
    let mut note = |field: &str, before: Option<String>, after: Option<String>| {
        if before != after {
            what.push(Difference { field: field.to_owned(), before, after });
        }
    };
    note("owner", a.owner.clone(), b.owner.clone());
    note("comment", a.comment.clone(), b.comment.clone());
    let list = |grants: &[String]| Some(grants.join(", ")).filter(|text| !text.is_empty());
    note("grants", list(&a.grants), list(&b.grants));
    let names: BTreeSet<&String> = a.facts.keys().chain(b.facts.keys()).collect();
    for name in names {
        note(name, a.facts.get(name).cloned(), b.facts.get(name).cloned());
    }
    let find =
        |columns: &[Column], name: &str| columns.iter().find(|column| column.name == name).cloned();
    for old in &a.columns {
        let Some(new) = find(&b.columns, &old.name) else {
            note(&format!("column {}", old.name), Some(describe(old)), None);
            continue;
        };
        let field = |part: &str| format!("column {} {part}", old.name);
        note(&field("type"), Some(old.type_.clone()), Some(new.type_.clone()));
        let null = |nullable: bool| Some(if nullable { "yes" } else { "no" }.to_owned());
        note(&field("nullable"), null(old.nullable), null(new.nullable));
        note(&field("default"), old.default.clone(), new.default.clone());
        note(&field("identity"), old.identity.clone(), new.identity.clone());
        note(&field("generated"), old.generated.clone(), new.generated.clone());
        note(&field("collation"), old.collation.clone(), new.collation.clone());
        note(&field("comment"), old.comment.clone(), new.comment.clone());
        note(&field("grants"), list(&old.grants), list(&new.grants));
    }
    for new in &b.columns {
        if find(&a.columns, &new.name).is_none() {
            note(&format!("column {}", new.name), None, Some(describe(new)));
        }
    }
    what
}

fn describe(column: &Column) -> String {
    let null = if column.nullable { "" } else { " not null" };
    let default = column.default.as_ref().map(|it| format!(" default {it}")).unwrap_or_default();
    format!("{}{null}{default}", column.type_)
}

/// A version of an object: from this snapshot on it is so.
#[derive(Debug, Clone, Serialize)]
pub struct Version {
    /// The snapshot that shows it first.
    pub snapshot: String,
    /// When that was made: the change happened after `after` and not later than this.
    pub time: Timestamp,
    /// When the snapshot before it was made; nothing when this is the first one.
    pub after: Option<Timestamp>,
    pub change: ChangeType,
    pub object: String,
    pub owner: Option<String>,
    /// Who made the change: nothing, for no server tells.
    pub author: Option<String>,
    pub what: Vec<Difference>,
}

/// A snapshot's id, when its view of the database was taken, and what was there.
pub struct Moment {
    pub snapshot: String,
    pub catalogue: Catalogue,
}

/// The versions of an object over snapshots, the oldest first. It is followed through changes of its
/// name. Empty when none of them has it.
pub fn history(moments: &[Moment], name: &str) -> Vec<Version> {
    let newest = moments.iter().rev().find_map(|moment| {
        let at = *moment.catalogue.find(name).first()?;
        moment.catalogue.objects.get(at)
    });
    let Some(newest) = newest else { return Vec::new() };
    let mut versions: Vec<Version> = Vec::new();
    let mut before: Option<&Object> = None;
    let mut last: Option<Timestamp> = None;
    for moment in moments {
        let objects = &moment.catalogue.objects;
        let same = |one: &&Object| one.kind == newest.kind && one.oid == newest.oid;
        let now = objects
            .iter()
            .find(|one| one.key() == newest.key())
            .or_else(|| objects.iter().find(same));
        let time = moment.catalogue.time;
        let mut add = |change: ChangeType, object: &Object, what: Vec<Difference>| {
            versions.push(Version {
                snapshot: moment.snapshot.clone(),
                time,
                after: last,
                change,
                object: object.qualified(),
                owner: object.owner.clone(),
                author: None,
                what,
            });
        };
        match (before, now) {
            (None, Some(now)) => add(ChangeType::Added, now, Vec::new()),
            (Some(old), None) => add(ChangeType::Removed, old, Vec::new()),
            (Some(old), Some(now)) => {
                let mut what = differences(old, now);
                let renamed = old.key() != now.key();
                if renamed {
                    what.insert(
                        0,
                        Difference {
                            field: "name".to_owned(),
                            before: Some(old.qualified()),
                            after: Some(now.qualified()),
                        },
                    );
                }
                if !what.is_empty() {
                    let change = if renamed { ChangeType::Renamed } else { ChangeType::Changed };
                    add(change, now, what);
                }
            }
            (None, None) => {}
        }
        before = now;
        last = Some(time);
    }
    versions
}
