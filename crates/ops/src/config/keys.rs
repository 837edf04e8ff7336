//! Every key there is. The reference page, the environment variables and the reader follow from
//! this file alone.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use backstay_postgres::{Detect, Method};
use backstay_repo::{Compression, SourceKind};
use backstay_store::{Later, LockMode};

use crate::config::declare::{nested, parsed, section};
use crate::units::{parse_duration, parse_size};

section! {
    /// What holds for everything.
    pub struct GlobalKeys {
        /// Threads that read, compress and seal. 0 is one for each core.
        workers: u32 { default: "0", example: "4" },
        /// A folder for what can be rebuilt at any time: copies of the index. Absent: the user's
        /// cache folder.
        cache: Option<PathBuf> { example: "\"/var/cache/backstay\"" },
        /// The file in which it is recorded which keys were used on this host. Absent: `keys.log` in
        /// the user's state folder.
        key_log: Option<PathBuf> { example: "\"/var/log/backstay/keys.log\"" },
        /// Repositories in the order in which a restore asks them, by name; those that are left out
        /// come last. Absent: what is on this machine first, then in the order of the file.
        restore_order: Vec<String> { example: "[\"main\", \"offsite\"]" },
    }
}

section! {
    /// A place for recovery data. One of `key-file`, `passphrase-file`, `passphrase-command`,
    /// `identity`, `aws-kms` and `vault` opens it; without them the environment variable
    /// `BACKSTAY_PASSPHRASE` does.
    pub struct RepositoryKeys {
        /// The store: a folder (`file:///var/backups/backstay`), `s3://bucket/prefix`,
        /// `gs://bucket/prefix` or `az://container/prefix`.
        url: StoreUrl { example: "\"file:///var/backups/backstay\"" },
        /// A file of 32 random bytes or more. Whoever has it can read everything; nobody can
        /// without it.
        key_file: Option<PathBuf> { example: "\"/etc/backstay/main.key\"" },
        /// A file whose first line is the passphrase.
        passphrase_file: Option<PathBuf> { example: "\"/etc/backstay/main.passphrase\"" },
        /// A command that prints the passphrase: a program and its arguments.
        passphrase_command: Vec<String> { example: "[\"pass\", \"show\", \"backstay\"]" },
        /// A file that `age-keygen` wrote, for a slot that was added for its recipient.
        identity: Option<PathBuf> { example: "\"/etc/backstay/identity.txt\"" },
        /// A key in AWS KMS. Credentials come from where AWS's own tools find them.
        aws_kms: Option<AwsKmsKeys> { example: "{ key = \"alias/backstay\" }" },
        /// A key in the transit engine of HashiCorp Vault or OpenBao. The token is in `VAULT_TOKEN`,
        /// in the `token-file` or in `~/.vault-token`.
        vault: Option<VaultKeys> { example: "{ key = \"backstay\" }" },
        /// How new data is compressed: `zstd:1` to `zstd:19`, `lz4` or `none`.
        compression: Compression { default: "zstd:3", example: "\"zstd:3\"" },
        /// The address of the service, for a bucket that is not at the provider's own.
        endpoint: Option<String> { example: "\"https://minio.internal:9000\"" },
        /// The region of an S3 bucket.
        region: Option<String> { example: "\"eu-central-1\"" },
        /// Permit an endpoint without TLS.
        allow_http: bool { default: "false", example: "true" },
        /// Have the store itself keep each object for a time, whoever asks it to remove one.
        lock: Option<LockKeys> { example: "{ mode = \"governance\", period = \"30d\" }" },
        /// The storage class of new objects (docs/clouds.md).
        storage_class: Option<StorageClassKeys> { example: "{ data = \"cold\", rest = \"hot\" }" },
        /// Packs larger than this are sent in parts, each tried again by itself: several at once to
        /// S3 and Azure, one after the other to Google. From 5 MiB on.
        parts_above: Option<Size> { example: "\"16 MiB\"" },
        /// The most that is sent in a second.
        upload_limit: Option<Size> { example: "\"50 MiB\"" },
        /// The most that is received in a second.
        download_limit: Option<Size> { example: "\"50 MiB\"" },
    }
}

