//! Asking a cluster: statements, values, checksums of its tables; a standby of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postgres::{Client, NoTls, SimpleQueryMessage};

use super::Cluster;
use super::cluster::run;
use crate::wait_until;

impl Cluster {
    /// A connection to the database `postgres`.
    pub fn connect(&self) -> Client {
        self.connect_to("postgres")
    }

    /// A connection to a database.
    pub fn connect_to(&self, database: &str) -> Client {
        let mut config = postgres::Config::new();
        config.host_path(self.socket()).port(self.port()).user("postgres").dbname(database);
        config
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("connecting to {database}: {error:?}\n{}", self.log()))
    }

    /// Runs statements in the database `postgres`.
    pub fn sql(&self, statements: &str) {
        self.sql_in("postgres", statements);
    }

    /// Runs statements in a database. Several in one string are one transaction; `vacuum`, `create
    /// database` and their like must come alone.
    pub fn sql_in(&self, database: &str, statements: &str) {
        self.connect_to(database)
            .batch_execute(statements)
            .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// The first column of the first row, as text; empty for NULL. Panics when there is no row.
    pub fn value(&self, query: &str) -> String {
        let first = self.rows("postgres", query).into_iter().next();
        let first = first.unwrap_or_else(|| panic!("{query}: no row"));
        first.into_iter().next().flatten().unwrap_or_default()
    }

    /// All rows, as text.
    pub fn rows(&self, database: &str, query: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.connect_to(database).simple_query(query);
        let messages = messages.unwrap_or_else(|error| panic!("{query}: {error:?}"));
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }

    /// Where its WAL ends now: the write position of a primary, the replay position of a standby.
    pub fn lsn(&self) -> String {
        self.value(
            "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
             else pg_current_wal_lsn() end",
        )
    }

    /// Fills the current WAL segment; returns the name of the one that ended.
    pub fn switch_wal(&self) -> String {
        // A segment in which nothing was written is not switched.
        self.sql("select pg_logical_emit_message(false, 'backstay-test', 'end of segment')");
        self.value("select pg_walfile_name(pg_switch_wal())")
    }

    /// Every ordinary table of every database, `database.schema.table`, with the number of its rows
    /// and a hash of all of them in order.
    pub fn table_checksums(&self) -> BTreeMap<String, String> {
        let databases = "select datname from pg_database where datallowconn order by 1";
        let tables = "select format('%I.%I', nspname, relname) from pg_class c \
             join pg_namespace n on n.oid = relnamespace \
             where relkind = 'r' and relpersistence = 'p' \
             and nspname not in ('pg_catalog', 'information_schema') order by 1";
        let text = |rows: Vec<Vec<Option<String>>>| -> Vec<String> {
            rows.into_iter().flatten().flatten().collect()
        };
        let mut sums = BTreeMap::new();
        for database in text(self.rows("postgres", databases)) {
            for table in text(self.rows(&database, tables)) {
                let query = format!(
                    "select count(*) || ' rows, ' || \
                     coalesce(md5(string_agg(h, '' order by h collate \"C\")), 'none') \
                     from (select md5(t::text) h from {table} t) q"
                );
                let sum = text(self.rows(&database, &query)).concat();
                sums.insert(format!("{database}.{table}"), sum);
            }
        }
        sums
    }

    /// The four tables of pgbench and their rows, 100,000 accounts for each unit of `scale`, in the
    /// database `postgres`: made by the server, so that no version needs a pgbench of its own.
    pub fn pgbench_tables(&self, scale: u32) {
        self.sql(&format!(
            "create table pgbench_branches (bid int not null, bbalance int, filler char(88)) \
                 with (fillfactor = 100);
             create table pgbench_tellers (tid int not null, bid int, tbalance int, filler char(84)) \
                 with (fillfactor = 100);
             create table pgbench_accounts (aid int not null, bid int, abalance int, \
                 filler char(84)) with (fillfactor = 100);
             create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, \
                 filler char(22));
             insert into pgbench_branches select n, 0, '' from generate_series(1, {scale}) n;
             insert into pgbench_tellers select n, (n - 1) / 10 + 1, 0, '' \
                 from generate_series(1, {scale} * 10) n;
             insert into pgbench_accounts select n, (n - 1) / 100000 + 1, 0, '' \
                 from generate_series(1, {scale} * 100000) n;
             alter table pgbench_branches add primary key (bid);
             alter table pgbench_tellers add primary key (tid);
             alter table pgbench_accounts add primary key (aid);"
        ));
        self.sql("vacuum analyze");
    }

    /// Runs pgbench with these arguments: this version's, else the newest there is. False where
    /// there is none at all.
    pub fn pgbench(&self, arguments: &[&str]) -> bool {
        let Some(program) = super::program("pgbench", self.major(), true) else { return false };
        let mut command = self.command_at(program);
        command.args(arguments);
        run(command);
        true
    }

    /// A hot standby that streams from this cluster, on every version: copied while the primary runs,
    /// so it also has to replay. With `slot`, through a physical replication slot of that name.
    pub fn standby(&self, slot: Option<&str>) -> Cluster {
        let standby = Self::empty(self.installation());
        let (start, stop) = if self.major() >= 15 {
            ("select pg_backup_start('standby', true)", "pg_backup_stop()")
        } else {
            ("select pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)")
        };
        if let Some(slot) = slot {
            self.sql(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
        }
        let mut session = self.connect();
        let failed = |error: postgres::Error| -> ! { panic!("copying a standby: {error:?}") };
        session.simple_query(start).unwrap_or_else(|error| failed(error));
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").arg(self.data()).arg(standby.data());
        // Files may vanish while it copies, which is a complaint and no harm.
        let status = copy.stderr(std::process::Stdio::null()).status();
        status.unwrap_or_else(|error| panic!("starting cp: {error}"));
        let label = session
            .simple_query(&format!("select labelfile from {stop}"))
            .unwrap_or_else(|error| failed(error));
        let label = label.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let label = label.unwrap_or_else(|| panic!("the backup of the standby has no label"));
        for gone in ["postmaster.pid", "postmaster.opts"] {
            let _ = std::fs::remove_file(standby.data().join(gone));
        }
        standby.write("backup_label", label);
        standby.write("standby.signal", "");
        standby.configure(&[("primary_conninfo", &self.connection_string())]);
        if let Some(slot) = slot {
            standby.configure(&[("primary_slot_name", slot)]);
        }
        standby.start();
        let all = format!("select pg_last_wal_replay_lsn() >= '{}'", self.lsn());
        wait_until("the standby has caught up", 60, || standby.value(&all) == "t");
        standby
    }

    /// Where the files of a tablespace of this cluster lie, by its name.
    pub fn tablespace(&self, name: &str) -> PathBuf {
        let query = format!(
            "select pg_tablespace_location(oid) from pg_tablespace where spcname = '{name}'"
        );
        PathBuf::from(self.value(&query))
    }
}
