//! From text and variables to a configuration whose names all lead somewhere.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use backstay_repo::SourceKind;

use crate::Result;
use crate::config::declare::{Key, Keyed, Reading, Section, listed, nearest};
use crate::config::keys::*;
use crate::config::tree::{self, Data, Node, Origin, Slot, Table};
use crate::config::{Config, RepositoryConfig, Search, SourceConfig, SourceSettings};
use crate::error::{Error, ErrorKind};

/// The tables whose keys are names that people choose, with what each of them may hold.
pub(crate) const NAMED: [&str; 5] = ["repositories", "sources", "tiers", "policies", "replication"];

/// The keys of each kind of source.
pub(crate) fn keys_of(kind: SourceKind) -> &'static [Key] {
    match kind {
        SourceKind::Postgres => PostgresKeys::KEYS,
        SourceKind::PostgresLogical => PostgresLogicalKeys::KEYS,
        SourceKind::Sqlite => SqliteKeys::KEYS,
        SourceKind::Files => FilesKeys::KEYS,
        SourceKind::Lake => LakeKeys::KEYS,
        SourceKind::KafkaConnect => KafkaConnectKeys::KEYS,
        SourceKind::SchemaRegistry => SchemaRegistryKeys::KEYS,
        _ => &[],
    }
}

pub(crate) fn read(text: &str, file: Option<&Path>, search: &Search) -> Result<Config> {
    let mut reading = Reading {
        file: file.map(Path::to_path_buf),
        folder: file
            .and_then(Path::parent)
            .map_or_else(|| search.current.clone(), |folder| search.current.join(folder)),
        current: search.current.clone(),
        home: search.home(),
        problems: Vec::new(),
    };
    let mut table = tree::parse(text).map_err(|errors| {
        let errors = errors.into_iter().map(|error| {
            let place = reading.place(&Origin::Line(error.line)).to_string();
            Error::new(ErrorKind::Configuration, format!("{} ({place})", error.message))
                .with_hint("correct the file; it is written in TOML")
        });
        Error::all(errors)
            .unwrap_or_else(|| Error::new(ErrorKind::Configuration, "the file is no TOML"))
    })?;
    apply_variables(&mut table, search, &mut reading);
    let config = read_root(&table, &mut reading);
    match (Error::all(std::mem::take(&mut reading.problems)), config) {
        (None, Some(config)) => Ok(config),
        (Some(error), _) => Err(error),
        // Whatever is missing has been complained of.
        (None, None) => {
            Err(Error::new(ErrorKind::Configuration, "the configuration is incomplete"))
        }
    }
}

fn read_root(table: &Table, reading: &mut Reading) -> Option<Config> {
    let mut keyed = Keyed { table, origin: &Origin::Nowhere, path: String::new() };
    let global = GlobalKeys::read_table(&mut keyed, reading);
    let repositories = named(table, "repositories", reading, read_repository);
    let tiers = named(table, "tiers", reading, |name, node, path, reading| {
        let keys = super::declare::read_section::<TierKeys>(node, path, reading)?;
        Some((name.to_owned(), keys))
    });
    let policies = named(table, "policies", reading, |name, node, path, reading| {
        let keys = super::declare::read_section::<PolicyKeys>(node, path, reading)?;
        refuse_keeping_nothing(&keys, node, path, reading);
        Some((name.to_owned(), keys))
    });
    let names = Names {
        repositories: written(table, "repositories"),
        tiers: written(table, "tiers"),
        policies: written(table, "policies"),
    };
    let sources = named(table, "sources", reading, |name, node, path, reading| {
        read_source(name, node, path, &names, reading)
    });
    let of_sources = written(table, "sources");
    let replication = named(table, "replication", reading, |name, node, path, reading| {
        let keys = super::declare::read_section::<ReplicationKeys>(node, path, reading)?;
        check_replication(&keys, node, path, &names.repositories, &of_sources, reading);
        Some((name.to_owned(), keys))
    });
    for name in global.iter().flat_map(|global| &global.restore_order) {
        if !names.repositories.contains(name) {
            let message =
                format!("`restore-order` names the repository `{name}`, which is not configured");
            let hint = format!("add a [repositories.{name}], or leave it out");
            reading.problem(&Origin::Nowhere, &message, hint);
        }
    }
    let mut known: Vec<String> = GlobalKeys::KEYS.iter().map(Key::name).collect();
    known.extend(NAMED.map(str::to_owned));
    keyed.refuse_unknown(&known, &|_| None, reading);
    Some(Config {
        file: reading.file.clone(),
        looked: Vec::new(),
        global: global?,
        repositories,
        sources,
        tiers: tiers.into_iter().collect::<BTreeMap<_, _>>(),
        policies: policies.into_iter().collect::<BTreeMap<_, _>>(),
        replication: replication.into_iter().collect::<BTreeMap<_, _>>(),
        warnings: Vec::new(),
        selected: None,
    })
}

