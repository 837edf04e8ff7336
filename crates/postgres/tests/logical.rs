//! Logical backups of real servers, and what is restored from them.
#![allow(clippy::unwrap_used)] // all of this is tests

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use backstay_postgres::logical::catalogue::{Catalogue, ObjectKind};
use backstay_postgres::logical::drift::{ChangeType, Moment, drift, history};
use backstay_postgres::logical::graph::Graph;
use backstay_postgres::logical::restore::{RestoreOptions, Restored, restore};
use backstay_postgres::logical::{
    BackupOptions, Contents, LogicalSource, Target, backup_to, check,
};
use backstay_postgres::{PostgresError, PostgresErrorKind};
use backstay_repo::{
    Compression, Environment, Fate, InitOptions, Repository, Secret, Snapshot, SnapshotType,
};
use backstay_testing::postgres::{Cluster, Installation, versions};
use backstay_testing::{skip, skipped};

/// Servers that come with the programs that dump and restore.
fn complete() -> Vec<Installation> {
    let all = versions();
    all.into_iter().filter(|one| one.has.contains("pg_dump") && one.major >= 13).collect()
}

struct Fixture {
    folder: tempfile::TempDir,
    repo: Repository,
    cluster: Cluster,
    source: LogicalSource,
}

impl Fixture {
    fn new(installation: &Installation) -> Self {
        Self::on(installation, Cluster::builder(installation).start())
    }

    fn on(installation: &Installation, cluster: Cluster) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("repo");
        std::fs::create_dir(&directory).unwrap();
        let repo = Repository::init(
            store(&directory),
            Environment::system(),
            &secret(),
            InitOptions::default(),
        )
        .unwrap();
        let spool = folder.path().join("spool");
        std::fs::create_dir(&spool).unwrap();
        let mut source = LogicalSource::new("main", cluster.connection_string());
        source.bin_directory = Some(installation.bin.clone());
        source.spool = Some(spool);
        source.jobs = 2;
        Self { folder, repo, cluster, source }
    }

    fn try_backup(&self) -> Result<(Snapshot, Vec<String>), PostgresError> {
        let parent = self.repo.snapshots().unwrap().pop();
        let target = Target {
            repository: self.repo.clone(),
            type_: SnapshotType::Incremental,
            parent,
            compression: Compression::default(),
            fate: Fate::default(),
        };
        let options = BackupOptions { workers: 2, ..BackupOptions::default() };
        let (mut made, warnings) = backup_to(&[target], &self.source, &options)?;
        Ok((made.pop().unwrap()?, warnings))
    }

    fn backup(&self) -> Snapshot {
        let (snapshot, warnings) = self.try_backup().unwrap();
        assert!(warnings.is_empty() && snapshot.problems.is_empty(), "{warnings:?} {snapshot:?}");
        self.spool_is_empty();
        snapshot
    }

    fn spool_is_empty(&self) {
        let left: Vec<_> = std::fs::read_dir(self.folder.path().join("spool")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn contents(&self, snapshot: &Snapshot) -> Contents {
        Contents::open(&self.repo, snapshot, None).unwrap()
    }

    fn catalogue(&self, snapshot: &Snapshot, database: &str) -> Catalogue {
        self.contents(snapshot).catalogue(database).unwrap()
    }

    fn options(&self, cluster: &Cluster) -> RestoreOptions {
        let mut options = RestoreOptions::new(server(cluster));
        options.bin_directory.clone_from(&self.source.bin_directory);
        options.spool.clone_from(&self.source.spool);
        options
    }

    fn restore(
        &self,
        snapshot: &Snapshot,
        options: &RestoreOptions,
    ) -> Result<Restored, PostgresError> {
        let done = restore(&self.repo, snapshot, options);
        self.spool_is_empty();
        done
    }

    fn paths(&self, snapshot: &Snapshot) -> Vec<String> {
        let tree = self.repo.tree(snapshot).unwrap();
        tree.iter().map(|entry| entry.unwrap().display_path()).collect()
    }
}

fn secret() -> Secret {
    Secret::key_file(vec![7; 32]).unwrap()
}

fn store(directory: &Path) -> backstay_store::Store {
    let url = format!("file://{}", directory.display());
    backstay_store::Store::open(&url, &backstay_store::StoreOptions::default()).unwrap()
}

/// Without a database: each goes into the one of its own name.
fn server(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.socket().display(), cluster.port())
}

