//! One table, and one schema, of a backup into a running cluster.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::path::{Path, PathBuf};

use backstay_postgres::wal::RecoveryTarget;
use backstay_postgres::{
    Backup, ExtractOptions, Extracted, Part, PostgresError, PostgresErrorKind, extract,
};
use backstay_testing::postgres::{Installation, versions};
use backstay_testing::skip;
use common::Fixture;

/// Those with `pg_dump` and `psql`.
fn usable() -> Vec<Installation> {
    let has = |i: &Installation, name: &str| i.program(name).is_some();
    versions()
        .into_iter()
        .filter(|i| (13..=18).contains(&i.major) && has(i, "pg_dump") && has(i, "psql"))
        .collect()
}

struct Shop {
    fixture: Fixture,
    made: Backup,
    sandbox: PathBuf,
}

impl Shop {
    /// A cluster with a table whose rows were lost after the restore point `before`.
    fn new(installation: &Installation) -> Self {
        let fixture = Fixture::new(installation);
        let cluster = &fixture.cluster;
        for statement in
            ["create database shop", "create table elsewhere as select generate_series(1, 50000) i"]
        {
            cluster.sql(statement);
        }
        let it = |statement: &str| run(&fixture, statement);
        it("create schema sales");
        it("create table customers (id int primary key)");
        it("insert into customers select generate_series(1, 10)");
        it("create function noise() returns trigger language plpgsql as 'begin return new; end'");
        it("create table sales.\"Order Lines\" (id serial primary key, customer int references \
            customers, note text default 'it''s', check (id > 0))");
        it("create index by_note on sales.\"Order Lines\" (note)");
        it("create trigger loud before insert on sales.\"Order Lines\" for each row execute \
            function noise()");
        it("create table sales.parts (id int, at date) partition by range (at)");
        it(
            "create table sales.parts_1 partition of sales.parts for values from ('2026-01-01') to \
            ('2026-02-01')",
        );
        it(
            "create table sales.parts_2 partition of sales.parts for values from ('2026-02-01') to \
            ('2026-03-01')",
        );
        let made = fixture.backup();
        it("insert into sales.\"Order Lines\" (customer) select 1 + i % 10 from \
            generate_series(1, 1000) i");
        it("insert into sales.parts select i, date '2026-01-01' + i % 50 from \
            generate_series(1, 500) i");
        it("select pg_create_restore_point('before')");
        it("delete from sales.\"Order Lines\" where id > 3");
        it("truncate sales.parts");
        it(
            "delete from customers where id > 5 and not exists (select from sales.\"Order Lines\" l \
            where l.customer = customers.id)",
        );
        fixture.archived(cluster);
        let sandbox = fixture.folder.path().join("sandbox");
        Self { fixture, made, sandbox }
    }

    fn options(&self, part: (Option<String>, Part)) -> ExtractOptions {
        let target = RecoveryTarget::Name("before".to_owned());
        let cluster = &self.fixture.cluster;
        ExtractOptions {
            restore: self.fixture.restoring("unused", target),
            directory: Some(self.sandbox.clone()),
            bin_dir: Some(self.fixture.installation.bin.clone()),
            part: part.1,
            database: part.0,
            into: format!(
                "host={} port={} user=postgres dbname=shop",
                cluster.socket().display(),
                cluster.port()
            ),
            name: None,
        }
    }

    fn extract(&self, options: &ExtractOptions) -> Extracted {
        let done = extract(&self.fixture.repo, &self.made.snapshot, options)
            .unwrap_or_else(|error| panic!("{error} {:?}", error.hint()));
        assert!(!self.sandbox.exists(), "the sandbox is gone");
        assert!(done.notes.is_empty(), "{:?}", done.notes);
        done
    }

    fn refused(&self, options: &ExtractOptions) -> PostgresError {
        let before = self.tables();
        let error = extract(&self.fixture.repo, &self.made.snapshot, options).unwrap_err();
        assert!(!self.sandbox.exists(), "the sandbox is gone");
        assert_eq!(self.tables(), before);
        error
    }

    fn value(&self, query: &str) -> String {
        value(&self.fixture, query)
    }

    fn tables(&self) -> String {
        self.value(
            "select string_agg(schemaname || '.' || tablename, ' ' order by 1) from pg_tables \
             where schemaname not in ('pg_catalog', 'information_schema')",
        )
    }
}

fn connect(fixture: &Fixture) -> postgres::Client {
    let connection = fixture.cluster.connection_string().replace("dbname=postgres", "dbname=shop");
    postgres::Client::connect(&connection, postgres::NoTls).unwrap()
}