/// Reads every table below `section`, in the order of the file.
fn named<T>(
    table: &Table,
    section: &str,
    reading: &mut Reading,
    mut read: impl FnMut(&str, &Node, &str, &mut Reading) -> Option<T>,
) -> Vec<T> {
    let Some(node) = table.take(section) else { return Vec::new() };
    let Data::Table(entries) = &node.data else {
        let message = format!("`{section}` is a table of tables, not {}", node.data.describe());
        reading.problem(
            &node.origin,
            &message,
            format!("write [{section}.NAME] and keys below it"),
        );
        return Vec::new();
    };
    let mut spelled: HashMap<String, &str> = HashMap::new();
    let mut out = Vec::new();
    for slot in &entries.slots {
        let path = format!("{section}.{}", slot.key);
        if !is_name(&slot.key) {
            let message = format!("`{}` cannot be a name", slot.key);
            reading.problem(
                &slot.origin,
                &message,
                "use letters, digits, `-`, `_` and `.`, starting with a letter or digit",
            );
            continue;
        }
        if let Some(other) = spelled.insert(variable_part(&slot.key), &slot.key) {
            let message =
                format!("`{section}.{other}` and `{path}` would share their environment variables");
            reading.problem(&slot.origin, &message, "give one of them another name");
        }
        if !matches!(slot.node.data, Data::Table(_)) {
            let message = format!("`{path}` is a table, not {}", slot.node.data.describe());
            reading.problem(&slot.origin, &message, format!("write [{path}] and keys below it"));
            continue;
        }
        out.extend(read(&slot.key, &slot.node, &path, reading));
    }
    out
}

