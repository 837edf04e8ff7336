//! How to reach a server: libpq's keywords and addresses, its environment, its password file.
//!
//! What people have for `psql` works here word for word, `sslmode=verify-full` included. Passwords
//! live in [`Parameters`] and nowhere else: its `Debug` leaves them out, and no message has them.

mod client;
pub(crate) mod service;

pub(crate) use client::Attempt;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{PostgresError, PostgresErrorKind, Result};

/// Keywords that are understood. Those of libpq that are not here change nothing for a backup, and
/// are refused rather than ignored.
const KEYWORDS: &[&str] = &[
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "options",
    "passfile",
    "password",
    "port",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// The environment that libpq heeds, and the keyword each variable stands for.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PGAPPNAME", "application_name"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGDATABASE", "dbname"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGOPTIONS", "options"),
    ("PGPASSFILE", "passfile"),
    ("PGPASSWORD", "password"),
    ("PGPORT", "port"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGUSER", "user"),
];

/// Where Debian's and most other packages put the socket, then where PostgreSQL itself does.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One server that a connection string names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// A name, an address, or the folder of a socket; may be empty where there is an address.
    pub(crate) host: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Endpoint {
    /// For messages.
    pub(crate) fn place(&self) -> String {
        match &self.address {
            Some(address) if self.host.is_empty() => format!("{address} port {}", self.port),
            _ => format!("{} port {}", self.host, self.port),
        }
    }
}

/// What `target_session_attrs` asks of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Wanted {
    /// What is wrong with a server that is a standby or not, and read-only or not.
    pub(crate) fn refuses(self, standby: bool, read_only: bool) -> Option<&'static str> {
        match self {
            Self::Primary if standby => Some("a standby, not the primary"),
            Self::Standby if !standby => Some("the primary, not a standby"),
            Self::ReadWrite if read_only => Some("read-only"),
            Self::ReadOnly if !read_only => Some("open for writes"),
            _ => None,
        }
    }
}

/// A server is something else than what was wanted.
pub(crate) fn not_wanted(place: &str, what: &str) -> PostgresError {
    PostgresError::new(PostgresErrorKind::Connection, format!("the server on {place} is {what}"))
        .with_hint("check `target_session_attrs` and the hosts of `connection`")
        .transient()
}

/// A parsed connection string, completed from the environment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Parameters(BTreeMap<String, String>);

/// Whether a connection string holds a password; its other keywords do not matter.
pub(crate) fn has_password(text: &str) -> Result<bool> {
    let pairs = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        parse_address(text)?
    } else {
        parse_keywords(text)?
    };
    Ok(["password", "sslpassword"].iter().any(|key| pairs.contains_key(*key)))
}

/// Refuses a connection string from an argument that has a password in it; `what` is what it leads
/// to.
pub(crate) fn refuse_password(text: &str, what: &str) -> Result<()> {
    if !has_password(text)? {
        return Ok(());
    }
    Err(PostgresError::usage(format!("the connection to {what} has a password in it")).with_hint(
        "put it into ~/.pgpass, PGPASSWORD or a file that passfile=… names: arguments can be read \
         by every user of a machine",
    ))
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().filter(|(key, _)| *key != "password")).finish()
    }
}

impl Parameters {
    /// Reads `text` and completes it from the process's environment.
    pub(crate) fn new(text: &str) -> Result<Self> {
        Self::with_environment(text, |name| std::env::var(name).ok())
    }

