//! What people do to a database.

use backstay_testing::postgres::Cluster;

use crate::lots::Lots;

/// Makes what every world begins with.
pub fn begin(cluster: &Cluster) {
    cluster.sql(
        "create table beat (n int);
         create table t0 (id int primary key, v text, n numeric default 0);
         create table t1 (id int primary key, v text, n numeric default 0);
         insert into t0 select g, md5(g::text), g from generate_series(1, 2000) g;
         create index on t0 (md5(v));",
    );
}

/// Does one thing, and says what.
pub fn once(cluster: &Cluster, lots: &mut Lots, with_space: bool) -> String {
    let table = format!("t{}", lots.below(4));
    let rows = 1 + lots.below(3000);
    let (from, salt) = (lots.below(100_000), lots.below(1000));
    let third = lots.below(3);
    let ensure = format!(
        "create table if not exists {table} (id int primary key, v text, n numeric default 0);"
    );
    let statements: Vec<String> = match lots.below(18) {
        0..=3 => vec![
            format!(
                "insert into {table} select g, md5((g + {salt})::text), g from \
             generate_series({from}, {from} + {rows}) g on conflict (id) do update set n = t.n + 1"
            )
            .replace(&format!("into {table} select"), &format!("into {table} as t select")),
        ],
        4..=5 => vec![format!(
            "update {table} set v = md5(v || {salt}), n = n + 1 where id % 3 = {third}"
        )],
        6 => vec![format!("delete from {table} where id % 3 = {third}")],
        7 => vec![format!("truncate {table}")],
        8 => vec![format!("drop table {table}")],
        9 => vec![format!("vacuum full {table}")],
        10 => vec![format!("vacuum freeze {table}"), "checkpoint".to_owned()],
        11 => vec![format!("create index on {table} (n, id)"), format!("reindex table {table}")],
        12 => vec![format!(
            "insert into {table} select 200000 + g, string_agg(md5((g * i + {salt})::text), ''), 0 \
             from generate_series(1, 20) g, generate_series(1, 400) i group by g \
             on conflict do nothing"
        )],
        13 => vec![format!(
            "alter table {table} add column if not exists c{third} int default {salt}"
        )],
        // What is rolled back leaves pages that no table shows.
        14 => vec![format!(
            "begin; delete from {table}; savepoint s; insert into {table} select g, 'gone', 0 from \
             generate_series(1, {rows}) g; rollback to s; rollback"
        )],
        15 => {
            let name = format!("d{}", lots.below(2));
            if cluster.value(&format!("select count(*) from pg_database where datname = '{name}'"))
                == "0"
            {
                cluster.sql(&format!("create database {name}"));
                cluster.sql_in(
                    &name,
                    &format!(
                        "create table own as select g id, md5((g + {salt})::text) v from \
                         generate_series(1, {rows}) g"
                    ),
                );
                return format!("create database {name}");
            }
            if lots.once_in(2) {
                cluster.sql_in(&name, &format!("update own set v = md5(v) where id % 3 = {third}"));
                return format!("update in {name}");
            }
            vec![format!("drop database {name}")]
        }
        16 if with_space => {
            let to = if lots.once_in(2) { "space" } else { "pg_default" };
            vec![format!("alter table {table} set tablespace {to}")]
        }
        _ => vec![format!("cluster {table} using {table}_pkey")],
    };
    cluster.sql(&ensure);
    for statement in &statements {
        cluster.sql(statement);
    }
    let said = statements.join("; ");
    said.chars().take(90).collect()
}
