//! What belongs to a server and to none of its databases: roles, settings, tablespaces.

use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::session::Session;
use crate::{PostgresError, PostgresErrorKind, Result};

/// A server at one moment. Passwords are in [`super::super::names::GLOBALS`] alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCatalogue {
    pub format: u32,
    /// As "15.14".
    pub server: String,
    /// As the server counts: 150014.
    pub version: u32,
    pub databases: Vec<Database>,
    pub roles: Vec<Role>,
    pub tablespaces: Vec<TablespaceInfo>,
    /// What is not as the server was built.
    pub settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    pub oid: u32,
    pub owner: String,
    pub encoding: String,
    pub collation: String,
    pub character_type: String,
    pub tablespace: String,
    /// Bytes; nothing where this role may not ask.
    pub bytes: Option<i64>,
    pub comment: Option<String>,
    pub grants: Vec<String>,
    /// Whether its content is in this snapshot.
    #[serde(default)]
    pub dumped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub name: String,
    pub oid: u32,
    /// Those of `superuser`, `createdb`, `createrole`, `login`, `replication`, `bypassrls` and
    /// `noinherit` that it has.
    pub attributes: Vec<String>,
    pub connection_limit: i32,
    pub valid_until: Option<String>,
    pub member_of: Vec<String>,
    pub comment: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceInfo {
    pub name: String,
    pub oid: u32,
    pub owner: String,
    pub location: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Of the server where neither is there.
    pub database: Option<String>,
    pub role: Option<String>,
    pub name: String,
    pub value: String,
}

/// Settings whose values may hold a password.
const SECRET: &str = "'primary_conninfo', 'ssl_passphrase_command', 'restore_command', \
     'archive_command', 'archive_cleanup_command', 'recovery_end_command'";

const DOING: &str = "read the catalogue of the server";

impl ServerCatalogue {
    pub(in crate::logical) fn read(session: &mut Session) -> Result<Self> {
        let server = session.one(
            DOING,
            "SELECT split_part(current_setting('server_version'), ' ', 1)",
            &[],
        )?;
        Ok(Self {
            format: FORMAT,
            server,
            version: session.version(),
            databases: databases(session)?,
            roles: roles(session)?,
            tablespaces: tablespaces(session)?,
            settings: settings(session)?,
        })
    }

    /// # Errors
    /// As [`super::Catalogue::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let it: Self = serde_json::from_slice(bytes).map_err(|error| super::unreadable(&error))?;
        super::known_format(it.format)?;
        Ok(it)
    }
}

fn get<'a, T: postgres::types::FromSql<'a>>(row: &'a postgres::Row, at: usize) -> Result<T> {
    row.try_get(at).map_err(|error| {
        PostgresError::new(PostgresErrorKind::Server, format!("could not {DOING}: {error}"))
            .with_source(error)
    })
}

fn databases(session: &mut Session) -> Result<Vec<Database>> {
    let query = "SELECT d.datname::text, d.oid, pg_get_userbyid(d.datdba)::text, \
             pg_encoding_to_char(d.encoding)::text, coalesce(d.datcollate::text, ''), \
             coalesce(d.datctype::text, ''), t.spcname::text, \
             CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END, \
             shobj_description(d.oid, 'pg_database'), d.datacl::text[] \
         FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace \
         WHERE d.datallowconn AND NOT d.datistemplate ORDER BY d.datname";
    session
        .rows("list the databases", query, &[])?
        .iter()
        .map(|row| {
            Ok(Database {
                name: get(row, 0)?,
                oid: get(row, 1)?,
                owner: get(row, 2)?,
                encoding: get(row, 3)?,
                collation: get(row, 4)?,
                character_type: get(row, 5)?,
                tablespace: get(row, 6)?,
                bytes: get(row, 7)?,
                comment: get(row, 8)?,
                grants: get::<Option<Vec<String>>>(row, 9)?.unwrap_or_default(),
                dumped: false,
            })
        })
        .collect()
}

fn roles(session: &mut Session) -> Result<Vec<Role>> {
    let query = "SELECT r.rolname::text, r.oid, array_remove(ARRAY[ \
             CASE WHEN rolsuper THEN 'superuser' END, CASE WHEN rolcreatedb THEN 'createdb' END, \
             CASE WHEN rolcreaterole THEN 'createrole' END, CASE WHEN rolcanlogin THEN 'login' END, \
             CASE WHEN rolreplication THEN 'replication' END, \
             CASE WHEN rolbypassrls THEN 'bypassrls' END, \
             CASE WHEN NOT rolinherit THEN 'noinherit' END], NULL), r.rolconnlimit, \
             r.rolvaliduntil::text, ARRAY(SELECT pg_get_userbyid(m.roleid)::text \
                 FROM pg_auth_members m WHERE m.member = r.oid ORDER BY 1), \
             shobj_description(r.oid, 'pg_authid') \
         FROM pg_roles r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname";
    session
        .rows("list the roles", query, &[])?
        .iter()
        .map(|row| {
            Ok(Role {
                name: get(row, 0)?,
                oid: get(row, 1)?,
                attributes: get(row, 2)?,
                connection_limit: get(row, 3)?,
                valid_until: get(row, 4)?,
                member_of: get(row, 5)?,
                comment: get(row, 6)?,
            })
        })
        .collect()
}

fn tablespaces(session: &mut Session) -> Result<Vec<TablespaceInfo>> {
    let query = "SELECT spcname::text, oid, pg_get_userbyid(spcowner)::text, \
             coalesce(pg_tablespace_location(oid), '') \
         FROM pg_tablespace WHERE spcname !~ '^pg_' ORDER BY spcname";
    session
        .rows("list the tablespaces", query, &[])?
        .iter()
        .map(|row| {
            Ok(TablespaceInfo {
                name: get(row, 0)?,
                oid: get(row, 1)?,
                owner: get(row, 2)?,
                location: get(row, 3)?,
            })
        })
        .collect()
}

fn settings(session: &mut Session) -> Result<Vec<Setting>> {
    let query = format!(
        "SELECT NULL::text, NULL::text, name, coalesce(current_setting(name, true), '') \
             FROM pg_settings WHERE source IN ('configuration file', 'command line', \
                 'environment variable') AND name NOT IN ({SECRET}) \
         UNION ALL SELECT d.datname::text, CASE WHEN s.setrole <> 0 \
                 THEN pg_get_userbyid(s.setrole)::text END, split_part(c, '=', 1), \
                 substr(c, strpos(c, '=') + 1) \
             FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase, \
                 unnest(s.setconfig) c \
         ORDER BY 1 NULLS FIRST, 2 NULLS FIRST, 3"
    );
    session
        .rows("list the settings", &query, &[])?
        .iter()
        .map(|row| {
            Ok(Setting {
                database: get(row, 0)?,
                role: get(row, 1)?,
                name: get(row, 2)?,
                value: get(row, 3)?,
            })
        })
        .collect()
}