    pub(crate) fn with_environment(
        text: &str,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut pairs = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            parse_address(text)?
        } else {
            parse_keywords(text)?
        };
        if let Some(name) = pairs.remove("service").or_else(|| environment("PGSERVICE"))
            && !name.is_empty()
        {
            for (key, value) in service::read(&name, &environment)? {
                pairs.entry(key).or_insert(value);
            }
        }
        for key in pairs.keys() {
            if !KEYWORDS.contains(&key.as_str()) {
                return Err(PostgresError::usage(format!(
                    "the connection string has the keyword {key:?}, which is not known here"
                ))
                .with_hint(format!("known are: {}", KEYWORDS.join(", "))));
            }
        }
        for (variable, key) in ENVIRONMENT {
            if !pairs.contains_key(*key)
                && let Some(value) = environment(variable).filter(|value| !value.is_empty())
            {
                pairs.insert((*key).to_owned(), value);
            }
        }
        if !pairs.contains_key("host") && !pairs.contains_key("hostaddr") {
            let directory = SOCKET_DIRECTORIES
                .into_iter()
                .find(|directory| Path::new(directory).is_dir())
                .unwrap_or("/tmp");
            pairs.insert("host".to_owned(), directory.to_owned());
        }
        pairs.entry("port".to_owned()).or_insert_with(|| "5432".to_owned());
        if !pairs.contains_key("user") {
            let name = crate::owner::name_of_user(rustix::process::geteuid().as_raw());
            pairs.insert("user".to_owned(), name.unwrap_or_else(|| "postgres".to_owned()));
        }
        pairs.entry("dbname".to_owned()).or_insert_with(|| "postgres".to_owned());
        pairs.entry("application_name".to_owned()).or_insert_with(|| "backstay".to_owned());
        Ok(Self(pairs))
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where the server is, for messages: host and port, never more.
    pub(crate) fn place(&self) -> String {
        let host = self.get("host").or_else(|| self.get("hostaddr")).unwrap_or_default();
        format!("{host} port {}", self.get("port").unwrap_or("5432"))
    }

    pub(crate) fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// The same login at another place.
    pub(crate) fn move_to(&mut self, socket_directory: &Path, port: u16) {
        self.0.remove("hostaddr");
        self.0.insert("host".to_owned(), socket_directory.to_string_lossy().into_owned());
        self.0.insert("port".to_owned(), port.to_string());
    }

    pub(crate) fn database(&self) -> &str {
        self.get("dbname").unwrap_or("postgres")
    }

    pub(crate) fn set_database(&mut self, name: &str) {
        self.0.insert("dbname".to_owned(), name.to_owned());
    }