/// The names below a section, whether or not they can be read.
fn written(table: &Table, section: &str) -> Vec<String> {
    let slot = table.slots.iter().find(|slot| slot.key == section);
    match slot.map(|slot| &slot.node.data) {
        Some(Data::Table(entries)) => entries.slots.iter().map(|s| s.key.clone()).collect(),
        _ => Vec::new(),
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn read_repository(
    name: &str,
    node: &Node,
    path: &str,
    reading: &mut Reading,
) -> Option<RepositoryConfig> {
    let keys = super::declare::read_section::<RepositoryKeys>(node, path, reading)?;
    let ways = [
        ("key-file", keys.key_file.is_some()),
        ("passphrase-file", keys.passphrase_file.is_some()),
        ("passphrase-command", !keys.passphrase_command.is_empty()),
        ("identity", keys.identity.is_some()),
        ("aws-kms", keys.aws_kms.is_some()),
        ("vault", keys.vault.is_some()),
    ];
    let said: Vec<&str> = ways.iter().filter(|(_, said)| *said).map(|(name, _)| *name).collect();
    if said.len() > 1 {
        let message = format!("[{path}] says {}, and only one can open it", listed(&said));
        reading.problem(&node.origin, &message, "keep the one that is meant");
        return None;
    }
    Some(RepositoryConfig { name: name.to_owned(), configured: true, keys })
}

fn refuse_keeping_nothing(keys: &PolicyKeys, node: &Node, path: &str, reading: &mut Reading) {
    let Some(keep) = &keys.retention else { return };
    let counts = [keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly, keep.yearly];
    if counts.iter().all(|count| count.unwrap_or(0) == 0) {
        let origin = origin_of(node, "retention");
        let message = format!("`{path}.retention` would keep no snapshot at all");
        reading.problem(&origin, &message, "say how many to keep: `last = 4`, `daily = 7`");
    }
}

fn check_replication(
    keys: &ReplicationKeys,
    node: &Node,
    path: &str,
    repositories: &[String],
    sources: &[String],
    reading: &mut Reading,
) {
    let mut missing = |key: &str, what: &str, plural: &str, name: &str, known: &[String]| {
        let message = format!("`{path}.{key}` names the {what} `{name}`, which is not configured");
        let hint = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("add a [{plural}.{name}]"),
        };
        reading.problem(&origin_of(node, key), &message, hint);
    };
    for (key, name) in [("from", &keys.from), ("to", &keys.to)] {
        if !repositories.contains(name) {
            missing(key, "repository", "repositories", name, repositories);
        }
    }
    for name in keys.sources.iter().filter(|name| !sources.contains(name)) {
        missing("sources", "source", "sources", name, sources);
    }
    if keys.from == keys.to {
        let message = format!("`{path}` copies `{}` to itself", keys.from);
        reading.problem(&origin_of(node, "to"), &message, "name two different repositories");
    }
}

struct Names {
    repositories: Vec<String>,
    tiers: Vec<String>,
    policies: Vec<String>,
}

fn read_source(
    name: &str,
    node: &Node,
    path: &str,
    names: &Names,
    reading: &mut Reading,
) -> Option<SourceConfig> {
    let Data::Table(table) = &node.data else { return None };
    let mut keyed = Keyed { table, origin: &node.origin, path: path.to_owned() };
    let common = SourceKeys::read_table(&mut keyed, reading);
    let Some(common) = common else {
        // Without its kind nothing can be said of the other keys.
        return None;
    };
    let kind = common.kind;
    let settings = match kind {
        SourceKind::Postgres => {
            PostgresKeys::read_table(&mut keyed, reading).map(SourceSettings::Postgres)
        }
        SourceKind::PostgresLogical => PostgresLogicalKeys::read_table(&mut keyed, reading)
            .map(SourceSettings::PostgresLogical),
        SourceKind::Sqlite => {
            SqliteKeys::read_table(&mut keyed, reading).map(SourceSettings::Sqlite)
        }
        SourceKind::Files => FilesKeys::read_table(&mut keyed, reading).map(SourceSettings::Files),
        SourceKind::Lake => LakeKeys::read_table(&mut keyed, reading).map(SourceSettings::Lake),
        SourceKind::KafkaConnect => {
            KafkaConnectKeys::read_table(&mut keyed, reading).map(SourceSettings::KafkaConnect)
        }
        SourceKind::SchemaRegistry => {
            SchemaRegistryKeys::read_table(&mut keyed, reading).map(SourceSettings::SchemaRegistry)
        }
        _ => None,
    };
    let known: Vec<String> = SourceKeys::KEYS.iter().chain(keys_of(kind)).map(Key::name).collect();
    keyed.refuse_unknown(&known, &|key| of_another_kind(key, kind), reading);
    check_references(&common, node, path, names, reading);
    if let Some(SourceSettings::Files(files)) = &settings
        && files.paths.is_empty()
    {
        let origin = origin_of(node, "paths");
        let message = format!("`{path}.paths` names nothing to back up");
        reading.problem(&origin, &message, "list files and folders: paths = [\"/etc\"]");
    }
    Some(SourceConfig { name: name.to_owned(), common, settings: settings? })
}

/// What to say of a key that belongs to other kinds of sources.
fn of_another_kind(key: &str, kind: SourceKind) -> Option<String> {
    let kinds: Vec<&str> = SourceKind::ALL
        .into_iter()
        .filter(|other| keys_of(*other).iter().any(|k| k.name() == key))
        .map(SourceKind::as_str)
        .collect();
    (!kinds.is_empty())
        .then(|| format!("it belongs to sources of kind {}, and this is {kind}", kinds.join(", ")))
}

fn check_references(
    common: &SourceKeys,
    node: &Node,
    path: &str,
    names: &Names,
    reading: &mut Reading,
) {
    let mut missing = |key: &str, what: &str, plural: &str, name: &str, known: &[String]| {
        let message = format!("`{path}.{key}` names the {what} `{name}`, which is not configured");
        let hint = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("add a [{plural}.{name}]"),
            None => format!("add a [{plural}.{name}], or name one of {}", listed(known)),
        };
        reading.problem(&origin_of(node, key), &message, hint);
    };
    for name in &common.repositories {
        if !names.repositories.contains(name) {
            missing("repositories", "repository", "repositories", name, &names.repositories);
        }
    }
    if let Some(name) = &common.tier
        && !names.tiers.contains(name)
    {
        missing("tier", "tier", "tiers", name, &names.tiers);
    }
    if let Some(name) = &common.policy
        && !names.policies.contains(name)
    {
        missing("policy", "policy", "policies", name, &names.policies);
    }
    if common.repositories.is_empty() && names.repositories.len() > 1 {
        let message = format!("[{path}] does not say where it is backed up to");
        let hint = format!("add `repositories = [\"{}\"]`", names.repositories.join("\", \""));
        reading.problem(&node.origin, &message, hint);
    }
    for (index, name) in common.repositories.iter().enumerate() {
        if common.repositories.iter().take(index).any(|earlier| earlier == name) {
            let message = format!("`{path}.repositories` names `{name}` twice");
            reading.problem(&origin_of(node, "repositories"), &message, "name it once");
        }
    }
}