/// A shop with one of everything.
fn shop(cluster: &Cluster) {
    cluster.sql("create role app login password 'hunter2'");
    cluster.sql("create role readers");
    cluster.sql("grant readers to app");
    cluster.sql("comment on role app is 'it''s; the app'");
    cluster.sql("create database shop owner app");
    cluster.sql("alter database shop set work_mem = '7MB'");
    cluster.sql_in(
        "shop",
        "create schema stock authorization app;
         set role app;
         create type state as enum ('new', 'paid', 'sent');
         create domain amount as numeric check (value >= 0);
         create table customers (id int generated always as identity primary key, name text not null,
            note text default 'none');
         create table orders (id serial primary key, customer int not null references customers,
            state state default 'new', total amount, at timestamptz default now());
         create index orders_state on orders (state);
         create table stock.items (id int primary key, name text);
         create table \"Odd / name\" (\"a b\" int);
         create table events (id int, day date) partition by range (day);
         create table events_2025 partition of events for values from ('2025-01-01') to ('2026-01-01');
         create table events_2026 partition of events for values from ('2026-01-01') to ('2027-01-01');
         create view paid as select o.id, c.name from orders o join customers c on c.id = o.customer
            where o.state = 'paid';
         create view paid_names as select name from paid;
         create materialized view totals as select customer, sum(total) from orders group by 1;
         create function touch() returns trigger language plpgsql as
            $$ begin new.at := now(); return new; end $$;
         create trigger orders_touch before update on orders for each row execute function touch();
         create table a (id int primary key, b int);
         create table b (id int primary key, a int references a);
         alter table a add constraint a_b foreign key (b) references b;
         grant select on orders to readers;
         comment on table orders is 'what was ordered';
         comment on column orders.total is 'in cents';
         insert into customers (name) select 'customer ' || n from generate_series(1, 500) n;
         insert into orders (customer, state, total) select n % 500 + 1,
            (array['new', 'paid', 'sent'])[n % 3 + 1]::state, n from generate_series(1, 5000) n;
         insert into stock.items select n, 'item ' || n from generate_series(1, 100) n;
         insert into \"Odd / name\" values (7);
         insert into events select n, '2025-06-01'::date + n from generate_series(1, 400) n;
         select lo_from_bytea(0, 'a large object');
         refresh materialized view totals;",
    );
    cluster.sql_in("shop", "analyze");
}

/// Every table of a database with a hash of its rows.
fn rows(cluster: &Cluster, database: &str) -> BTreeMap<String, String> {
    let prefix = format!("{database}.");
    let all = cluster.table_checksums().into_iter();
    all.filter_map(|(name, sum)| Some((name.strip_prefix(&prefix)?.to_owned(), sum))).collect()
}

