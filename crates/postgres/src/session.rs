//! One SQL session with a server, and the two calls that a backup stands between.
//!
//! The session that starts a backup has to be the one that stops it: the server gives a backup up
//! when its session ends. So a session is opened once, told never to time out by itself, and a
//! connection that breaks is an error, never something to be opened again quietly.

use std::fmt;
use std::path::PathBuf;

use postgres::types::ToSql;
use postgres::{Client, Row};

use crate::connection::{Attempt, Endpoint, Parameters, Wanted, not_wanted};
use crate::wal::Lsn;
use crate::{PostgresError, PostgresErrorKind, Result};

/// The versions that are supported, as majors.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 13..=18;

/// A PostgreSQL cluster to protect, as the configuration names it.
#[derive(Clone)]
pub struct Source {
    pub name: String,
    /// libpq keywords or an address; may hold a password.
    pub connection: String,
    /// Where the files are on this machine; asked from the server where it is not given.
    pub data_directory: Option<PathBuf>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("data_directory", &self.data_directory)
            .finish_non_exhaustive()
    }
}

/// What the server returned at the end of a backup; to be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    pub lsn: Lsn,
    pub backup_label: String,
    /// Empty where there are no tablespaces.
    pub tablespace_map: String,
}

/// A session with one server.
pub struct Session {
    client: Client,
    place: String,
    version: u32,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects, and checks that the server's version is a supported one.
    pub fn open(source: &Source) -> Result<Self> {
        Self::with(&Parameters::new(&source.connection)?)
    }

    pub(crate) fn with(parameters: &Parameters) -> Result<Self> {
        let wanted = parameters.wanted()?;
        // A standby where there is one, else any: in two rounds.
        let rounds = match wanted {
            Wanted::PreferStandby => vec![Wanted::Standby, Wanted::Any],
            other => vec![other],
        };
        let endpoints = parameters.endpoints()?;
        let mut failure: Option<PostgresError> = None;
        for wanted in rounds {
            for endpoint in &endpoints {
                let opened = Self::at(parameters, endpoint)
                    .and_then(|mut session| session.fits(wanted).map(|()| session));
                match opened {
                    Ok(session) => return Ok(session),
                    // The first reason is that of the server that is named first.
                    Err(error) => drop(failure.get_or_insert(error)),
                }
            }
        }
        Err(failure.unwrap_or_else(|| PostgresError::usage("the connection names no server")))
    }

    /// Logs in to one server, in the ways that `sslmode` leaves open, in their order.
    fn at(parameters: &Parameters, endpoint: &Endpoint) -> Result<Self> {
        let place = endpoint.place();
        let mut failure = None;
        for attempt in parameters.attempts(endpoint)? {
            let (config, tls) = parameters.client(endpoint, *attempt)?;
            let error = match tls.connect(&config) {
                Ok(client) => return Self::prepared(client, place),
                Err(error) => error,
            };
            let again = match error.as_db_error() {
                Some(said) => attempt.may_differ(said.code().code()),
                // Who only prefers TLS goes without where it cannot be agreed on.
                None => *attempt == Attempt::Either && is_of_tls(&error),
            };
            failure.get_or_insert(error);
            if !again {
                break;
            }
        }
        Err(match failure {
            Some(error) => cannot_connect(parameters, &place, error),
            None => PostgresError::usage(format!("there is no way to connect to {place}")),
        })
    }

