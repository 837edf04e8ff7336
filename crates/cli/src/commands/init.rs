//! `backstay init`: a starter configuration for what is found here, a repository, and its key.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use backstay_ops::config::{Config, RepositoryConfig, RepositoryFlags, Search, StoreUrl, absolute};
use backstay_ops::discover::{self, Cluster};
use backstay_ops::lifecycle::lifecycle;
use backstay_ops::privilege::{Cloud, Host};
use backstay_ops::{Context, Error, ErrorKind, secret};
use backstay_repo::{Environment, Progress};
use clap::Args;
use serde_json::json;

use super::parity;
use crate::app::{App, Outcome, Result};
use crate::output::Style;

/// Write a starter configuration for what is found here, and create repository and key
#[derive(Debug, Args)]
#[command(
    after_help = "Where there is a configuration already, it is left as it is: only repositories and key files
that it names and that are missing are created. Without BACKSTAY_PASSPHRASE a key file of 32 random
bytes opens the repository.

Examples:
  backstay init
  backstay init -r s3://bucket/backstay -k /etc/backstay/main.key
  backstay init -r s3://bucket/backstay --policy s3 > policy.json
  backstay init -r s3://bucket/backstay --lifecycle > rules.json
  backstay init --config ./backstay.toml -r ./repository -k ./main.key
  backstay init -r /mnt/disk/backstay --parity 10%"
)]
pub struct InitArgs {
    /// Do not look for clusters and folders to protect
    #[arg(long)]
    bare: bool,

    /// Also print what a host that only backs up must be allowed to do in the bucket
    #[arg(long)]
    append_only: bool,

    /// Print that policy for a cloud and do nothing else
    #[arg(long, value_name = "CLOUD", conflicts_with = "append_only")]
    policy: Option<PolicyOf>,

    /// Print rules by which the bucket moves packs to a colder class, and do nothing else
    #[arg(long, conflicts_with_all = ["append_only", "policy"])]
    lifecycle: bool,

    /// Make bad sectors and flipped bits repairable up to this share of each object, in new
    /// repositories on this machine (see `backstay parity`)
    #[arg(long, value_name = "PERCENT", value_parser = parity::parse_percent)]
    parity: Option<u8>,

    /// The host, as the cloud calls it: an ARN, serviceAccount:NAME
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,

    /// The only writer that the host may be; `init --append-only` says which this machine is
    #[arg(long, value_name = "ID", value_parser = writer_id)]
    writer: Option<String>,
}

/// A cloud that has policies.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PolicyOf {
    S3,
    Gcs,
    Azure,
}

fn writer_id(text: &str) -> std::result::Result<String, String> {
    let digits =
        text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digits.then(|| text.to_owned()).ok_or_else(|| "a writer has 16 digits from 0 to f".to_owned())
}

/// Prints what a host must be allowed to do, for a repository that need not exist.
fn print_policy(args: &InitArgs, of: PolicyOf, app: &App) -> Result<Outcome> {
    let cloud = match of {
        PolicyOf::S3 => Cloud::S3,
        PolicyOf::Gcs => Cloud::Gcs,
        PolicyOf::Azure => Cloud::Azure,
    };
    let context = app.context()?;
    let repository = context.config.default_repository()?;
    let host = host_of(args, repository)?;
    if Cloud::of(&repository.keys.url.0) != Some(cloud) {
        return Err(Error::usage(
            format!("the repository is at {}", repository.keys.url),
            "ask for the policy of its own cloud, or name another one with --repository",
        ));
    }
    app.output.document(&json!({ "policy": document_of(&host, cloud) }))?;
    app.output.say(host.policy(cloud).trim_end().to_owned())?;
    Ok(Outcome::Done)
}

/// Prints rules that move packs by age, for a repository that need not exist.
fn print_lifecycle(app: &App) -> Result<Outcome> {
    let context = app.context()?;
    let repository = context.config.default_repository()?;
    let url = &repository.keys.url.0;
    let host = Host::of(url)?;
    let Some(cloud) = Cloud::of(url) else { return Ok(Outcome::Done) };
    let later = repository.keys.storage_class.iter().flat_map(|class| &class.later);
    let later: Vec<_> = later.map(|later| later.0.clone()).collect();
    if cloud == Cloud::Azure && !later.is_empty() {
        return Err(Error::usage(
            format!("`{}` is on Azure, and has ages in its configuration", repository.name),
            "no rules are needed: `backstay maintenance` moves the packs there; for rules instead, \
             leave out `later`",
        ));
    }
    if !later.is_empty() {
        // Whether these classes and ages make sense there.
        context.store(repository)?;
    }
    let rules = lifecycle(cloud, &host.bucket, &host.prefix, &later);
    app.output.document(&json!({ "lifecycle": rules }))?;
    app.output.say(format!("{rules:#}"))?;
    Ok(Outcome::Done)
}