#[test]
fn everything_comes_back_on_every_version() {
    let installations = complete();
    if installations.is_empty() {
        skip!("no PostgreSQL with pg_dump is installed");
    }
    for installation in &installations {
        let fixture = Fixture::new(installation);
        shop(&fixture.cluster);
        let snapshot = fixture.backup();
        assert!(check(&fixture.source).iter().all(|item| item.ok), "{:?}", check(&fixture.source));

        // Rows are found by the names of their tables, and the dump is whole under its own.
        let paths = fixture.paths(&snapshot);
        for path in [
            "catalogue.json",
            "globals.sql",
            "databases/shop/catalogue.json",
            "databases/shop/data/public/orders.copy",
            "databases/shop/data/public/Odd %2F name.copy",
            "databases/shop/data/stock/items.copy",
            "databases/shop/dump/toc.dat",
        ] {
            assert!(paths.iter().any(|one| one == path), "{path} of {paths:#?}");
        }
        let toc = fixture.contents(&snapshot).toc("shop").unwrap();
        let data = toc.data_of("public", "orders").unwrap();
        let catalogue = fixture.catalogue(&snapshot, "shop");
        assert_eq!(catalogue.files["public.orders"], *data.file.as_ref().unwrap());

        // The repository alone gives a folder that the server's own program reads.
        let folder = fixture.folder.path().join("plain");
        let mut plain = backstay_repo::RestoreOptions::new(&folder);
        plain.paths = vec![b"databases/shop/dump".to_vec()];
        fixture.repo.restore(&snapshot, plain, &backstay_repo::Progress::default()).unwrap();
        let listed = std::process::Command::new(installation.program("pg_restore").unwrap())
            .arg("--list")
            .arg(folder.join("databases/shop/dump"))
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let listed = String::from_utf8(listed.stdout).unwrap();
        let lines =
            listed.lines().filter(|line| !line.starts_with(';') && !line.is_empty()).count();
        let shown = toc.entries.iter().filter(|entry| {
            !matches!(entry.kind.as_str(), "ENCODING" | "STDSTRINGS" | "SEARCHPATH")
                && !entry.kind.starts_with("DATABASE")
        });
        assert!(lines <= toc.entries.len() && lines >= shown.count(), "{listed}");

        let other = Cluster::builder(installation).start();
        let restored = fixture.restore(&snapshot, &fixture.options(&other)).unwrap();
        let roles = restored.roles.as_ref().unwrap();
        assert_eq!(roles.created, ["app", "readers"]);
        assert_eq!(roles.kept, ["postgres"]);
        let shop = restored.databases.iter().find(|one| one.database == "shop").unwrap();
        assert!(shop.created);
        let orders = shop.objects.iter().find(|o| o.kind == "table" && o.name == "orders").unwrap();
        assert!(orders.bytes > 100_000, "{orders:?}");
        assert_eq!(rows(&other, "shop"), rows(&fixture.cluster, "shop"));
        let ask = |cluster: &Cluster, query: &str| cluster.rows("shop", query);
        for query in [
            "select rolpassword from pg_authid where rolname = 'app'",
            "select pg_get_userbyid(datdba) from pg_database where datname = 'shop'",
            "select setconfig from pg_db_role_setting",
            "select convert_from(lo_get(oid), 'UTF8') from pg_largeobject_metadata",
            "select relacl from pg_class where relname = 'orders'",
            "select count(*) from totals",
            "select pg_get_userbyid(roleid), pg_get_userbyid(member) from pg_auth_members \
             where roleid >= 16384",
        ] {
            assert_eq!(ask(&other, query), ask(&fixture.cluster, query), "{query}");
        }
        // What was restored is what was backed up, object by object.
        let mut again = LogicalSource::new("other", other.connection_string());
        again.bin_directory.clone_from(&fixture.source.bin_directory);
        again.databases = vec!["shop".into()];
        let copy = Fixture { source: again, ..Fixture::on(installation, other) };
        let other = copy.catalogue(&copy.try_backup().unwrap().0, "shop");
        assert_eq!(drift(&catalogue, &other), []);

        // A second time everything is in the way, and nothing is touched.
        let error = fixture.restore(&snapshot, &fixture.options(&copy.cluster)).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Mismatch, "{error}");
        assert!(error.to_string().contains("already"), "{error}");
        assert!(error.hint().unwrap().contains("--overwrite"));
    }
}