    /// Whether a connection string itself says which database.
    pub(crate) fn names_database(text: &str) -> Result<bool> {
        let pairs = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            parse_address(text)?
        } else {
            parse_keywords(text)?
        };
        Ok(pairs.get("dbname").is_some_and(|name| !name.is_empty()))
    }

    /// The same for a program that is started, as variables: nobody else can read them.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let value = |key: &str| self.get(key).map(str::to_owned);
        ENVIRONMENT.iter().filter_map(|(name, key)| Some((*name, value(key)?))).collect()
    }

    pub(crate) fn set_user(&mut self, user: &str) {
        self.0.insert("user".to_owned(), user.to_owned());
    }

    /// The same in keywords for a program that uses libpq, and the password, which goes to it by
    /// its environment.
    pub(crate) fn for_libpq(&self) -> (String, Option<&str>) {
        let quote = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
        let words: Vec<String> = self
            .0
            .iter()
            .filter(|(key, _)| *key != "password")
            .map(|(key, value)| format!("{key}='{}'", quote(value)))
            .collect();
        (words.join(" "), self.get("password"))
    }

    /// The servers that may be meant, in order.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>> {
        let list = |key: &str| -> Vec<&str> {
            self.get(key).map(|all| all.split(',').map(str::trim).collect()).unwrap_or_default()
        };
        let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = hosts.len().max(addresses.len());
        let fits = |given: usize| given <= 1 || given == count;
        if !fits(ports.len())
            || (!hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len())
        {
            return Err(PostgresError::usage(format!(
                "the connection has {count} hosts, {} addresses and {} ports",
                addresses.len(),
                ports.len()
            ))
            .with_hint("give one port for all hosts, or as many ports as hosts"));
        }
        (0..count)
            .map(|at| {
                let address = match addresses.get(at) {
                    Some(address) => Some(address.parse().map_err(|_| {
                        PostgresError::usage(format!("hostaddr {address:?} is no address"))
                    })?),
                    None => None,
                };
                let port = match ports.get(at).or(ports.first()) {
                    Some(port) if !port.is_empty() => self.number("port", port)?,
                    _ => 5432,
                };
                Ok(Endpoint {
                    host: hosts.get(at).map(|host| (*host).to_owned()).unwrap_or_default(),
                    address,
                    port,
                })
            })
            .collect()
    }

    /// Which of the servers are good enough.
    pub(crate) fn wanted(&self) -> Result<Wanted> {
        Ok(match self.get("target_session_attrs").unwrap_or("any") {
            "any" => Wanted::Any,
            "read-write" => Wanted::ReadWrite,
            "read-only" => Wanted::ReadOnly,
            "primary" => Wanted::Primary,
            "standby" => Wanted::Standby,
            "prefer-standby" => Wanted::PreferStandby,
            other => {
                return Err(PostgresError::usage(format!(
                    "target_session_attrs={other} is not known"
                ))
                .with_hint("say any, read-write, read-only, primary, standby or prefer-standby"));
            }
        })
    }

    pub(crate) fn channel_binding(&self) -> Result<&str> {
        match self.get("channel_binding") {
            None => Ok("prefer"),
            Some(known @ ("disable" | "prefer" | "require")) => Ok(known),
            Some(other) => {
                Err(PostgresError::usage(format!("channel_binding={other} is not known"))
                    .with_hint("say disable, prefer or require"))
            }
        }
    }

    pub(crate) fn application_name(&self) -> &str {
        self.get("application_name").unwrap_or("backstay")
    }

    pub(crate) fn set_application_name(&mut self, name: &str) {
        self.0.insert("application_name".to_owned(), name.to_owned());
    }

    pub(crate) fn options(&self) -> Option<&str> {
        self.get("options")
    }

    /// How long to try; none for ever.
    pub(crate) fn connect_timeout(&self) -> Result<Option<Duration>> {
        let seconds = match self.get("connect_timeout") {
            Some(seconds) => self.number::<u64>("connect_timeout", seconds)?,
            None => 30,
        };
        Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
    }

    /// Has the system notice that the other end is gone.
    pub(crate) fn keep_alive(&self, socket: &TcpStream) -> Result<()> {
        use rustix::net::sockopt;
        let failed = |error: rustix::io::Errno| {
            PostgresError::new(
                PostgresErrorKind::Connection,
                format!("the connection cannot be set up: {error}"),
            )
        };
        if self.get("keepalives") != Some("0") {
            sockopt::set_socket_keepalive(socket, true).map_err(failed)?;
            let idle = match self.get("keepalives_idle") {
                Some(seconds) => self.number("keepalives_idle", seconds)?,
                None => 60,
            };
            sockopt::set_tcp_keepidle(socket, Duration::from_secs(idle)).map_err(failed)?;
        }
        if let Some(millis) = self.get("tcp_user_timeout") {
            let millis = self.number("tcp_user_timeout", millis)?;
            sockopt::set_tcp_user_timeout(socket, millis).map_err(failed)?;
        }
        Ok(())
    }

    fn number<T: std::str::FromStr>(&self, key: &str, value: &str) -> Result<T> {
        value.parse().map_err(|_| {
            PostgresError::usage(format!("{key}={value} in the connection string is no number"))
        })
    }

    /// The password for `database` on one server: from the connection string or the environment, else
    /// from libpq's password file. A file that others may read is refused, as libpq does, but said
    /// aloud.
    pub(crate) fn password(&self, endpoint: &Endpoint, database: &str) -> Result<Option<String>> {
        if let Some(password) = self.get("password") {
            return Ok(Some(password.to_owned()));
        }
        let path = match self.get("passfile") {
            Some(path) => PathBuf::from(path),
            None => match std::env::var_os("HOME") {
                Some(home) => Path::new(&home).join(".pgpass"),
                None => return Ok(None),
            },
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(_) if self.get("passfile").is_none() => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PostgresError::io("read the password file", &path, error)),
        };
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).map(|meta| meta.permissions().mode()).unwrap_or(0);
        if mode & 0o077 != 0 {
            return Err(PostgresError::usage(format!(
                "the password file {} can be read by others",
                path.display()
            ))
            .with_hint(format!("chmod 600 {}", path.display())));
        }
        let host = match (&endpoint.address, endpoint.host.as_str()) {
            (_, host) if host.starts_with('/') => "localhost".to_owned(),
            (Some(address), "") => address.to_string(),
            (_, host) => host.to_owned(),
        };
        Ok(find_password(&text, |fields| {
            let is = |pattern: &str, value: &str| pattern == "*" || pattern == value;
            (is(&fields[0], &host) || fields[0] == endpoint.host)
                && is(&fields[1], &endpoint.port.to_string())
                && is(&fields[2], database)
                && is(&fields[3], self.user())
        }))
    }
}