section! {
    /// Locks of a repository: S3 object lock, Azure immutability policies, immutable files of a
    /// directory. The bucket must have been made for it (docs/clouds.md).
    pub struct LockKeys {
        /// `governance`: only a permission of its own lifts a lock. `compliance`: nobody can;
        /// a directory has no such lock.
        mode: LockMode { default: "governance", example: "\"compliance\"" },
        /// How long each object is locked, from when it is stored.
        period: Duration { example: "\"30d\"" },
        /// Have `maintenance` lock what is still needed for another period, in time.
        extend: bool { default: "true", example: "false" },
    }
}

section! {
    /// In which class of the cloud new objects are stored: `hot`, `warm`, `cold` or `archive`, or the
    /// cloud's own word. Absent: as the bucket says.
    pub struct StorageClassKeys {
        /// Of the content of files, which only restores and deep checks read.
        data: Option<String> { example: "\"cold\"" },
        /// Of everything else: every command reads it, so `hot` or `warm`.
        rest: Option<String> { example: "\"hot\"" },
        /// Where the content goes as it grows older. On Azure `maintenance` moves it; on S3 and Google
        /// rules of the bucket do, which `backstay init --lifecycle` prints.
        later: Vec<LaterClass> { example: "[\"warm after 30d\", \"cold after 90d\"]" },
    }
}

/// A class into which data goes at an age: `cold after 30d`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaterClass(pub Later);

impl LaterClass {
    fn parse(text: &str) -> Result<Self, String> {
        let (class, after) =
            text.split_once(" after ").ok_or("write it as CLASS after AGE, \"cold after 30d\"")?;
        let (class, after) = (class.trim().to_owned(), parse_duration(after.trim())?);
        if after.as_secs() < 86_400 {
            return Err("the clouds count in days; say at least 1d".to_owned());
        }
        Ok(Self(Later { class, after }))
    }
}

section! {
    /// A key in AWS KMS that opens a repository.
    pub struct AwsKmsKeys {
        /// Its ARN, its id or `alias/…`.
        key: String { example: "\"alias/backstay\"" },
        /// The region. Absent: as the ARN or `AWS_REGION` says.
        region: Option<String> { example: "\"eu-central-1\"" },
        /// The address of the service, where it is not AWS's own.
        endpoint: Option<String> { example: "\"https://vpce-1.kms.eu-central-1.vpce.amazonaws.com\"" },
        /// Permit an endpoint without TLS.
        allow_http: bool { default: "false", example: "true" },
    }
}

section! {
    /// A key in Vault's transit engine that opens a repository.
    pub struct VaultKeys {
        /// The name of the key.
        key: String { example: "\"backstay\"" },
        /// Where the transit engine is mounted.
        mount: String { default: "transit", example: "\"transit\"" },
        /// The address. Absent: `VAULT_ADDR`.
        address: Option<String> { example: "\"https://vault.internal:8200\"" },
        /// The namespace. Absent: `VAULT_NAMESPACE`.
        namespace: Option<String> { example: "\"team-a\"" },
        /// A file that holds the token. Absent: `VAULT_TOKEN`, else `~/.vault-token`.
        token_file: Option<PathBuf> { example: "\"/run/backstay/vault-token\"" },
        /// Certificates to trust besides the system's. Absent: `VAULT_CACERT`.
        ca_file: Option<PathBuf> { example: "\"/etc/ssl/vault-ca.pem\"" },
        /// Permit an address without TLS.
        allow_http: bool { default: "false", example: "true" },
    }
}