#[test]
fn a_catalogue_knows_what_there_is_and_what_needs_what() {
    for installation in complete() {
        let fixture = Fixture::new(&installation);
        shop(&fixture.cluster);
        let it = fixture.catalogue(&fixture.backup(), "shop");
        let find = |kind: ObjectKind, name: &str| {
            let found = it.objects.iter().find(|o| o.kind == kind && o.qualified() == name);
            found.unwrap_or_else(|| panic!("{kind} {name}"))
        };
        let orders = find(ObjectKind::Table, "public.orders");
        assert_eq!(orders.owner.as_deref(), Some("app"));
        assert_eq!(orders.comment.as_deref(), Some("what was ordered"));
        assert_eq!(orders.statistics.as_ref().unwrap().rows, Some(5000));
        assert!(orders.statistics.as_ref().unwrap().index_bytes > 0);
        let columns: Vec<(&str, &str)> =
            orders.columns.iter().map(|c| (c.name.as_str(), c.type_.as_str())).collect();
        assert_eq!(
            columns,
            [
                ("id", "integer"),
                ("customer", "integer"),
                ("state", "public.state"),
                ("total", "public.amount"),
                ("at", "timestamp with time zone")
            ]
        );
        assert_eq!(orders.columns[3].comment.as_deref(), Some("in cents"));
        assert_eq!(
            find(ObjectKind::Table, "public.customers").columns[0].identity.as_deref(),
            Some("always")
        );
        assert_eq!(find(ObjectKind::Type, "public.state").facts["labels"], "'new', 'paid', 'sent'");
        assert_eq!(find(ObjectKind::Domain, "public.amount").facts["base"], "numeric");
        assert_eq!(
            find(ObjectKind::Table, "public.events_2025").facts["inherits"],
            "public.events"
        );
        assert_eq!(
            find(ObjectKind::PartitionedTable, "public.events").facts["partition-key"],
            "RANGE (day)"
        );
        assert!(
            find(ObjectKind::Function, "public.touch()").facts["definition"].contains("new.at")
        );
        find(ObjectKind::Index, "public.orders.orders_state");
        find(ObjectKind::Trigger, "public.orders.orders_touch");
        find(ObjectKind::Sequence, "public.orders_id_seq");
        assert_eq!(
            find(ObjectKind::Constraint, "public.orders.orders_customer_fkey").facts["references"],
            "public.customers"
        );
        assert!(
            !it.objects
                .iter()
                .any(|o| o.name.starts_with("pg_") && o.kind != ObjectKind::Extension)
        );

        let graph = Graph::new(&it);
        let at = |name: &str| match graph.find(name).as_slice() {
            [one] => *one,
            other => panic!("{name}: {other:?}"),
        };
        let needs = graph.needs(at("public.paid_names"));
        assert_eq!(needs.get(&at("public.paid")), Some(&1));
        assert_eq!(needs.get(&at("public.orders")), Some(&2));
        assert_eq!(needs.get(&at("public.customers")), Some(&2));
        assert_eq!(needs.get(&at("public.state")).map(|steps| *steps > 1), Some(true));
        assert!(graph.needed_by(at("public.touch")).contains_key(&at("public.orders")));
        let circles: Vec<Vec<&str>> = graph
            .circles()
            .iter()
            .map(|circle| circle.iter().map(|at| graph.nodes[*at].name.as_str()).collect())
            .collect();
        assert_eq!(circles, [vec!["public.a", "public.b"]]);
        assert!(graph.dot().contains("color=red"));
        assert!(graph.svg("shop").ends_with("</svg>\n"));

        let server = fixture.contents(&fixture.repo.snapshots().unwrap()[0]).server;
        let app = server.roles.iter().find(|role| role.name == "app").unwrap();
        assert_eq!(
            (app.attributes.as_slice(), app.member_of.as_slice()),
            (&["login".to_owned()][..], &["readers".to_owned()][..])
        );
        assert!(
            server
                .settings
                .iter()
                .any(|s| s.name == "work_mem" && s.database.as_deref() == Some("shop"))
        );
        let text = serde_json::to_string(&server).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("SCRAM"), "{text}");
    }
}