fn host_of(args: &InitArgs, repository: &RepositoryConfig) -> Result<Host> {
    let mut host = Host::of(&repository.keys.url.0)?;
    host.principal = args.principal.clone();
    host.writer = args.writer.clone();
    host.lock = repository.keys.lock.as_ref().map(|lock| lock.period);
    Ok(host)
}

/// A policy is a document of its own in S3, and commands elsewhere.
fn document_of(host: &Host, cloud: Cloud) -> serde_json::Value {
    match cloud {
        Cloud::S3 => host.s3(),
        _ => json!(host.policy(cloud)),
    }
}

/// What `init` did, for both kinds of readers.
#[derive(Default)]
struct Done {
    config: Option<PathBuf>,
    config_written: bool,
    sources: Vec<Found>,
    repositories: Vec<Repository>,
}

struct Found {
    name: String,
    kind: &'static str,
    about: String,
}

struct Repository {
    name: String,
    url: String,
    created: bool,
    id: String,
    /// Percent.
    parity: Option<u8>,
    key_file: Option<PathBuf>,
    key_created: bool,
    /// The name of this machine as a writer.
    writer: String,
    /// What a host that only backs up is to be allowed, where somebody asked.
    policy: Option<(Host, Cloud)>,
}

pub fn run(args: &InitArgs, app: &App) -> Result<Outcome> {
    if let Some(of) = args.policy {
        return print_policy(args, of, app);
    }
    if args.lifecycle {
        return print_lifecycle(app);
    }
    let mut search = app.search();
    let mut done = Done::default();
    let env = Environment::system();
    let path = match wanted_path(&search)? {
        Where::There(path) => path,
        Where::Missing(path) => {
            let clusters = if args.bare { Vec::new() } else { discover::clusters(Path::new("/")) };
            write_config(app, &search, &path, &clusters, args.bare, &mut done)?;
            done.config_written = true;
            path
        }
    };
    search.flag = Some(path.clone());
    search.variables.remove("BACKSTAY_CONFIG");
    done.config = Some(path);
    let mut config = Config::load(&search)?;
    if !done.config_written {
        // A file that was just written says all of it already.
        let flags = RepositoryFlags {
            repository: app.global.repository.clone(),
            key_file: app.global.key_file.clone(),
            identity: app.global.identity.clone(),
        };
        config.apply(&flags, &search)?;
    }
    let local = |config: &RepositoryConfig| config.keys.url.0.starts_with("file://");
    if args.parity.is_some() && !config.repositories()?.into_iter().any(local) {
        return Err(Error::usage(
            "no repository here is a folder, and only those have parity",
            "leave out --parity: object stores keep what they have whole by themselves",
        ));
    }
    let owner = owner_of_clusters(&config);
    let mut context = Context::new(config, search, env);
    context.command.clone_from(&app.command);
    for config in context.config.repositories()? {
        let share = args.parity.filter(|_| local(config));
        let mut repository = create(&context, config, owner, share)?;
        if let Some(share) = args.parity.filter(|share| repository.parity != Some(*share)) {
            let (message, hint) = if local(config) {
                let was = "was there already, and its parity is left as it is";
                (was, format!("`backstay parity {share}% -r {}` changes it", config.name))
            } else {
                ("is no folder, and has no parity", "nothing is to be done".to_owned())
            };
            app.output.warn(&format!("repository {} {message}", config.name), Some(&hint));
        }
        if args.append_only {
            match Cloud::of(&config.keys.url.0) {
                Some(cloud) => repository.policy = Some((host_of(args, config)?, cloud)),
                None => app.output.warn(
                    &format!("{} is a folder, which has no policy", config.keys.url),
                    Some("make another user its owner, and let hosts reach it through that one"),
                ),
            }
        }
        done.repositories.push(repository);
    }
    for warning in context.take_warnings() {
        app.output.warn(&warning.message, Some(&warning.hint));
    }
    document(&done, app)?;
    present(&done, app)?;
    Ok(Outcome::Done)
}

enum Where {
    There(PathBuf),
    Missing(PathBuf),
}