fn run(fixture: &Fixture, statement: &str) {
    connect(fixture)
        .batch_execute(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

fn value(fixture: &Fixture, query: &str) -> String {
    let row = connect(fixture).query_one(query, &[]).unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

#[test]
fn a_table_comes_back_beside_the_one_that_lost_its_rows() {
    let all = usable();
    if all.is_empty() {
        skip!("no PostgreSQL with pg_dump and psql is installed");
    }
    for installation in &all {
        let shop = Shop::new(installation);
        let lines = || Part::table("shop.sales.\"Order Lines\"").unwrap();
        let done = shop.extract(&shop.options(lines()));
        assert_eq!(done.tables.len(), 1);
        assert_eq!(done.tables[0].name, "\"restored\".\"Order Lines\"");
        assert_eq!(done.tables[0].rows, 1000);
        let count = |table: &str| shop.value(&format!("select count(*)::text from {table}"));
        assert_eq!(count("restored.\"Order Lines\""), "1000");
        assert_eq!(count("sales.\"Order Lines\""), "3", "the table that is there was left alone");
        assert_eq!(
            shop.value(
                "select string_agg(indexname, ' ' order by 1) from pg_indexes where \
                        schemaname = 'restored'"
            ),
            "Order Lines_pkey by_note"
        );
        // It is a table of its own: its sequence came with it, and its checks.
        run(&shop.fixture, "insert into restored.\"Order Lines\" (customer) values (99)");
        // The log has a sequence up to 32 numbers ahead, and recovery goes on there.
        let next = shop.value("select max(id)::text from restored.\"Order Lines\"");
        assert!((1001..=1033).contains(&next.parse::<u32>().unwrap()), "{next}");
        assert_eq!(
            count("pg_constraint where contype = 'c' and connamespace = 'restored'::regnamespace"),
            "1"
        );
        // Rows that refer to customers who are gone would not load with their foreign key.
        let left = done.statements.join("\n");
        assert!(
            left.contains("FOREIGN KEY (customer) REFERENCES") && left.contains("loud"),
            "{left}"
        );

        // Again, under a name in the schema that is there: nothing that it brings is in the way.
        let mut options = shop.options(lines());
        options.name = Some("old_lines".to_owned());
        let done = shop.extract(&options);
        assert_eq!(done.tables[0].name, "\"sales\".\"old_lines\"");
        assert_eq!(count("sales.old_lines"), "1000");
        assert_eq!(count("sales.\"Order Lines\""), "3");

        // All of a partitioned table, into a schema that is not there yet.
        let mut options = shop.options(Part::table("sales.parts").unwrap());
        options.name = Some("rescue.parts".to_owned());
        let done = shop.extract(&options);
        assert_eq!((done.tables.len(), done.tables[0].rows), (1, 500));
        assert_eq!(count("rescue.parts"), "500");
        assert_eq!(count("pg_inherits where inhparent = 'rescue.parts'::regclass"), "2");
        // One partition of it, as a table.
        let done = shop.extract(&shop.options(Part::table("sales.parts_1").unwrap()));
        assert_eq!(done.tables[0].name, "\"restored_2\".\"parts_1\"");
        assert_eq!(count("restored_2.parts_1"), done.tables[0].rows.to_string());

        let done = shop.extract(&shop.options(Part::schema("sales").unwrap()));
        let names: Vec<&str> = done.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(names, ["\"sales_restored\".\"Order Lines\"", "\"sales_restored\".\"parts\""]);
        assert_eq!(count("sales_restored.parts"), "500");
    }
}

#[test]
fn what_cannot_be_brought_over_changes_nothing() {
    let Some(installation) = usable().into_iter().next() else {
        skip!("no PostgreSQL with pg_dump and psql is installed")
    };
    let shop = Shop::new(&installation);
    let mut options = shop.options(Part::table("sales.\"Order Lines\"").unwrap());
    options.name = Some("\"Order Lines\"".to_owned());
    let error = shop.refused(&options);
    assert!(error.to_string().contains("already"), "{error}");
    assert_eq!(error.kind(), PostgresErrorKind::Usage);

    let error = shop.refused(&shop.options(Part::table("sales.lines").unwrap()));
    assert_eq!(error.kind(), PostgresErrorKind::Target, "{error}");
    assert!(error.hint().unwrap().contains("sales.\"Order Lines\""), "{:?}", error.hint());

    let error = shop.refused(&shop.options(Part::table("nowhere.sales.parts").unwrap()));
    assert!(error.to_string().contains("no database"), "{error}");

    let mut options = shop.options(Part::table("sales.parts").unwrap());
    options.into = options.into.replace("user=", "password=secret user=");
    let error = shop.refused(&options);
    assert!(!error.to_string().contains("secret"), "{error}");

    let mut options = shop.options(Part::table("sales.parts").unwrap());
    options.bin_dir = Some(Path::new("/nonexistent").to_owned());
    let error = shop.refused(&options);
    assert_eq!(error.kind(), PostgresErrorKind::Start, "{error}");

    // What the table needs is not there: all of it is rolled back.
    run(&shop.fixture, "create type sales.mood as enum ('good')");
    run(&shop.fixture, "create table sales.moods (mood sales.mood)");
    run(&shop.fixture, "select pg_create_restore_point('after')");
    shop.fixture.archived(&shop.fixture.cluster);
    run(&shop.fixture, "drop table sales.moods");
    run(&shop.fixture, "drop type sales.mood");
    let mut options = shop.options(Part::table("sales.moods").unwrap());
    options.restore.target = RecoveryTarget::Name("after".to_owned());
    let error = shop.refused(&options);
    assert!(error.to_string().contains("sales.mood"), "{error}");

    // A directory with something in it is nobody's sandbox.
    std::fs::create_dir(&shop.sandbox).unwrap();
    std::fs::write(shop.sandbox.join("letters"), "dear").unwrap();
    let options = shop.options(Part::table("sales.parts").unwrap());
    let error = extract(&shop.fixture.repo, &shop.made.snapshot, &options).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Usage, "{error}");
    assert_eq!(std::fs::read(shop.sandbox.join("letters")).unwrap(), b"dear");
}