#[test]
fn changes_are_seen_object_by_object_and_over_time() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    shop(&fixture.cluster);
    fixture.source.databases = vec!["shop".into()];
    let mut moments = Vec::new();
    for statements in [
        "select 1",
        "insert into orders (customer) values (1)",
        "alter table orders add column weight int not null default 3;
         drop materialized view totals;
         alter table orders alter total type numeric(12, 2);
         drop index orders_state; create table fresh (id int);
         alter view paid_names owner to postgres;
         create or replace function touch() returns trigger language plpgsql as
            $$ begin return new; end $$",
        "alter table orders rename to sales; drop table fresh",
        "drop table sales cascade",
    ] {
        fixture.cluster.sql_in("shop", statements);
        let snapshot = fixture.backup();
        let catalogue = fixture.catalogue(&snapshot, "shop");
        moments.push(Moment { snapshot: snapshot.id, catalogue });
    }
    let between = |a: usize, b: usize| drift(&moments[a].catalogue, &moments[b].catalogue);
    // Rows are no difference.
    assert_eq!(between(0, 1), []);
    let changes = between(1, 2);
    let of = |object: &str| {
        changes
            .iter()
            .find(|one| one.object == object)
            .unwrap_or_else(|| panic!("{object} of {changes:#?}"))
    };
    let orders = of("public.orders");
    let what: Vec<(&str, Option<&str>, Option<&str>)> = orders
        .what
        .iter()
        .map(|one| (one.field.as_str(), one.before.as_deref(), one.after.as_deref()))
        .collect();
    assert_eq!(
        what,
        [
            ("column total type", Some("public.amount"), Some("numeric(12,2)")),
            ("column weight", None, Some("integer not null default 3")),
        ]
    );
    assert_eq!(of("public.orders.orders_state").change, ChangeType::Removed);
    assert_eq!(of("public.fresh").change, ChangeType::Added);
    assert_eq!(of("public.paid_names").what[0].field, "owner");
    assert_eq!(of("public.touch()").what[0].field, "definition");
    let renamed = between(2, 3);
    let sales = renamed.iter().find(|one| one.object == "public.sales").unwrap();
    assert_eq!((sales.change, sales.was.as_deref()), (ChangeType::Renamed, Some("public.orders")));

    let versions = history(&moments, "sales");
    let seen: Vec<(ChangeType, &str, usize)> = versions
        .iter()
        .map(|one| {
            let at = moments.iter().position(|moment| moment.snapshot == one.snapshot).unwrap();
            (one.change, one.object.as_str(), at)
        })
        .collect();
    assert_eq!(
        seen,
        [
            (ChangeType::Added, "public.orders", 0),
            (ChangeType::Changed, "public.orders", 2),
            (ChangeType::Renamed, "public.sales", 3),
            (ChangeType::Removed, "public.sales", 4),
        ]
    );
    assert_eq!(versions[1].after, Some(moments[1].catalogue.time));
    assert!(history(&moments, "nothing").is_empty());
}