/// Where the value of a key was written; the table itself where the key is not.
fn origin_of(node: &Node, key: &str) -> Origin {
    match &node.data {
        Data::Table(table) => table
            .slots
            .iter()
            .find(|slot: &&Slot| slot.key == key)
            .map_or_else(|| node.origin.clone(), |slot| slot.node.origin.clone()),
        _ => node.origin.clone(),
    }
}

/// A name or key as it stands in a variable: `key-file` is `KEY_FILE`.
pub(crate) fn variable_part(name: &str) -> String {
    name.to_ascii_uppercase().replace(['-', '.'], "_")
}

/// The paths of all keys that take a value themselves, below a section.
pub(crate) fn leaves(keys: &'static [Key]) -> Vec<Vec<String>> {
    keys.iter()
        .flat_map(|key| {
            if key.nested.is_empty() {
                return vec![vec![key.name()]];
            }
            let below = leaves(key.nested).into_iter();
            below.map(|rest| [vec![key.name()], rest].concat()).collect()
        })
        .collect()
}

/// The keys that a section of [`NAMED`] can hold.
fn leaves_of(section: &str) -> Vec<Vec<String>> {
    match section {
        "repositories" => leaves(RepositoryKeys::KEYS),
        "sources" => {
            let kinds = SourceKind::ALL.into_iter().flat_map(|kind| leaves(keys_of(kind)));
            let mut all: Vec<_> = leaves(SourceKeys::KEYS).into_iter().chain(kinds).collect();
            all.sort();
            all.dedup();
            all
        }
        "tiers" => leaves(TierKeys::KEYS),
        "replication" => leaves(ReplicationKeys::KEYS),
        _ => leaves(PolicyKeys::KEYS),
    }
}

/// Puts every variable over what the file says.
fn apply_variables(table: &mut Table, search: &Search, reading: &mut Reading) {
    for path in leaves(GlobalKeys::KEYS) {
        let variable = format!("BACKSTAY_{}", variable_part(&path.join("_")));
        if let Some(value) = search.variable(&variable) {
            table.overlay(&path, value, &variable);
        }
    }
    for section in NAMED {
        let prefix = format!("BACKSTAY_{}_", variable_part(section));
        let keys: Vec<(String, Vec<String>)> = leaves_of(section)
            .into_iter()
            .map(|path| (variable_part(&path.join("_")), path))
            .collect();
        let in_file = written(table, section);
        for (variable, value) in &search.variables {
            let Some(rest) = variable.strip_prefix(&prefix) else { continue };
            if value.is_empty() {
                continue;
            }
            match split_variable(rest, &in_file, &keys) {
                Some((name, key)) => {
                    let path = [vec![section.to_owned(), name], key.clone()].concat();
                    table.overlay(&path, value, variable);
                }
                None => {
                    let origin = Origin::Variable(variable.clone());
                    let known: Vec<&str> = keys.iter().map(|(part, _)| part.as_str()).collect();
                    let message = format!("{variable} ends in no key of [{section}]");
                    let hint =
                        format!("it has to be {prefix}NAME_ and one of {}", known.join(", "));
                    reading.problem(&origin, &message, hint);
                }
            }
        }
    }
}

/// Parts `MAIN_KEY_FILE` into the name and the key. A name that the file has wins, then the
/// longest key.
fn split_variable<'a>(
    rest: &str,
    in_file: &[String],
    keys: &'a [(String, Vec<String>)],
) -> Option<(String, &'a Vec<String>)> {
    let mut found: Option<(bool, usize, String, &Vec<String>)> = None;
    for (part, path) in keys {
        let Some(name) = rest.strip_suffix(part.as_str()).and_then(|n| n.strip_suffix('_')) else {
            continue;
        };
        if name.is_empty() {
            continue;
        }
        let existing = in_file.iter().find(|existing| variable_part(existing) == name);
        let new = || name.to_ascii_lowercase().replace('_', "-");
        let candidate =
            (existing.is_some(), part.len(), existing.cloned().unwrap_or_else(new), path);
        if found.as_ref().is_none_or(|best| (candidate.0, candidate.1) > (best.0, best.1)) {
            found = Some(candidate);
        }
    }
    found.map(|(_, _, name, path)| (name, path))
}