/// The configuration that is there, or where a new one goes: where it was asked for, else here.
fn wanted_path(search: &Search) -> Result<Where> {
    let named = search.flag.clone().or_else(|| {
        search.variables.get("BACKSTAY_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from)
    });
    if let Some(named) = named {
        let home = search.home();
        let path = absolute(&named.to_string_lossy(), &search.current, home.as_deref());
        return match path.try_exists() {
            Ok(true) => Ok(Where::There(path)),
            Ok(false) => Ok(Where::Missing(path)),
            Err(error) => Err(Error::io("look for the configuration at", &path, error)),
        };
    }
    Ok(match search.find()? {
        Some(path) => Where::There(path),
        None => Where::Missing(search.current.join("backstay.toml")),
    })
}

/// Where a repository and its key go when nobody says: the system's folders for root, else the
/// user's.
struct Defaults {
    repository: PathBuf,
    key: PathBuf,
}

impl Defaults {
    fn new(search: &Search) -> Result<Self> {
        let variable = |name: &str| {
            search.variables.get(name).filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        if is_root() {
            return Ok(Self {
                repository: PathBuf::from("/var/backups/backstay"),
                key: PathBuf::from("/etc/backstay/main.key"),
            });
        }
        let no_home = || {
            Error::usage(
                "there is no HOME to put a repository and its key into",
                "say where they go: backstay init --repository PATH --key-file PATH",
            )
        };
        let data = variable("XDG_DATA_HOME")
            .or_else(|| Some(search.home()?.join(".local/share")))
            .ok_or_else(no_home)?;
        let keys = search.user_folder().ok_or_else(no_home)?;
        Ok(Self { repository: data.join("backstay"), key: keys.join("main.key") })
    }
}

fn is_root() -> bool {
    // The owner of a process's own directory in /proc is its effective user.
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

fn write_config(
    app: &App,
    search: &Search,
    path: &Path,
    clusters: &[Cluster],
    bare: bool,
    done: &mut Done,
) -> Result<()> {
    let home = search.home();
    let full = |text: &str| absolute(text, &search.current, home.as_deref());
    let defaults = match (&app.global.repository, &app.global.key_file) {
        // Where both are said, nothing has to be guessed.
        (Some(_), Some(_)) => None,
        _ => Some(Defaults::new(search)?),
    };
    let address = match (&app.global.repository, &defaults) {
        (Some(text), _) if text.contains("://") => text.clone(),
        (Some(text), _) => full(text).display().to_string(),
        (None, Some(defaults)) => defaults.repository.display().to_string(),
        (None, None) => {
            return Err(Error::usage("no repository is named", "say --repository PATH"));
        }
    };
    let url = StoreUrl::parse(&address).map_err(|why| {
        Error::usage(
            format!("`--repository {address}` cannot be used: {why}"),
            "write a path, file:///folder, s3://bucket/prefix, gs://… or az://…",
        )
    })?;
    let passphrase = search.variables.contains_key(secret::PASSPHRASE_VARIABLE);
    let key = match (&app.global.key_file, &defaults) {
        (Some(path), _) => Some(full(&path.to_string_lossy())),
        (None, _) if passphrase => None,
        (None, Some(defaults)) => Some(defaults.key.clone()),
        (None, None) => None,
    };
    let root = is_root();
    let etc = !bare && root && Path::new("/etc").is_dir();
    for cluster in clusters {
        done.sources.push(Found {
            name: cluster.name.clone(),
            kind: "postgres",
            about: about(cluster),
        });
    }
    if etc {
        done.sources.push(Found {
            name: "etc".into(),
            kind: "files",
            about: "the configuration of this machine, in /etc".into(),
        });
    }
    let text = starter(&url, key.as_deref(), clusters, etc);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    // Never over a file that came in between.
    let mut file = fs::File::create_new(path).map_err(|e| Error::io("create", path, e))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|e| Error::io("write", path, e))
}

fn about(cluster: &Cluster) -> String {
    let mut text = match (&cluster.version, &cluster.data_directory) {
        (Some(version), Some(path)) => format!("PostgreSQL {version} in {}", path.display()),
        (None, Some(path)) => format!("PostgreSQL in {}", path.display()),
        _ => "PostgreSQL".to_owned(),
    };
    match &cluster.socket {
        Some(socket) => text.push_str(&format!(", running on port {}", socket.port)),
        None => text.push_str(", not running"),
    }
    text
}

/// The text of the configuration. Everything that could be wanted next is in it as a comment.
fn starter(url: &StoreUrl, key: Option<&Path>, clusters: &[Cluster], etc: bool) -> String {
    let mut out = String::from("# Every key is described in docs/configuration.md.\n\n");
    out.push_str("[repositories.main]\n");
    out.push_str(&format!("url = {}\n", quoted(&url.0)));
    match key {
        Some(path) => {
            out.push_str(&format!("key-file = {}\n", quoted(&path.display().to_string())))
        }
        None => out.push_str("# Opened by the passphrase in BACKSTAY_PASSPHRASE.\n"),
    }
    for cluster in clusters {
        out.push_str(&format!("\n[sources.{}]\nkind = \"postgres\"\n", toml_key(&cluster.name)));
        out.push_str(&format!("connection = {}\n", quoted(&cluster.connection())));
        if let Some(path) = &cluster.data_directory {
            out.push_str(&format!("data-directory = {}\n", quoted(&path.display().to_string())));
        }
        out.push_str("tier = \"critical\"\npolicy = \"standard\"\n");
    }
    if etc {
        out.push_str(
            "\n[sources.etc]\nkind = \"files\"\npaths = [\"/etc\"]\npolicy = \"standard\"\n",
        );
    } else {
        out.push_str(
            "\n# [sources.documents]\n# kind = \"files\"\n# paths = [\"~/Documents\"]\n\
             # policy = \"standard\"\n",
        );
    }
    out.push_str(
        "\n# What may be lost at most (rpo), and how long a recovery may take (rto).\n\
         [tiers.critical]\nrto = \"1h\"\nrpo = \"5m\"\n\
         \n[policies.standard]\nfull = \"0 2 * * 0\"\nincremental = \"0 2 * * 1-6\"\n\
         verify = { level = \"standard\", schedule = \"0 6 * * *\" }\n\
         retention = { last = 4, daily = 7, weekly = 5, monthly = 12, archive = \"7d\" }\n",
    );
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A dot in a name would part it.
fn toml_key(name: &str) -> String {
    if name.contains('.') { quoted(name) } else { name.to_owned() }
}

/// The user whose servers will write into the repository: the owner of the data directories, when
/// root configures.
fn owner_of_clusters(config: &Config) -> Option<(u32, u32)> {
    if !is_root() {
        return None;
    }
    let mut owners = config.sources.iter().filter_map(|source| match &source.settings {
        backstay_ops::config::SourceSettings::Postgres(keys) => {
            let meta = fs::metadata(keys.data_directory.as_ref()?).ok()?;
            Some((meta.uid(), meta.gid()))
        }
        _ => None,
    });
    let first = owners.next()?;
    // Several owners: nobody is right for all, and root's own are safest.
    (first.0 != 0 && owners.all(|other| other == first)).then_some(first)
}

fn create(
    context: &Context,
    config: &RepositoryConfig,
    owner: Option<(u32, u32)>,
    parity: Option<u8>,
) -> Result<Repository> {
    let mut key_created = false;
    if let Some(path) = &config.keys.key_file {
        key_created = secret::create_key_file(path, &context.env)?;
        if key_created && let Some((user, group)) = owner {
            chown(path, Some(user), Some(group)).map_err(|e| Error::io("give away", path, e))?;
        }
    }
    let folder = config.keys.url.0.strip_prefix("file://").map(PathBuf::from);
    let (repository, created) = match context.open(config) {
        Ok(repository) => (repository, false),
        Err(error) if error.kind() == ErrorKind::NoRepository => {
            let label = format!("{} ({})", config.name, hostname());
            let repository = context.create(config, &label)?;
            if parity.is_some() {
                repository.set_parity(parity, &Progress::default())?;
            }
            if let (Some(folder), Some(owner)) = (&folder, owner) {
                give_away(folder, owner)?;
            }
            (repository, true)
        }
        Err(error) => {
            if key_created && let Some(path) = &config.keys.key_file {
                // A new key opens nothing that is there already; it would only mislead.
                let _ = fs::remove_file(path);
            }
            return Err(error);
        }
    };
    Ok(Repository {
        name: config.name.clone(),
        url: repository.store().url(),
        created,
        id: repository.id().to_string(),
        parity: repository.parity()?,
        key_file: config.keys.key_file.clone(),
        key_created,
        writer: repository.writer_name(),
        policy: None,
    })
}

/// Makes a new repository belong to the user whose servers archive into it. Root may use it anyway.
fn give_away(path: &Path, (user, group): (u32, u32)) -> Result<()> {
    let failed = |error| Error::io("give away", path, error);
    std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(failed)?;
    if fs::symlink_metadata(path).map_err(failed)?.is_dir() {
        for entry in fs::read_dir(path).map_err(failed)? {
            give_away(&entry.map_err(failed)?.path(), (user, group))?;
        }
    }
    Ok(())
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

fn document(done: &Done, app: &App) -> Result<()> {
    app.output.document(&json!({
        "config": done.config,
        "config_written": done.config_written,
        "sources": done.sources.iter().map(|source| json!({
            "name": source.name,
            "kind": source.kind,
        })).collect::<Vec<_>>(),
        "repositories": done.repositories.iter().map(|repository| json!({
            "name": repository.name,
            "url": repository.url,
            "id": repository.id,
            "created": repository.created,
            "parity": repository.parity,
            "key_file": repository.key_file,
            "key_created": repository.key_created,
            "writer": repository.writer,
            "policy": repository.policy.as_ref().map(|(host, cloud)| document_of(host, *cloud)),
        })).collect::<Vec<_>>(),
    }))
}

fn present(done: &Done, app: &App) -> Result<()> {
    let paint = app.output.paint;
    let bold = |text: &str| paint.paint(Style::Bold, text);
    let say = |text: String| app.output.say(text);
    let path = done.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    if done.config_written {
        say(format!("Wrote {}", bold(&path)))?;
        let width = done.sources.iter().map(|source| source.name.len()).max().unwrap_or(0);
        for source in &done.sources {
            say(format!("  {:<width$}  {}", source.name, source.about))?;
        }
        if done.sources.is_empty() {
            say("  with no sources yet: add a [sources.NAME] for what is to be protected".into())?;
        }
    } else {
        say(format!("Read {}; it was left as it is", bold(&path)))?;
    }
    for repository in &done.repositories {
        let verb = if repository.created { "Created" } else { "Found" };
        say(format!("{verb} repository {} at {}", bold(&repository.name), repository.url))?;
        if let Some(share) = repository.parity {
            say(format!("Parity repairs {share} % of each object in it"))?;
        }
        if let Some(key) = &repository.key_file {
            let verb = if repository.key_created { "Created" } else { "Opened it with" };
            say(format!("{verb} key file {}", bold(&key.display().to_string())))?;
        }
    }
    if done.repositories.iter().any(|repository| repository.key_created) {
        say(String::new())?;
        say(paint.paint(
            Style::Yellow,
            "Copy the key file to a safe place now, away from this machine.",
        ))?;
        say("Whoever has it can read every backup. Without it nobody can, you included.".into())?;
    }
    for repository in &done.repositories {
        let Some((host, cloud)) = &repository.policy else { continue };
        say(format!(
            "\nA host that backs up into {} and can neither remove nor overwrite is allowed this:",
            bold(&repository.name)
        ))?;
        say(host.policy(*cloud).trim_end().to_owned())?;
        say(paint.paint(
            Style::Dim,
            format!(
                "This machine writes as {}; --writer limits a host to its own name. See docs/clouds.md.",
                repository.writer
            ),
        ))?;
    }
    say("\nNext:".into())?;
    let postgres = done.sources.iter().find(|source| source.kind == "postgres");
    let mut steps: Vec<(String, &str)> = Vec::new();
    if let Some(source) = postgres {
        steps.push((
            format!("backstay postgres setup {}", source.name),
            "what the server has to be set to",
        ));
    }
    steps.push(("backstay check".into(), "can all of it be backed up and restored?"));
    steps.push(("backstay backup --all".into(), "make the first snapshots"));
    let width = steps.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    for (command, what) in steps {
        say(format!("  {command:<width$}  {}", paint.paint(Style::Dim, what)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starter_is_a_configuration() {
        let cluster = Cluster {
            name: "postgres-9.6-main".into(),
            version: Some("9.6".into()),
            data_directory: Some(PathBuf::from("/var/lib/postgresql/9.6/ma\"in")),
            socket: None,
        };
        let url = StoreUrl::parse("/b").unwrap();
        for etc in [true, false] {
            let text = starter(&url, Some(Path::new("/k")), std::slice::from_ref(&cluster), etc);
            let config = Config::read(&text, None, &Search::default()).unwrap();
            let source = config.source("postgres-9.6-main").unwrap();
            assert!(config.tier_of(source).is_some() && config.policy_of(source).is_some());
        }
        let text = starter(&url, None, &[], false);
        assert!(Config::read(&text, None, &Search::default()).unwrap().sources.is_empty());
    }
}