#[test]
fn a_table_or_a_schema_comes_back_alone() {
    for installation in complete() {
        let mut fixture = Fixture::new(&installation);
        shop(&fixture.cluster);
        fixture.source.databases = vec!["shop".into()];
        let snapshot = fixture.backup();
        let cluster = &fixture.cluster;
        let before = rows(cluster, "shop");
        cluster.sql_in("shop", "drop table orders cascade; drop type state; drop table events");
        let mut options = fixture.options(cluster);
        options.tables = vec!["public.orders".into(), "events".into()];
        let restored = fixture.restore(&snapshot, &options).unwrap();
        let named = |kind: &str, name: &str| {
            restored.databases[0].objects.iter().any(|o| o.kind == kind && o.name == name)
        };
        assert!(restored.roles.is_none() && !restored.databases[0].created);
        assert!(named("type", "state") && named("index", "orders_state"), "{restored:#?}");
        assert!(named("trigger", "orders orders_touch") && named("table", "events_2026"));
        assert!(!named("table", "customers") && !named("view", "paid"), "{restored:#?}");
        assert!(restored.notes.iter().any(|note| note.contains("type public.state comes with it")));
        assert_eq!(rows(cluster, "shop"), before);
        let next = cluster.rows("shop", "insert into orders (customer) values (1) returning id");
        assert_eq!(next[0][0].as_deref(), Some("5001"), "the sequence goes on");

        // Into another database, without what it refers to.
        cluster.sql("create database other");
        options.into = format!("{} dbname=other", server(cluster));
        options.tables = vec!["orders".into()];
        let restored = fixture.restore(&snapshot, &options).unwrap();
        assert!(
            restored
                .notes
                .iter()
                .any(|note| note.contains("fk constraint") && note.contains("left out")),
            "{:?}",
            restored.notes
        );
        assert_eq!(
            cluster.rows("other", "select count(*) from orders")[0][0].as_deref(),
            Some("5000")
        );
        assert_eq!(rows(cluster, "other").len(), 1);

        // A schema, and one that is there.
        options.tables.clear();
        options.schemas = vec!["stock".into()];
        fixture.restore(&snapshot, &options).unwrap();
        assert_eq!(
            cluster.rows("other", "select count(*) from stock.items")[0][0].as_deref(),
            Some("100")
        );
        cluster.sql_in("other", "update stock.items set name = 'mine'");
        let error = fixture.restore(&snapshot, &options).unwrap_err();
        assert!(error.to_string().contains("table stock.items"), "{error}");
        assert_eq!(
            cluster.rows("other", "select distinct name from stock.items")[0][0].as_deref(),
            Some("mine")
        );
        options.overwrite = true;
        fixture.restore(&snapshot, &options).unwrap();
        assert_eq!(
            cluster.rows("other", "select name from stock.items where id = 7")[0][0].as_deref(),
            Some("item 7")
        );

        for (tables, schemas, word) in [
            (vec!["nothing"], vec![], "no table"),
            (vec![], vec!["nowhere"], "no schema"),
            (vec!["events_2025"], vec![], "events"),
        ] {
            options.overwrite = false;
            options.into = format!("{} dbname=postgres", server(cluster));
            options.tables = tables.into_iter().map(str::to_owned).collect();
            options.schemas = schemas.into_iter().map(str::to_owned).collect();
            match fixture.restore(&snapshot, &options) {
                Err(error) => assert!(error.to_string().contains(word), "{error}"),
                // A partition can be a table of its own.
                Ok(restored) => {
                    assert!(restored.notes.iter().any(|n| n.contains("left out")), "{restored:?}")
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_restored_is_said_before_anything_is_written() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    shop(&fixture.cluster);
    fixture.source.databases = vec!["shop".into()];
    let snapshot = fixture.backup();
    let other = Cluster::builder(&installation).start();
    let mut options = fixture.options(&other);
    options.databases = vec!["shop".into()];
    let error = fixture.restore(&snapshot, &options).unwrap_err();
    assert!(error.to_string().contains("no role app"), "{error}");
    assert!(error.hint().unwrap().contains("--no-owner"));
    assert!(other.rows("postgres", "select 1 from pg_database where datname = 'shop'").is_empty());

    options.owner = false;
    options.jobs = 2;
    let restored = fixture.restore(&snapshot, &options).unwrap();
    assert!(restored.databases[0].created && restored.roles.is_none());
    assert_eq!(rows(&other, "shop"), rows(&fixture.cluster, "shop"));

    // Roles alone, into the same server.
    options.databases.clear();
    options.roles = true;
    let restored = fixture.restore(&snapshot, &options).unwrap();
    assert_eq!(restored.roles.unwrap().created, ["app", "readers"]);
    assert!(restored.databases.is_empty());

    options.roles = false;
    options.databases = vec!["nowhere".into()];
    let error = fixture.restore(&snapshot, &options).unwrap_err();
    assert!(error.to_string().contains("no database \"nowhere\""), "{error}");

    // An older server is refused.
    if let Some(older) =
        versions().iter().find(|one| one.major >= 13 && one.major < installation.major)
    {
        let older = Cluster::builder(older).start();
        let options = fixture.options(&older);
        let error = fixture.restore(&snapshot, &options).unwrap_err();
        assert_eq!(error.kind(), PostgresErrorKind::Unsupported, "{error}");
    } else {
        skipped("no older PostgreSQL is installed");
    }
}

#[test]
fn a_database_that_cannot_be_filled_is_removed_again() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create database bad");
    // A check that holds no more when it is restored: it reads another table that is empty then.
    cluster.sql_in(
        "bad",
        "create table limits (n int); insert into limits values (100);
         create function allowed(int) returns boolean language sql as
            'select coalesce($1 <= (select max(n) from public.limits), false)';
         create table a_checked (n int check (allowed(n))); insert into a_checked values (7);",
    );
    fixture.source.databases = vec!["bad".into()];
    let snapshot = fixture.backup();
    let cluster = &fixture.cluster;
    cluster.sql("drop database bad");
    let mut options = fixture.options(cluster);
    options.jobs = 1;
    options.databases = vec!["bad".into()];
    let error = fixture.restore(&snapshot, &options).unwrap_err();
    assert!(error.to_string().contains("a_checked"), "{error}");
    assert!(error.hint().unwrap().contains("removed again"), "{error:?}");
    assert!(cluster.rows("postgres", "select 1 from pg_database where datname = 'bad'").is_empty());
    // Into one that was there, nothing is left.
    cluster.sql("create database here");
    options.into = format!("{} dbname=here", server(cluster));
    let error = fixture.restore(&snapshot, &options).unwrap_err();
    assert!(error.hint().unwrap().contains("one transaction"), "{error:?}");
    assert_eq!(rows(cluster, "here"), BTreeMap::new());
}

#[test]
fn one_database_that_cannot_be_dumped_costs_the_others_nothing() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create role weak login");
    for name in ["open", "shut"] {
        cluster.sql(&format!("create database {name}"));
        cluster.sql_in(name, "create table t as select n from generate_series(1, 10000) n");
    }
    cluster.sql_in("open", "grant select on t to weak");
    fixture.source.connection = fixture.source.connection.replace("user=postgres", "user=weak");
    fixture.source.databases = vec!["open".into(), "shut".into()];
    let error = fixture.try_backup().unwrap_err();
    assert!(error.hint().unwrap().contains("role-passwords"), "{error}");
    let items = check(&fixture.source);
    assert!(items.iter().any(|item| item.name == "roles" && !item.ok), "{items:?}");
    fixture.source.role_passwords = false;
    let (snapshot, _) = fixture.try_backup().unwrap();
    fixture.spool_is_empty();
    assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
    assert!(snapshot.problems[0].what.contains("permission denied"), "{:?}", snapshot.problems);
    assert_eq!(fixture.contents(&snapshot).databases(), ["open"]);
    let paths = fixture.paths(&snapshot);
    assert!(paths.iter().any(|path| path == "databases/open/data/public/t.copy"));
    assert!(!paths.iter().any(|path| path.starts_with("databases/shut")), "{paths:?}");

    // None at all is a failure, not an empty snapshot.
    fixture.source.databases = vec!["shut".into()];
    let error = fixture.try_backup().unwrap_err();
    assert!(error.hint().unwrap().contains("pg_read_all_data"), "{error}");
    assert_eq!(fixture.repo.snapshots().unwrap().len(), 1);
    fixture.source.databases = vec!["nowhere".into()];
    assert_eq!(fixture.try_backup().unwrap_err().kind(), PostgresErrorKind::Usage);
}

#[test]
fn a_lock_that_somebody_holds_ends_in_an_error_that_says_so() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    fixture.cluster.sql("create table t (n int)");
    fixture.source.databases = vec!["postgres".into()];
    fixture.source.lock_timeout = Duration::from_millis(300);
    let mut holder = fixture.cluster.connect();
    holder.batch_execute("begin; lock table t in access exclusive mode").unwrap();
    let error = fixture.try_backup().unwrap_err();
    assert!(error.to_string().contains("lock"), "{error}");
    fixture.spool_is_empty();
    holder.batch_execute("commit").unwrap();
    fixture.backup();
}

#[test]
fn a_database_larger_than_the_spool_passes_through_it() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    // Rows that nothing can make smaller.
    for table in ["one", "two", "three"] {
        fixture.cluster.sql(&format!(
            "create table {table} as select n, (select string_agg(md5(n::text || k), '') \
             from generate_series(1, 16) k) as filler from generate_series(1, 170000) n"
        ));
    }
    fixture.source.databases = vec!["postgres".into()];
    // Less than is dumped, and the least that two workers may have.
    fixture.source.spool_limit = 1;
    let spool = fixture.folder.path().join("spool");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let mut most = 0;
        while stopped
            .recv_timeout(Duration::from_millis(5))
            .is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            most = most.max(used(&spool));
        }
        most
    });
    let snapshot = fixture.backup();
    drop(stop);
    let most = watch.join().unwrap();
    assert!(snapshot.stats.bytes > 240 << 20, "{:?}", snapshot.stats);
    eprintln!("{} MiB dumped, {} MiB in the spool at most", snapshot.stats.bytes >> 20, most >> 20);
    // Three times 64 MiB, and what was written until it was noticed.
    assert!(most < 230 << 20, "{} MiB", most >> 20);
    let before = rows(&fixture.cluster, "postgres");
    fixture.cluster.sql("create database copy");
    let mut options = fixture.options(&fixture.cluster);
    options.into = format!("{} dbname=copy", server(&fixture.cluster));
    fixture.restore(&snapshot, &options).unwrap();
    assert_eq!(rows(&fixture.cluster, "copy"), before);
}