section! {
    /// A named thing to protect. These keys belong to every kind of source.
    pub struct SourceKeys {
        /// What it is: `postgres`, `postgres-logical`, `sqlite`, `files`, `lake`,
        /// `kafka-connect` or `schema-registry`.
        kind: SourceKind { example: "\"files\"" },
        /// Where it is backed up to, by name. Absent: the only repository there is.
        repositories: Vec<String> { example: "[\"main\"]" },
        /// The class it belongs to, by name.
        tier: Option<String> { example: "\"critical\"" },
        /// Schedule, retention and verification, by name.
        policy: Option<String> { example: "\"databases\"" },
        /// Words that every snapshot of it carries.
        tags: BTreeMap<String, String> { example: "{ team = \"orders\" }" },
    }
}

section! {
    /// A PostgreSQL cluster, whole, with its log: restorable to any moment.
    pub struct PostgresKeys {
        /// How to reach the server, in libpq's words or as a URI. Passwords belong in `~/.pgpass`
        /// or `PGPASSFILE`, not here.
        connection: String {
            default: "host=/var/run/postgresql user=postgres dbname=postgres",
            example: "\"host=/var/run/postgresql user=postgres\""
        },
        /// The data directory on this host. Absent: the one that the server names, where that is
        /// here; else the files come over a replication connection.
        data_directory: Option<PathBuf> { example: "\"/var/lib/postgresql/15/main\"" },
        /// By which way the files come: `files` reads the data directory on this host; `wire` has the
        /// server send them over a replication connection, for which a role that may replicate is
        /// enough and nothing runs on the database host; `auto` reads the data directory where it is
        /// here.
        method: Method { default: "auto", example: "\"wire\"" },
        /// Every snapshot carries the log that it needs, and can be restored without an archive, to the
        /// end of the backup. Works where the server archives nothing.
        standalone: bool { default: "false", example: "true" },
        /// How to reach the primary when the source is a standby: it is asked to end the segment of
        /// the log that a backup needs last. Absent: the server that the standby receives from.
        primary: Option<String> { example: "\"host=db1.internal user=backup dbname=postgres\"" },
        /// Start with an immediate checkpoint; `false` waits for the next regular one.
        fast_checkpoint: bool { default: "true", example: "true" },
        /// How a backup finds out what changed since the one before: `hash` reads everything and
        /// compares it; `wal` reads the megabytes of relations in which the log says that a page changed,
        /// for clusters that are too large to read; `auto` does so where the log is less to read than
        /// the files. Where the log does not tell, everything is read, as where a sample of the rest is
        /// not what it was; without checksums, hints that the log does not have are as they were when
        /// the page was last read.
        detect: Detect { default: "hash", example: "\"wal\"" },
        /// How long to wait until the log that belongs to a backup is archived.
        archive_timeout: Duration { default: "60s", example: "\"5m\"" },
        /// In how many repositories a file of the log must be before the server may remove it, at
        /// least 1. Absent: in all. With fewer, one that is down holds up nothing, if a
        /// `[replication]` with `archive` brings it what it has missed.
        archive_copies: Option<u32> { example: "1" },
        /// How long a finished file of the log may wait to be archived before `wal status`, `status`
        /// and `check` have an alert.
        archive_lag: Duration { default: "15m", example: "\"5m\"" },
        /// The replication slot of `wal receive`, which `wal status`, `status` and `check` watch.
        /// Absent: `backstay_` and the source's name.
        slot: Option<String> { example: "\"backstay_offsite\"" },
        /// How much log the slot of `wal receive` may hold back on the server before they have one.
        slot_limit: Size { default: "16 GiB", example: "\"4 GiB\"" },
        /// Whether the private key of the server's certificate is backed up too, where it lies
        /// outside the data directory. Other files of the configuration always are.
        private_keys: bool { default: "false", example: "true" },
        /// Where `postgres`, `pg_ctl` and the rest are. Absent: found by the cluster's version.
        bin_directory: Option<PathBuf> { example: "\"/usr/lib/postgresql/15/bin\"" },
    }
}

