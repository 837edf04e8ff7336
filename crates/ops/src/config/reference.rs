//! The reference page of the configuration, written from the declarations.

use std::fmt::Write;

use backstay_repo::SourceKind;

use crate::config::declare::{Key, Section};
use crate::config::keys::*;
use crate::config::read::{keys_of, variable_part};

/// `docs/configuration.md`, whole.
pub fn reference() -> String {
    let mut out = String::from(HEAD);
    section(
        &mut out,
        "",
        "What holds for everything",
        "These keys stand at the top of the file, before the first table.",
        GlobalKeys::KEYS,
        "BACKSTAY_",
    );
    section(
        &mut out,
        "[repositories.NAME]",
        "Repositories",
        "A place for recovery data. One of `key-file`, `passphrase-file`, `passphrase-command`, `identity`, `aws-kms` and `vault` opens it ([keys.md](keys.md)); without them the environment variable `BACKSTAY_PASSPHRASE` does. With one repository configured it is everybody's default.",
        RepositoryKeys::KEYS,
        "BACKSTAY_REPOSITORIES_NAME_",
    );
    section(
        &mut out,
        "[sources.NAME]",
        "Sources",
        "A named thing to protect. The keys here belong to every kind of source; those of each kind follow.",
        SourceKeys::KEYS,
        "BACKSTAY_SOURCES_NAME_",
    );
    for (kind, about) in KINDS {
        let title = format!("### kind = \"{kind}\"\n\n{about}\n");
        let _ = writeln!(out, "{title}");
        rows(&mut out, keys_of(kind), "", "BACKSTAY_SOURCES_NAME_");
    }
    section(
        &mut out,
        "[tiers.NAME]",
        "Tiers",
        "A class of sources with objectives. `backstay status` and drills compare what is with what should be.",
        TierKeys::KEYS,
        "BACKSTAY_TIERS_NAME_",
    );
    section(
        &mut out,
        "[policies.NAME]",
        "Policies",
        "Schedule, retention and verification. Schedules are cron expressions of five fields in local time: minute, hour, day of the month, month, day of the week.",
        PolicyKeys::KEYS,
        "BACKSTAY_POLICIES_NAME_",
    );
    section(
        &mut out,
        "[replication.NAME]",
        "Replication",
        "What is copied from one repository to another, without the sources. `backstay replicate` runs it, and `backstay status` says how far behind it is.",
        ReplicationKeys::KEYS,
        "BACKSTAY_REPLICATION_NAME_",
    );
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

const KINDS: [(SourceKind, &str); 7] = [
    (SourceKind::Postgres, "A PostgreSQL cluster, whole, with its log: restorable to any moment."),
    (
        SourceKind::PostgresLogical,
        "Databases of a PostgreSQL server as the statements that make them again: portable between versions, without moments in between.",
    ),
    (SourceKind::Sqlite, "One SQLite database, consistent while programs write to it."),
    (SourceKind::Files, "Files and folders of this host, with all of their metadata."),
    (
        SourceKind::Lake,
        "A data lake: tables and files under one address, captured as they were at one moment.",
    ),
    (SourceKind::KafkaConnect, "Connectors of a Kafka Connect cluster, with their offsets."),
    (
        SourceKind::SchemaRegistry,
        "Subjects of a Schema Registry, with ids, versions, references, compatibility and modes.",
    ),
];

const HEAD: &str = "\
<!-- Written by the program from the declarations in crates/ops/src/config/keys.rs. -->
# Configuration

`backstay` reads one file, `backstay.toml`. The first of these that is there is used:

1. the file that `--config` names
2. the file that the variable `BACKSTAY_CONFIG` names
3. `./backstay.toml`
4. `$XDG_CONFIG_HOME/backstay/backstay.toml`, or `~/.config/backstay/backstay.toml`
5. `/etc/backstay/backstay.toml`

Every key has an environment variable, too. Defaults weigh least, then the file, then variables,
then flags. In a variable a list is written with commas (`/etc,/srv`), and a table of texts as
`name=value,name=value`. `NAME` is the name in capitals with `_` for `-` and `.`; a name that the
file does not have is added by its variables alone.

Relative paths in the file start in the folder of the file; in variables and flags, in the current
folder. `~/` is the home folder. Lengths of time are written `90s`, `5m`, `1h 30m`, `7d`, `2w`.

A key that is not listed here is an error. `backstay init` writes a file to start with.

```toml
[repositories.main]
url = \"file:///var/backups/backstay\"
key-file = \"/etc/backstay/main.key\"

[sources.orders]
kind = \"postgres\"
data-directory = \"/var/lib/postgresql/15/main\"
tier = \"critical\"
policy = \"databases\"

[sources.etc]
kind = \"files\"
paths = [\"/etc\"]

[tiers.critical]
rto = \"1h\"
rpo = \"5m\"

[policies.databases]
full = \"0 2 * * 0\"
incremental = \"0 2 * * 1-6\"
retention = { last = 4, daily = 7, weekly = 5, archive = \"7d\" }
```

Secrets never stand in arguments. A repository is opened by a key file, by a passphrase from a file
or a command, or by the variable `BACKSTAY_PASSPHRASE`. Without any configuration the flags
`--repository URL --key-file PATH` are enough for commands that read and for `backup PATH`.

";

fn section(
    out: &mut String,
    table: &str,
    title: &str,
    about: &str,
    keys: &'static [Key],
    variables: &str,
) {
    let _ = writeln!(out, "## {title}\n");
    if !table.is_empty() {
        let _ = writeln!(out, "`{table}`\n");
    }
    let _ = writeln!(out, "{about}\n");
    rows(out, keys, "", variables);
}

fn rows(out: &mut String, keys: &'static [Key], prefix: &str, variables: &str) {
    for key in keys {
        let name = format!("{prefix}{}", key.name());
        let doc: Vec<&str> = key.doc.iter().map(|line| line.trim()).collect();
        let variable = format!("{variables}{}", variable_part(key.field));
        if key.nested.is_empty() {
            let state = match (key.required, key.default) {
                (true, _) => "required".to_owned(),
                (_, Some(default)) => format!("default `{default}`"),
                (_, None) => "optional".to_owned(),
            };
            let example = key.example;
            let _ = writeln!(out, "**`{name}`** · {} · {state}  ", plain((key.takes)()));
            let _ = writeln!(out, "{}  ", doc.join(" "));
            let _ = writeln!(out, "`{} = {example}` · `{variable}`\n", key.name());
        } else {
            let _ = writeln!(out, "**`{name}`** · a table · optional  ");
            let _ = writeln!(out, "{}  ", doc.join(" "));
            let _ = writeln!(out, "`{} = {}`\n", key.name(), key.example);
            rows(out, key.nested, &format!("{name}."), &format!("{variable}_"));
        }
    }
}

/// What a key takes, without the example: the row has its own.
fn plain(takes: String) -> String {
    takes.split(" such as").next().unwrap_or(&takes).to_owned()
}