/// The password of the first line that fits; a colon or backslash in a field is escaped by a backslash.
pub(crate) fn find_password(text: &str, fits: impl Fn(&[String; 4]) -> bool) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields: Vec<String> = vec![String::new()];
        let mut letters = line.chars();
        while let Some(letter) = letters.next() {
            if letter == ':' && fields.len() < 5 {
                fields.push(String::new());
                continue;
            }
            let last = fields.last_mut()?;
            match letter {
                '\\' => last.extend(letters.next()),
                other => last.push(other),
            }
        }
        let password = if fields.len() == 5 { fields.pop()? } else { return None };
        let fields: [String; 4] = fields.try_into().ok()?;
        fits(&fields).then_some(password)
    })
}

/// `key = value` pairs, values in single quotes where they have spaces.
fn parse_keywords(text: &str) -> Result<BTreeMap<String, String>> {
    // The text may hold a password: a message never repeats it.
    let wrong = |what: &str| {
        PostgresError::usage(format!("the connection string cannot be read: {what}"))
            .with_hint("write it as for psql: \"host=/var/run/postgresql port=5432 user=postgres\"")
    };
    let mut pairs = BTreeMap::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| wrong("a keyword has no value"))?;
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            return Err(wrong("what stands before a \"=\" is no keyword"));
        }
        let after = after.trim_start();
        let mut value = String::new();
        let quoted = after.starts_with('\'');
        let mut letters = after.char_indices().skip(usize::from(quoted));
        let mut end = None;
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
                '\'' if quoted => {
                    end = Some(at + 1);
                    break;
                }
                other if !quoted && other.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                other => value.push(other),
            }
        }
        if quoted && end.is_none() {
            return Err(wrong("a quote is not closed"));
        }
        pairs.insert(key.to_owned(), value);
        rest = end.and_then(|end| after.get(end..)).unwrap_or_default().trim_start();
    }
    Ok(pairs)
}

/// `postgresql://user:password@host:port,host:port/database?keyword=value`.
fn parse_address(text: &str) -> Result<BTreeMap<String, String>> {
    let wrong = |what: &str| {
        PostgresError::usage(format!("the connection address cannot be read: {what}"))
            .with_hint("write it as postgresql://user@host:5432/database?sslmode=verify-full")
    };
    let decode = |part: &str| decode_percent(part).ok_or_else(|| wrong("a %XX in it is wrong"));
    let (_, rest) = text.split_once("://").ok_or_else(|| wrong("it has no \"://\""))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (login, hosts),
        None => ("", authority),
    };
    let mut pairs = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        if !value.is_empty() {
            pairs.insert(key.to_owned(), value);
        }
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    put("user", decode(user)?);
    put("password", decode(password)?);
    put("dbname", decode(database)?);
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = if let Some(rest) = host.strip_prefix('[') {
            let (name, port) =
                rest.split_once(']').ok_or_else(|| wrong("a \"[\" is not closed"))?;
            (name, port.strip_prefix(':').unwrap_or(""))
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        names.push(decode(name)?);
        ports.push(port.to_owned());
    }
    put("host", names.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        let ports: Vec<&str> =
            ports.iter().map(|p| if p.is_empty() { "5432" } else { p.as_str() }).collect();
        put("port", ports.join(","));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| wrong("a keyword after \"?\" has no value"))?;
        put(&decode(key)?, decode(value)?);
    }
    Ok(pairs)
}

fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Parameters {
        Parameters::with_environment(text, |_| None).unwrap()
    }

    #[test]
    fn keywords_and_addresses_say_the_same() {
        let a = parse(r"host=db1,db2 port = 5433,5432 user='the \'owner\'' password=a\ b dbname=x");
        let b = parse("postgresql://the%20%27owner%27:a%20b@db1:5433,db2/x");
        assert_eq!(a, b);
        assert_eq!(a.place(), "db1,db2 port 5433,5432");
        let c = parse("postgres:///x?host=/run/pg&user=me&sslmode=verify-full");
        assert_eq!(c.get("host"), Some("/run/pg"));
        assert_eq!(c.get("sslmode"), Some("verify-full"));
        assert_eq!(parse("postgres://[::1]:99/").place(), "::1 port 99");
    }

    #[test]
    fn passwords_never_show() {
        let it = parse("host=h password=hunter2");
        assert!(!format!("{it:?}").contains("hunter2"));
        for text in ["host=h password=hunter2 x", "host=h password='hunter2", "hunter2"] {
            let error = Parameters::with_environment(text, |_| None).unwrap_err();
            let all = format!("{error} {:?} {error:?}", error.hint());
            assert!(!all.contains("hunter2"), "{all}");
        }
    }

    #[test]
    fn the_environment_completes_and_never_overrides() {
        let environment = |name: &str| match name {
            "PGHOST" => Some("elsewhere".to_owned()),
            "PGPASSWORD" => Some("p".to_owned()),
            _ => None,
        };
        let it = Parameters::with_environment("host=here", environment).unwrap();
        assert_eq!(it.get("host"), Some("here"));
        assert_eq!(it.get("password"), Some("p"));
        assert_eq!(it.get("dbname"), Some("postgres"));
    }

    #[test]
    fn several_hosts_have_their_ports_or_share_one() {
        let places = |text: &str| -> Result<Vec<String>> {
            Ok(parse(text).endpoints()?.iter().map(Endpoint::place).collect())
        };
        assert_eq!(places("host=a,b port=1,2").unwrap(), ["a port 1", "b port 2"]);
        assert_eq!(places("host=a,b port=7").unwrap(), ["a port 7", "b port 7"]);
        assert_eq!(places("hostaddr=::1").unwrap(), ["::1 port 5432"]);
        assert!(places("host=a,b,c port=1,2").is_err());
        assert!(places("host=a hostaddr=1.2.3.4,1.2.3.5").is_err());
        assert!(parse("host=a target_session_attrs=best").wanted().is_err());
    }

    #[test]
    fn the_password_of_replication_is_that_of_the_server_meant() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        std::fs::write(&path, "a:5432:replication:me:one\nb:6000:*:me:two\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let it = parse(&format!("host=a,b port=5432,6000 user=me passfile={}", path.display()));
        let all = it.endpoints().unwrap();
        let password = |at: usize, database| it.password(&all[at], database).unwrap();
        assert_eq!(password(0, "replication").as_deref(), Some("one"));
        assert_eq!(password(0, "postgres"), None);
        assert_eq!(password(1, "replication").as_deref(), Some("two"));
    }

    #[test]
    fn an_unknown_keyword_is_refused_by_name() {
        let error = Parameters::with_environment("hots=x", |_| None).unwrap_err();
        assert!(error.to_string().contains("hots"), "{error}");
    }

    #[test]
    fn the_password_file_is_read_as_libpq_does() {
        let text = "# note\nother:*:*:*:no\ndb\\:1:5432:*:me:se\\:cr\\\\et:x\n*:*:*:*:last";
        let find = |host: &str| {
            find_password(text, |f| (f[0] == "*" || f[0] == host) && (f[3] == "*" || f[3] == "me"))
        };
        assert_eq!(find("db:1").as_deref(), Some("se:cr\\et:x"));
        assert_eq!(find("else").as_deref(), Some("last"));
    }

    #[test]
    fn a_password_file_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        std::fs::write(&path, "*:*:*:*:secret\n").unwrap();
        let it = parse(&format!("host=/tmp user=me passfile={}", path.display()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let client = || it.client(&it.endpoints().unwrap()[0], Attempt::Plain);
        let error = client().unwrap_err();
        assert!(error.hint().unwrap().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(client().unwrap().0.get_password(), Some(&b"secret"[..]));
    }
}