section! {
    /// Databases of a PostgreSQL server as the statements that make them again: portable between
    /// versions, without moments in between.
    pub struct PostgresLogicalKeys {
        /// How to reach the server, in libpq's words or as a URI.
        connection: String {
            default: "host=/var/run/postgresql user=postgres dbname=postgres",
            example: "\"host=db.internal user=backup\""
        },
        /// Which databases. Absent: all that accept connections, but for templates.
        databases: Vec<String> { example: "[\"orders\", \"billing\"]" },
        /// Databases to leave out; `*` stands for anything.
        exclude: Vec<String> { example: "[\"test_*\"]" },
        /// Tables whose rows are left out, and not their definition, as patterns of `pg_dump`.
        exclude_data: Vec<String> { example: "[\"public.cache\", \"log.*\"]" },
        /// Dump roles with the hashes of their passwords, for which only a superuser may ask.
        role_passwords: bool { default: "true", example: "false" },
        /// Workers of `pg_dump`, each with a connection. 0: as many as `workers`.
        jobs: u32 { default: "0", example: "4" },
        /// How long to wait for a lock that somebody else holds on a table.
        lock_timeout: Duration { default: "10m", example: "\"1h\"" },
        /// A folder through which dumps pass. Absent: the system's for temporary files.
        spool: Option<PathBuf> { example: "\"/var/spool/backstay\"" },
        /// How much may wait there to be stored before `pg_dump` is held up; at least 64 MiB for
        /// each of its workers, and one more.
        spool_limit: Size { default: "2 GiB", example: "\"10 GiB\"" },
        /// Where `pg_dump` and the rest are. Absent: found by the server's version.
        bin_directory: Option<PathBuf> { example: "\"/usr/lib/postgresql/15/bin\"" },
    }
}

section! {
    /// One SQLite database, consistent while programs write to it.
    pub struct SqliteKeys {
        /// The database file.
        path: PathBuf { example: "\"/srv/app/shop.db\"" },
    }
}

section! {
    /// Files and folders of this host, with all of their metadata.
    pub struct FilesKeys {
        /// Files and folders to back up, with all that is below them.
        paths: Vec<PathBuf> { example: "[\"/etc\", \"/srv/app/config\"]" },
        /// What to leave out, in the words of a `.gitignore`.
        exclude: Vec<String> { example: "[\"*.sock\", \"/var/cache/\"]" },
        /// Files that list more of what to leave out, one pattern a line.
        exclude_from: Vec<PathBuf> { example: "[\"/etc/backstay/exclude\"]" },
        /// Leave out folders that hold a valid `CACHEDIR.TAG`.
        exclude_caches: bool { default: "true", example: "true" },
        /// Stay on the file systems that the paths themselves are on.
        one_file_system: bool { default: "false", example: "true" },
    }
}

section! {
    /// A data lake: tables and files under one address, captured as they were at one moment.
    pub struct LakeKeys {
        /// The lake's root: a folder or a bucket.
        url: StoreUrl { example: "\"file:///data/lake\"" },
        /// Folders right below the root that are part of it. Absent: all of them.
        layers: Vec<String> { example: "[\"bronze\", \"silver\", \"gold\"]" },
        /// What to leave out, in the words of a `.gitignore`.
        exclude: Vec<String> { example: "[\"_temporary/\"]" },
    }
}

section! {
    /// Connectors of a Kafka Connect cluster, with their offsets.
    pub struct KafkaConnectKeys {
        /// The REST interface.
        url: String { example: "\"http://connect:8083\"" },
        /// The user, where the interface asks for one.
        user: Option<String> { example: "\"backup\"" },
        /// A file whose first line is the password.
        password_file: Option<PathBuf> { example: "\"/etc/backstay/connect.password\"" },
        /// Which connectors. Absent: all.
        connectors: Vec<String> { example: "[\"orders-source\"]" },
    }
}

section! {
    /// Subjects of a Schema Registry, with ids, versions, references, compatibility and modes.
    pub struct SchemaRegistryKeys {
        /// The REST interface.
        url: String { example: "\"http://registry:8081\"" },
        /// The user, where the interface asks for one.
        user: Option<String> { example: "\"backup\"" },
        /// A file whose first line is the password.
        password_file: Option<PathBuf> { example: "\"/etc/backstay/registry.password\"" },
        /// Which subjects. Absent: all.
        subjects: Vec<String> { example: "[\"orders-value\"]" },
    }
}