    fn prepared(client: Client, place: String) -> Result<Self> {
        let mut session = Self { client, place, version: 0 };
        let number: i32 = session.one(
            "ask for the version",
            "SELECT current_setting('server_version_num')::int4",
            &[],
        )?;
        session.version = u32::try_from(number).unwrap_or(0);
        if !VERSIONS.contains(&session.major()) {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the server on {} is PostgreSQL {}", session.place, session.major()),
            )
            .with_hint("PostgreSQL 13 to 18 are supported"));
        }
        // A session that copies files for hours is idle all that time. An own search path keeps
        // functions that a user of the database made from being called in place of the system's.
        let mut settings = "SET search_path = pg_catalog; SET statement_timeout = 0; \
             SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
             SET standard_conforming_strings = on; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'"
            .to_owned();
        if session.major() >= 14 {
            settings.push_str("; SET idle_session_timeout = 0");
        }
        session
            .client
            .batch_execute(&settings)
            .map_err(|error| failed(&session.place, "prepare the session", error))?;
        Ok(session)
    }

    /// Whether this is one of the servers that are good enough.
    fn fits(&mut self, wanted: Wanted) -> Result<()> {
        if matches!(wanted, Wanted::Any | Wanted::PreferStandby) {
            return Ok(());
        }
        let doing = "ask what the server is";
        let standby: bool = self.one(doing, "SELECT pg_is_in_recovery()", &[])?;
        let read_only: String = self.one(doing, "SHOW transaction_read_only", &[])?;
        match wanted.refuses(standby, read_only == "on") {
            None => Ok(()),
            Some(what) => Err(not_wanted(&self.place, what)),
        }
    }

    /// As the server counts: 150018 for 15.18.
    pub fn version(&self) -> u32 {
        self.version
    }

    pub fn major(&self) -> u32 {
        self.version / 10000
    }

    /// Host and port, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The rows of a query; `doing` completes "could not …".
    pub fn rows(
        &mut self,
        doing: &str,
        query: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        self.client.query(query, parameters).map_err(|error| failed(&self.place, doing, error))
    }

    /// The only value of the only row.
    pub fn one<T>(
        &mut self,
        doing: &str,
        query: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<T>
    where
        T: for<'a> postgres::types::FromSql<'a>,
    {
        self.client
            .query_one(query, parameters)
            .and_then(|row| row.try_get(0))
            .map_err(|error| failed(&self.place, doing, error))
    }

    /// Statements without parameters and without an answer.
    pub fn run(&mut self, doing: &str, statements: &str) -> Result<()> {
        self.client.batch_execute(statements).map_err(|error| failed(&self.place, doing, error))
    }

    /// A location that a query gives as text.
    pub fn lsn(&mut self, doing: &str, query: &str) -> Result<Lsn> {
        let text: String = self.one(doing, query, &[])?;
        parse_lsn(&text)
    }

    /// Makes sure that the session is still there.
    pub fn alive(&mut self) -> Result<()> {
        self.one::<i32>("keep the session", "SELECT 1", &[]).map(|_| ())
    }

    /// Starts a backup; returns where the recovery of its copy will have to start. With `fast` the
    /// checkpoint happens at once, otherwise it takes its time and spares the disks.
    pub fn start_backup(&mut self, label: &str, fast: bool) -> Result<Lsn> {
        let query = if self.major() >= 15 {
            "SELECT pg_backup_start($1, $2)::text"
        } else {
            "SELECT pg_start_backup($1, $2, false)::text"
        };
        let text: String = self.one("start a backup", query, &[&label, &fast])?;
        parse_lsn(&text)
    }

    /// Ends the backup that this session started. Does not wait for the archive.
    pub fn stop_backup(&mut self) -> Result<Stopped> {
        let query = if self.major() >= 15 {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
        } else {
            "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        };
        let rows = self.rows("end the backup", query, &[])?;
        let row = rows.first().ok_or_else(|| {
            PostgresError::new(
                PostgresErrorKind::Server,
                "the server ended the backup without a word",
            )
        })?;
        let get = |at: usize| {
            row.try_get::<_, Option<String>>(at)
                .map_err(|error| failed(&self.place, "end the backup", error))
        };
        let backup_label = get(1)?.unwrap_or_default();
        if backup_label.is_empty() {
            return Err(PostgresError::new(
                PostgresErrorKind::Server,
                "the server ended the backup without a backup label",
            ));
        }
        Ok(Stopped {
            lsn: parse_lsn(&get(0)?.unwrap_or_default())?,
            backup_label,
            tablespace_map: get(2)?.unwrap_or_default(),
        })
    }
}

pub(crate) fn parse_lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|_| {
        PostgresError::new(
            PostgresErrorKind::Server,
            format!("the server answered {text:?} where a WAL location was expected"),
        )
    })
}

/// Whether TLS could not be agreed on.
fn is_of_tls(error: &postgres::Error) -> bool {
    // The client has no other word for it.
    error.to_string().starts_with("error performing TLS handshake")
}

fn cannot_connect(parameters: &Parameters, place: &str, error: postgres::Error) -> PostgresError {
    let said = sentence(&error);
    let hint = match error.as_db_error().map(|db| db.code().code()) {
        Some("28P01" | "28000") => format!(
            "check pg_hba.conf, and that user {:?} may log in; a password comes from PGPASSWORD or \
             ~/.pgpass",
            parameters.user()
        ),
        Some("3D000") => "name a database that exists with dbname=…".to_owned(),
        Some("53300") => "raise max_connections, or reserve a connection for backups".to_owned(),
        Some("57P03") => "the server is starting up or shutting down; try again".to_owned(),
        _ => "check that the server runs, and host and port in `connection`".to_owned(),
    };
    PostgresError::new(
        PostgresErrorKind::Connection,
        format!("could not connect to PostgreSQL on {place}: {said}"),
    )
    .with_hint(hint)
    .with_source(error)
    .transient()
}

fn failed(place: &str, doing: &str, error: postgres::Error) -> PostgresError {
    let said = sentence(&error);
    let code = error.as_db_error().map(|db| db.code().code().to_owned());
    // Class 57P: the server ended the session.
    let broken = error.is_closed()
        || code.as_deref().is_some_and(|code| code.starts_with("57P"))
        || (code.is_none()
            && std::error::Error::source(&error).is_some_and(|s| s.is::<std::io::Error>()));
    if broken {
        return PostgresError::new(
            PostgresErrorKind::Connection,
            format!("the session with PostgreSQL on {place} broke: could not {doing}: {said}"),
        )
        .with_hint("look into the server's log; nothing was stored, run the same command again")
        .with_source(error)
        .transient();
    }
    let it = PostgresError::new(PostgresErrorKind::Server, format!("could not {doing}: {said}"));
    let it = match code.as_deref() {
        Some("42501") => it.with_hint(
            "connect as a superuser, or grant the role pg_read_all_settings and EXECUTE on the \
             functions that start and stop a backup",
        ),
        _ => it,
    };
    it.with_source(error)
}

/// What the server or the client library said, in one line.
fn sentence(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return match db.detail() {
            Some(detail) => format!("{} ({detail})", db.message()),
            None => db.message().to_owned(),
        };
    }
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}
