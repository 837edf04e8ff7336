//! Databases of a real server as dumps: backed up, looked at, and restored.

use backstay_testing::postgres::{Cluster, versions};
use backstay_testing::skip;

use crate::sandbox::Sandbox;

#[test]
fn a_dropped_table_comes_back_from_a_dump() {
    let Some(installation) = versions().into_iter().rfind(|one| one.has.contains("pg_dump")) else {
        skip!("no PostgreSQL with pg_dump is installed")
    };
    let cluster = Cluster::builder(&installation).start();
    cluster.sql("create database shop");
    cluster.sql_in(
        "shop",
        "create table customers (id int primary key, name text);
         create table orders (id int primary key, customer int references customers, total int);
         create view totals as select customer, sum(total) from orders group by 1;
         insert into customers values (1, 'one');
         insert into orders select n, 1, n from generate_series(1, 1000) n",
    );
    let it = Sandbox::new();
    let server =
        format!("host={} port={} user=postgres", cluster.socket().display(), cluster.port());
    it.configure(&format!(
        "repositories = [\"main\"]\n[sources.shop]\nkind = \"postgres-logical\"\n\
         connection = \"{server}\"\ndatabases = [\"shop\"]\nspool = \"spool\"\n\
         bin-directory = \"{}\"\n",
        installation.bin.display()
    ));
    it.tree();
    std::fs::create_dir(it.path("spool")).unwrap();
    it.good(&["-r", "main", "init"]);
    let checked = it.run(&["check", "shop"]);
    assert_eq!(checked.code, 0, "{checked}");
    it.good(&["backup", "shop"]);
    let shown = it.good(&["show", "shop"]);
    assert!(shown.stdout.contains("databases") && shown.stdout.contains("shop"), "{shown}");
    let rows = it.good(&["dump", "shop", "databases/shop/data/public/orders.copy"]);
    assert!(rows.stdout.starts_with("1\t1\t1\n"), "{rows}");
    let found = it.good(&["find", "orders.copy"]);
    assert!(found.stdout.contains("databases/shop/data/public/orders.copy"), "{found}");

    let catalogue = it.good(&["catalogue", "shop"]);
    assert!(catalogue.stdout.contains("public.orders"), "{catalogue}");
    let one = it.good(&["catalogue", "shop", "orders"]);
    assert!(one.stdout.contains("needs table public.customers (directly)"), "{one}");
    assert!(one.stdout.contains("is needed by view public.totals (directly)"), "{one}");
    let picture = it.good(&["catalogue", "shop", "--graph", "svg"]);
    assert!(picture.stdout.starts_with("<svg") && picture.stdout.contains("public.totals"));
    let dot = it.good(&["catalogue", "shop", "totals", "--graph", "dot"]);
    assert!(dot.stdout.starts_with("digraph"), "{dot}");
    let unknown = it.run(&["catalogue", "shop", "ordres"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("did you mean"), "{unknown}");

    cluster.sql_in(
        "shop",
        "alter table orders add note text; update orders set total = 7 where id = 7",
    );
    it.good(&["backup", "shop"]);
    let ids = it.snapshots();
    let drift = it.good(&["catalogue", &ids[0], "--drift", "shop"]);
    assert!(drift.stdout.contains("~ table public.orders"), "{drift}");
    assert!(drift.stdout.contains("column note: nothing → text"), "{drift}");
    let same = it.good(&["catalogue", "shop", "--drift", "shop"]);
    assert_eq!(same.stdout, "No difference.\n");
    let versions = it.json(&["catalogue", "shop", "--history", "public.orders"]);
    let versions = versions["databases"][0]["versions"].as_array().unwrap().clone();
    assert_eq!(versions.len(), 2, "{versions:?}");
    assert_eq!(versions[1]["change"], "changed");
    assert!(versions[1]["author"].is_null() && versions[1]["owner"] == "postgres");
    let files = it.good(&["diff", &ids[0], &ids[1], "databases/shop/data"]);
    assert!(files.stdout.contains("~ databases/shop/data/public/orders.copy"), "{files}");
    assert!(!files.stdout.contains("customers.copy"), "{files}");

    cluster.sql_in("shop", "drop table orders cascade");
    let taken = it.run(&["restore", "shop", "--into", &server, "--table", "customers"]);
    assert_eq!(taken.code, 1, "{taken}");
    assert!(taken.stderr.contains("--overwrite"), "{taken}");
    let back = it.good(&["restore", &ids[0], "--into", &server, "--table", "orders"]);
    assert!(back.stdout.contains("orders"), "{back}");
    let sum = cluster.rows("shop", "select count(*), sum(total) from orders");
    assert_eq!(sum[0], [Some("1000".to_owned()), Some("500500".to_owned())]);
    let whole =
        it.json(&["restore", "shop", "--into", &format!("{server} dbname=shop"), "--overwrite"]);
    assert_eq!(whole["databases"][0]["created"], false, "{whole}");
    assert_eq!(cluster.rows("shop", "select count(*) from totals")[0][0].as_deref(), Some("1"));

    for words in [
        &["restore", "data", "--into", "host=x"][..],
        &["restore", "shop", "--into", &server, "--to", "x"],
        &["restore", "shop", "--table", "orders", "--to", "x"],
        &["restore", "shop"],
        &["catalogue", "shop", "--graph", "png"],
    ] {
        let ran = it.run(words);
        assert!(matches!(ran.code, 1 | 2), "{ran}");
        assert!(ran.stderr.contains("hint"), "{ran}");
    }
    assert!(std::fs::read_dir(it.path("spool")).unwrap().next().is_none());
}

#[test]
fn a_killed_dump_leaves_nothing_that_counts() {
    let Some(installation) = versions().into_iter().rfind(|one| one.has.contains("pg_dump")) else {
        skip!("no PostgreSQL with pg_dump is installed")
    };
    let cluster = Cluster::builder(&installation).start();
    cluster.sql("create table t as select n, md5(n::text) from generate_series(1, 2000) n");
    let it = Sandbox::new();
    it.configure(&format!(
        "repositories = [\"main\"]\n[sources.db]\nkind = \"postgres-logical\"\n\
         connection = \"{}\"\ndatabases = [\"postgres\"]\nspool = \"spool\"\n\
         bin-directory = \"{}\"\n",
        cluster.connection_string(),
        installation.bin.display()
    ));
    it.tree();
    std::fs::create_dir(it.path("spool")).unwrap();
    it.good(&["-r", "main", "init"]);
    // It waits for this lock within pg_dump's or our own reading, whichever comes first.
    let mut holder = cluster.connect();
    holder.batch_execute("begin; lock table t in access exclusive mode").unwrap();
    let mut killed = it.command(&["backup", "db"]).spawn().unwrap();
    backstay_testing::wait_until("the dump waits for the lock", 60, || {
        cluster.value("select count(*) from pg_locks where not granted") != "0"
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    holder.batch_execute("commit").unwrap();
    assert!(it.snapshots().is_empty());
    it.good(&["backup", "db"]);
    assert_eq!(it.snapshots().len(), 1);
    let left: Vec<_> = std::fs::read_dir(it.path("spool")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    it.good(&["verify", "--level", "thorough"]);
}

/// A restore that died is seen: the database has another name until it is whole, and the next restore
/// takes its place. Nothing has the name of the database and half of its content.
#[test]
fn a_killed_restore_leaves_no_database_that_looks_whole() {
    let Some(installation) = versions().into_iter().rfind(|one| one.has.contains("pg_dump")) else {
        skip!("no PostgreSQL with pg_dump is installed")
    };
    let cluster = Cluster::builder(&installation).start();
    cluster.sql("create database shop connection limit 7");
    cluster.sql("alter database shop set work_mem = '7MB'");
    cluster.sql("comment on database shop is 'what is sold'");
    cluster.sql_in("shop", "create table t as select n from generate_series(1, 2000) n");
    let it = Sandbox::new();
    let server =
        format!("host={} port={} user=postgres", cluster.socket().display(), cluster.port());
    it.configure(&format!(
        "repositories = [\"main\"]\n[sources.shop]\nkind = \"postgres-logical\"\n\
         connection = \"{server}\"\ndatabases = [\"shop\"]\nspool = \"spool\"\n\
         bin-directory = \"{}\"\n",
        installation.bin.display()
    ));
    it.tree();
    std::fs::create_dir(it.path("spool")).unwrap();
    it.good(&["-r", "main", "init"]);
    it.good(&["backup", "shop"]);

    let named = |name: &str| {
        cluster.value(&format!("select count(*) from pg_database where datname = '{name}'")) == "1"
    };
    let restore = ["restore", "shop", "--into", &server];
    for failpoint in ["postgres-logical-created", "postgres-logical-filled"] {
        cluster.sql("drop database shop");
        let killed = it.command(&restore).env("BACKSTAY_FAILPOINT", failpoint).status().unwrap();
        assert!(!killed.success(), "{failpoint}");
        assert!(!named("shop") && named("shop.backstay-unfinished"), "{failpoint}");
        // Another restore says what lies there.
        let roles = it.good(&["restore", "shop", "--into", &server, "--roles"]);
        let said = format!("{}{}", roles.stdout, roles.stderr);
        assert!(said.contains("shop.backstay-unfinished is an unfinished restore"), "{roles}");
        {
            // Whoever is in it may be the one who fills it.
            let somebody = cluster.connect_to("shop.backstay-unfinished");
            let busy = it.run(&restore);
            assert_eq!(busy.code, 11, "{busy}");
            assert!(busy.stderr.contains("somebody is at work"), "{busy}");
            drop(somebody);
        }
        backstay_testing::wait_until("nobody is in it", 30, || {
            let there = "select count(*) from pg_stat_activity where datname like '%unfinished'";
            cluster.value(there) == "0"
        });
        let again = it.good(&restore);
        assert!(format!("{}{}", again.stdout, again.stderr).contains("was replaced"), "{again}");
        assert!(named("shop") && !named("shop.backstay-unfinished"), "{failpoint}");
        let count = cluster.rows("shop", "select count(*) from t");
        assert_eq!(count[0][0].as_deref(), Some("2000"));
        let had = cluster.value(
            "select datconnlimit || ' ' || shobj_description(oid, 'pg_database') || ' ' || \
             (select setconfig::text from pg_db_role_setting where setdatabase = d.oid) \
             from pg_database d where datname = 'shop'",
        );
        assert_eq!(had, "7 what is sold {work_mem=7MB}");
    }

    let secret = format!("{server} password=sesame");
    let refused = it.run(&["restore", "shop", "--into", &secret]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("has a password in it"), "{refused}");
    assert!(!refused.stderr.contains("sesame"), "{refused}");
}