section! {
    /// What is copied from one repository to another, without the sources.
    pub struct ReplicationKeys {
        /// The repository that is copied from, by name.
        from: String { example: "\"main\"" },
        /// The repository that is copied to, by name.
        to: String { example: "\"offsite\"" },
        /// Which sources, by name. Absent: all that have snapshots.
        sources: Vec<String> { example: "[\"orders\"]" },
        /// Whether the logs of PostgreSQL clusters are copied as well.
        archive: bool { default: "true", example: "true" },
        /// When.
        schedule: Option<Cron> { example: "\"30 * * * *\"" },
    }
}

section! {
    /// A class of sources with objectives.
    pub struct TierKeys {
        /// Recovery-time objective: how long a recovery may take.
        rto: Duration { example: "\"1h\"" },
        /// Recovery-point objective: how much may be lost, as a length of time.
        rpo: Duration { example: "\"5m\"" },
    }
}

section! {
    /// Schedule, retention and verification. Schedules are cron expressions of five fields in
    /// local time: minute, hour, day of the month, month, day of the week.
    pub struct PolicyKeys {
        /// When to make full backups.
        full: Option<Cron> { example: "\"0 2 * * 0\"" },
        /// When to make incremental backups.
        incremental: Option<Cron> { example: "\"0 2 * * 1-6\"" },
        /// When to make differential backups.
        differential: Option<Cron> { example: "\"0 14 * * *\"" },
        /// What to check, and when.
        verify: Option<VerifyKeys> { example: "{ level = \"standard\", schedule = \"0 6 * * *\" }" },
        /// When to rehearse the recovery.
        drill: Option<DrillKeys> { example: "{ schedule = \"0 7 1 * *\" }" },
        /// What to keep.
        retention: Option<RetentionKeys> {
            example: "{ last = 4, daily = 7, weekly = 5, archive = \"7d\" }"
        },
    }
}

section! {
    /// Verification of a policy.
    pub struct VerifyKeys {
        /// How thorough: `basic`, `standard`, `thorough` or `forensic`.
        level: VerifyLevel { default: "standard", example: "\"thorough\"" },
        /// When.
        schedule: Option<Cron> { example: "\"0 6 * * *\"" },
        /// The share of the data that one run checks; repeated runs cover all of it.
        sample: Option<Percent> { example: "\"10%\"" },
    }
}

section! {
    /// Drills of a policy.
    pub struct DrillKeys {
        /// When.
        schedule: Cron { example: "\"0 7 1 * *\"" },
    }
}

section! {
    /// What a policy keeps: a snapshot stays as long as one of these wants it.
    pub struct RetentionKeys {
        /// The newest ones.
        last: Option<u32> { example: "4" },
        /// The newest one of each hour, for so many hours.
        hourly: Option<u32> { example: "24" },
        /// The newest one of each day, for so many days.
        daily: Option<u32> { example: "7" },
        /// The newest one of each week, for so many weeks.
        weekly: Option<u32> { example: "5" },
        /// The newest one of each month, for so many months.
        monthly: Option<u32> { example: "12" },
        /// The newest one of each year, for so many years.
        yearly: Option<u32> { example: "7" },
        /// How far back every moment stays restorable: `retention --apply` and `wal expire` remove what
        /// lies between older snapshots. Absent: as far as the snapshots go.
        archive: Option<Duration> { example: "\"7d\"" },
    }
}

nested!(AwsKmsKeys, VaultKeys, LockKeys, StorageClassKeys, VerifyKeys, DrillKeys, RetentionKeys);

/// The address of a store or of a lake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl(pub String);

