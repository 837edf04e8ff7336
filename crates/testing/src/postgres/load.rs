//! A load of small transactions that remembers what the server acknowledged, so that a test can ask
//! after a recovery whether anything that was promised is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use postgres::NoTls;

use super::Cluster;

/// Clients that write until stopped, or until the server goes away.
///
/// Each transaction of client `c` adds the row `(c, n)` to `load_journal`, with n = 1, 2, 3, …, and
/// updates an account where the tables of pgbench are there.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<(Arc<AtomicU64>, Option<JoinHandle<()>>)>,
}

/// The last `n` that was acknowledged to each client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged(pub Vec<u64>);

impl Load {
    /// Starts `clients` clients on `cluster`; returns once each has committed.
    pub fn start(cluster: &Cluster, clients: usize) -> Self {
        cluster.sql(
            "create table if not exists load_journal (client int not null, n bigint not null, \
             at timestamptz not null default clock_timestamp(), primary key (client, n))",
        );
        let accounts: u64 = cluster
            .value(
                "select coalesce((select reltuples::bigint from pg_class \
                 where oid = to_regclass('pgbench_accounts')), 0)",
            )
            .parse()
            .unwrap_or(0);
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|number| {
                let mut config = postgres::Config::new();
                config.host_path(cluster.socket()).port(cluster.port());
                config.user("postgres").dbname("postgres");
                let done = Arc::new(AtomicU64::new(0));
                let (stop, mine) = (stop.clone(), done.clone());
                let thread = std::thread::Builder::new()
                    .name(format!("load {number}"))
                    .spawn(move || {
                        // The server went away: what it acknowledged stands.
                        let _ = client(&config, number, accounts, &stop, &mine);
                    })
                    .unwrap_or_else(|error| panic!("starting a client: {error}"));
                (done, Some(thread))
            })
            .collect();
        let load = Self { stop, clients };
        crate::wait_until("every client has committed", 60, || {
            load.acknowledged().0.iter().all(|n| *n > 0)
        });
        load
    }

    /// What is acknowledged by now.
    pub fn acknowledged(&self) -> Acknowledged {
        Acknowledged(self.clients.iter().map(|(done, _)| done.load(Ordering::Acquire)).collect())
    }

    /// Waits until every client has committed `more` further transactions.
    pub fn run_for(&self, more: u64) {
        let now = self.acknowledged();
        crate::wait_until("the load has gone on", 120, || {
            let then = self.acknowledged();
            then.0.iter().zip(&now.0).all(|(then, now)| *then >= now + more)
        });
    }

    /// Ends the clients; what they saw acknowledged.
    pub fn stop(mut self) -> Acknowledged {
        self.end();
        self.acknowledged()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.clients.iter_mut().filter_map(|(_, thread)| thread.take()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Acknowledged {
    /// Panics unless the journal in `cluster` holds everything that was acknowledged, without gaps.
    pub fn assert_kept(&self, cluster: &Cluster) {
        for (client, acknowledged) in self.0.iter().enumerate() {
            let (rows, last) = journal(cluster, client);
            assert_eq!(rows, last, "client {client}: the journal has gaps");
            assert!(
                last >= *acknowledged,
                "client {client}: {acknowledged} transactions were acknowledged, {last} are there"
            );
        }
    }
}

/// How many rows a client has in the journal, and the largest number of them.
fn journal(cluster: &Cluster, client: usize) -> (u64, u64) {
    let query =
        format!("select count(*), coalesce(max(n), 0) from load_journal where client = {client}");
    let row: Vec<u64> = cluster
        .rows("postgres", &query)
        .into_iter()
        .flatten()
        .filter_map(|value| value?.parse().ok())
        .collect();
    match row.as_slice() {
        [rows, last] => (*rows, *last),
        _ => panic!("{query}: not two numbers"),
    }
}

fn client(
    config: &postgres::Config,
    number: usize,
    accounts: u64,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Result<(), postgres::Error> {
    let mut session = config.connect(NoTls)?;
    let client = number as i32;
    let journal = session.prepare("insert into load_journal (client, n) values ($1, $2)")?;
    let row = session
        .query_one("select coalesce(max(n), 0) from load_journal where client = $1", &[&client])?;
    let mut n: i64 = row.get(0);
    let account = match accounts {
        0 => None,
        _ => Some(
            session
                .prepare("update pgbench_accounts set abalance = abalance + 1 where aid = $1")?,
        ),
    };
    while !stop.load(Ordering::Acquire) {
        n += 1;
        let mut transaction = session.transaction()?;
        transaction.execute(&journal, &[&client, &n])?;
        if let Some(account) = &account {
            // A large prime step touches pages all over the table.
            let aid = (n as u64 * 7_919_977 + number as u64 * 104_729) % accounts + 1;
            transaction.execute(account, &[&(aid as i32)])?;
        }
        transaction.commit()?;
        done.store(n as u64, Ordering::Release);
    }
    Ok(())
}