/// What a folder takes on its disk. Bytes.
fn used(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => used(&entry.path()),
            Ok(about) => about.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn what_did_not_change_is_not_stored_again() {
    let Some(installation) = complete().pop() else { skip!("no PostgreSQL with pg_dump") };
    let mut fixture = Fixture::new(&installation);
    fixture.cluster.sql(
        "create table log as select n, md5(n::text) || md5((n + 1)::text) as line \
         from generate_series(1, 400000) n",
    );
    fixture.source.databases = vec!["postgres".into()];
    let first = fixture.backup().stats;
    let again = fixture.backup().stats;
    assert!(again.new_bytes < first.new_bytes / 100, "{again:?} after {first:?}");
    fixture.cluster.sql(
        "insert into log select n, md5(n::text) || md5((n + 1)::text) \
         from generate_series(400001, 404000) n",
    );
    let grown = fixture.backup().stats;
    fixture.cluster.sql("update log set line = md5(line) || md5(line) where n % 100 = 7");
    let updated = fixture.backup().stats;
    let share =
        |it: backstay_repo::SnapshotStats| it.stored_bytes as f64 / first.stored_bytes as f64;
    eprintln!(
        "first {} KiB stored; unchanged {:.2} %, 1 % appended {:.2} %, 1 % updated everywhere {:.2} %",
        first.stored_bytes >> 10,
        share(again) * 100.0,
        share(grown) * 100.0,
        share(updated) * 100.0
    );
    assert!(share(grown) < 0.15, "{grown:?}");
}