impl StoreUrl {
    /// Checks an address. A plain absolute path is taken as a folder.
    pub fn parse(text: &str) -> Result<Self, String> {
        // A slash at the end is no other place.
        let text = match text.trim_end_matches('/') {
            "" | "file:" => text,
            trimmed => trimmed,
        };
        if text.starts_with('/') {
            return Ok(Self(format!("file://{text}")));
        }
        match text.split_once("://") {
            Some(("file", path)) if !path.starts_with('/') => {
                Err("the folder has to be an absolute path: file:///folder".into())
            }
            Some(("file" | "s3" | "gs" | "az" | "memory", _)) => Ok(Self(text.to_owned())),
            Some((scheme, _)) => Err(format!("there is no store for `{scheme}://`")),
            None => Err("it is no address".into()),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// How much of what is stored a verification looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum VerifyLevel {
    /// Every object is there, with its size.
    Basic,
    /// Every object has the content it had.
    Standard,
    /// Every chunk opens and hashes to its id; trees are walked.
    Thorough,
    /// Restored in a sandbox, started and queried.
    Forensic,
}

impl VerifyLevel {
    pub const ALL: [Self; 4] = [Self::Basic, Self::Standard, Self::Thorough, Self::Forensic];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::Standard => "standard",
            Self::Thorough => "thorough",
            Self::Forensic => "forensic",
        }
    }
}

impl fmt::Display for VerifyLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for VerifyLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no level; say basic, standard, thorough or forensic")
        })
    }
}

/// A share: more than nothing, at most all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(pub f64);

impl Percent {
    /// Parses "10%" or "0.5%".
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = text.trim().trim_end_matches('%').trim_end();
        match number.parse::<f64>() {
            Ok(value) if value > 0.0 && value <= 100.0 => Ok(Self(value)),
            _ => Err(format!("{text:?} is no share between 0% and 100%")),
        }
    }

    /// Between 0 and 1.
    pub fn fraction(self) -> f64 {
        self.0 / 100.0
    }
}

/// A schedule: five fields of cron, in local time.
#[derive(Debug, Clone, PartialEq)]
pub struct Cron(pub croner::Cron);

impl Cron {
    pub fn parse(text: &str) -> Result<Self, String> {
        let parser = croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Disallowed)
            .year(croner::parser::Year::Disallowed)
            .build();
        parser.parse(text).map(Self).map_err(|error| {
            let why = error.to_string();
            format!("{text:?} is no schedule: {}", why.trim_end_matches('.').to_lowercase())
        })
    }

    pub fn as_str(&self) -> &str {
        self.0.pattern.as_str()
    }
}

parsed!(StoreUrl, "an address such as \"file:///var/backups/backstay\"", StoreUrl::parse);
parsed!(Detect, "`hash`, `wal` or `auto`", |text| match text {
    "hash" => Ok(Detect::Hash),
    "wal" => Ok(Detect::Wal),
    "auto" => Ok(Detect::Auto),
    _ => Err(String::new()),
});

parsed!(Method, "`auto`, `files` or `wire`", |text| match text {
    "auto" => Ok(Method::Auto),
    "files" => Ok(Method::Files),
    "wire" => Ok(Method::Wire),
    _ => Err(String::new()),
});
parsed!(Compression, "`none`, `lz4`, or `zstd:1` to `zstd:19`", str::parse);
parsed!(SourceKind, "a kind of source", |text| {
    text.parse::<SourceKind>().map_err(|why| {
        let kinds: Vec<&str> = SourceKind::ALL.into_iter().map(SourceKind::as_str).collect();
        match super::declare::nearest(text, &kinds) {
            Some(near) => format!("{why}; did you mean {near:?}?"),
            None => format!("{why}; there are {}", kinds.join(", ")),
        }
    })
});
parsed!(LaterClass, "a text", LaterClass::parse);
parsed!(LockMode, "`governance` or `compliance`", str::parse);
parsed!(VerifyLevel, "`basic`, `standard`, `thorough` or `forensic`", str::parse);
parsed!(Size, "a size such as \"50 MiB\"", |text| match parse_size(text)? {
    0 => Err("it is nothing at all".to_owned()),
    bytes => Ok(Size(bytes)),
});
parsed!(Percent, "a share such as \"10%\"", Percent::parse);
parsed!(Cron, "a schedule such as \"0 2 * * *\"", Cron::parse);
