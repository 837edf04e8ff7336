use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const CATALOG: u32 = 202_209_061;

struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let tree = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["base", "global", "pg_tblspc", "pg_wal/archive_status", "base/5", "pg_xact"] {
            tree.directory(name);
        }
        tree.file("global/pg_control", 8192);
        tree.file("PG_VERSION", 3);
        tree
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("pgdata")
    }

    fn directory(&self, path: &str) -> PathBuf {
        let path = self.root().join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, path: &str, size: usize) {
        let path = self.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![1; size]).unwrap();
    }

    fn list(&self) -> Listing {
        list(&self.root(), 15, CATALOG).unwrap()
    }

    fn paths(&self) -> Vec<String> {
        paths(&self.list())
    }
}

fn paths(listing: &Listing) -> Vec<String> {
    listing.items.iter().map(|item| String::from_utf8(item.path.clone()).unwrap()).collect()
}

#[test]
fn what_means_nothing_later_is_an_empty_directory() {
    let tree = Tree::new();
    for name in EMPTIED {
        tree.file(&format!("{name}/something"), 10);
    }
    tree.file("pg_wal/000000010000000000000001", 100);
    let paths = tree.paths();
    for name in EMPTIED {
        assert!(paths.contains(&format!("data/{name}")), "{name}");
    }
    assert!(paths.contains(&"data/pg_wal/archive_status".to_owned()));
    assert!(!paths.iter().any(|path| path.contains("something") || path.contains("00000001")));
}

#[test]
fn version_17_keeps_a_place_for_its_summaries() {
    let tree = Tree::new();
    let listing = list(&tree.root(), 17, CATALOG).unwrap();
    assert!(paths(&listing).contains(&"data/pg_wal/summaries".to_owned()));
    assert!(!tree.paths().contains(&"data/pg_wal/summaries".to_owned()));
}

#[test]
fn pg_wal_on_another_disk_becomes_a_directory() {
    let tree = Tree::new();
    fs::remove_dir_all(tree.root().join("pg_wal")).unwrap();
    let elsewhere = tree.folder.path().join("waldisk");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("000000010000000000000001"), "x").unwrap();
    symlink(&elsewhere, tree.root().join("pg_wal")).unwrap();
    let listing = tree.list();
    let item = listing.items.iter().find(|item| item.path == b"data/pg_wal").unwrap();
    assert_eq!(item.what, What::Directory);
    assert!(listing.warnings.is_empty(), "{:?}", listing.warnings);
    assert!(!paths(&listing).iter().any(|path| path.contains("00000001")));
}

#[test]
fn names_are_left_out_at_their_own_depth_only() {
    let tree = Tree::new();
    for name in LEFT_OUT {
        tree.file(name, 1);
        tree.file(&format!("extension_data/{name}"), 1);
    }
    for name in EMPTIED {
        tree.file(&format!("extension_data/{name}/inside"), 1);
    }
    tree.file("log/postgresql.log", 5);
    let paths = tree.paths();
    for name in LEFT_OUT {
        assert!(!paths.contains(&format!("data/{name}")), "{name}");
        assert!(paths.contains(&format!("data/extension_data/{name}")), "{name}");
    }
    for name in EMPTIED {
        assert!(paths.contains(&format!("data/extension_data/{name}/inside")), "{name}");
    }
    assert!(paths.contains(&"data/log/postgresql.log".to_owned()));
}

#[test]
fn caches_and_temporary_files_are_left_out() {
    let tree = Tree::new();
    for path in [
        "base/5/pg_internal.init",
        "base/5/pg_internal.init.4711",
        "global/pg_internal.init",
        "base/pgsql_tmp/pgsql_tmp12.0",
        "base/pgsql_tmp/pgsql_tmp12.0.sharedfileset/o1",
        "base/5/pgsql_tmp9.1",
        "base/5/t3_16400",
        "base/5/t3_16400_fsm",
        "base/5/t3_16400.1",
        "base/5/t12_16400_vm.2",
    ] {
        tree.file(path, 8192);
    }
    tree.file("base/5/t3_sixteen", 10);
    tree.file("base/5/pg_filenode.map", 524);
    let paths: Vec<_> =
        tree.paths().into_iter().filter(|path| path.starts_with("data/base/")).collect();
    assert_eq!(paths, ["data/base/5", "data/base/5/pg_filenode.map", "data/base/5/t3_sixteen"]);
}

#[test]
fn of_an_unlogged_relation_only_the_initial_fork_is_kept() {
    let tree = Tree::new();
    for name in ["16385", "16385.1", "16385_fsm", "16385_vm", "16385_init", "16386", "163850"] {
        tree.file(&format!("base/5/{name}"), 8192);
    }
    // The same number in another database is another relation.
    tree.file("base/6/16385", 8192);
    let paths: Vec<_> =
        tree.paths().into_iter().filter(|path| path.starts_with("data/base/")).collect();
    assert_eq!(
        paths,
        [
            "data/base/5",
            "data/base/5/163850",
            "data/base/5/16385_init",
            "data/base/5/16386",
            "data/base/6",
            "data/base/6/16385"
        ]
    );
}

#[test]
fn relations_know_their_segment_and_others_are_plain_files() {
    let tree = Tree::new();
    tree.file("base/5/16385.7", 16384);
    tree.file("base/5/PG_VERSION", 3);
    tree.file("global/1262", 8192);
    tree.file("pg_xact/0000", 8192);
    let listing = tree.list();
    let what = |path: &[u8]| {
        listing.items.iter().find(|item| item.path == path).map(|item| item.what.clone()).unwrap()
    };
    assert_eq!(what(b"data/base/5/16385.7"), What::Relation { size: 16384, segment: 7 });
    assert_eq!(what(b"data/base/5/PG_VERSION"), What::File { size: 3 });
    assert_eq!(what(b"data/global/1262"), What::Relation { size: 8192, segment: 0 });
    assert_eq!(what(b"data/pg_xact/0000"), What::File { size: 8192 });
    assert_eq!(what(b"data/global/pg_control"), What::Control);
    assert_eq!(listing.bytes, 16384 + 3 + 8192 + 8192 + 3);
}

#[test]
fn tablespaces_are_followed_into_their_version_only() {
    let tree = Tree::new();
    let space = tree.folder.path().join("space");
    fs::create_dir_all(space.join("PG_15_202209061/5")).unwrap();
    fs::create_dir_all(space.join("PG_14_202107181/5")).unwrap();
    fs::write(space.join("PG_15_202209061/5/16390"), vec![0; 8192]).unwrap();
    fs::write(space.join("PG_15_202209061/5/t1_16391"), vec![0; 8192]).unwrap();
    fs::write(space.join("PG_14_202107181/5/1"), "old").unwrap();
    symlink(&space, tree.root().join("pg_tblspc/16389")).unwrap();
    let listing = tree.list();
    let paths: Vec<_> =
        paths(&listing).into_iter().filter(|path| path.starts_with("tablespaces")).collect();
    assert_eq!(
        paths,
        [
            "tablespaces/16389",
            "tablespaces/16389/PG_15_202209061",
            "tablespaces/16389/PG_15_202209061/5",
            "tablespaces/16389/PG_15_202209061/5/16390"
        ]
    );
    assert!(listing.warnings.is_empty());
    assert!(!tree.paths().contains(&"data/pg_tblspc/16389".to_owned()));
}

#[test]
fn a_tablespace_whose_directory_is_gone_is_a_problem() {
    let tree = Tree::new();
    symlink("/nonexistent/space", tree.root().join("pg_tblspc/16389")).unwrap();
    let listing = tree.list();
    assert_eq!(listing.problems.len(), 1);
    assert_eq!(listing.problems[0].path, "tablespaces/16389");
}

#[test]
fn other_links_are_stored_as_links_and_said() {
    let tree = Tree::new();
    symlink("/etc/postgresql/pg_hba.conf", tree.root().join("pg_hba.conf")).unwrap();
    let listing = tree.list();
    let item = listing.items.iter().find(|item| item.path == b"data/pg_hba.conf").unwrap();
    assert_eq!(item.what, What::Symlink { target: b"/etc/postgresql/pg_hba.conf".to_vec() });
    assert_eq!(listing.warnings.len(), 1);
}

#[test]
fn a_link_in_the_place_of_the_data_itself_is_refused() {
    let tree = Tree::new();
    let elsewhere = tree.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, tree.root().join("base/16384")).unwrap();
    assert!(list(&tree.root(), 15, CATALOG).is_err());
    fs::remove_file(tree.root().join("base/16384")).unwrap();
    fs::remove_dir_all(tree.root().join("pg_xact")).unwrap();
    symlink(&elsewhere, tree.root().join("pg_xact")).unwrap();
    let error = list(&tree.root(), 15, CATALOG).unwrap_err();
    assert!(error.to_string().contains("pg_xact"), "{error}");
}

#[test]
fn sockets_are_a_warning_but_for_the_servers_own() {
    let tree = Tree::new();
    let bind = |name: &str| std::os::unix::net::UnixListener::bind(tree.root().join(name)).unwrap();
    let _sockets = [bind(".s.PGSQL.5432"), bind("pooler.sock")];
    tree.file(".s.PGSQL.5432.lock", 60);
    let listing = tree.list();
    assert_eq!(listing.warnings.len(), 1, "{:?}", listing.warnings);
    assert!(listing.warnings[0].contains("pooler.sock is a socket"), "{:?}", listing.warnings);
    let stored = paths(&listing);
    assert!(!stored.iter().any(|path| path.contains("PGSQL") || path.contains("pooler")));
}

#[test]
fn modes_and_times_are_recorded() {
    let tree = Tree::new();
    fs::set_permissions(tree.root(), fs::Permissions::from_mode(0o750)).unwrap();
    let listing = tree.list();
    assert_eq!(listing.items[0].path, b"data");
    assert_eq!(listing.items[0].meta.mode, 0o750);
    assert!(listing.items[0].meta.mtime.seconds > 1_600_000_000);
    // Parents come before what is in them.
    let paths = paths(&listing);
    for (at, path) in paths.iter().enumerate() {
        if let Some((parent, _)) = path.rsplit_once('/') {
            assert!(
                parent == "tablespaces" || paths[..at].iter().any(|p| p == parent),
                "{path} before {parent}"
            );
        }
    }
}

#[test]
fn names_of_relations() {
    let name = |text: &str| RelationName::parse(text.as_bytes());
    assert_eq!(name("1259"), Some(RelationName { number: 1259, fork: Fork::Main, segment: 0 }));
    assert_eq!(
        name("4294967295_vm.12"),
        Some(RelationName { number: u32::MAX, fork: Fork::Visibility, segment: 12 })
    );
    for wrong in
        ["", "x", "1259_", "1259_xyz", "1259.", "1259.0", "1259.x", "4294967296", "01", "+1", "1 "]
    {
        assert_eq!(name(wrong), None, "{wrong}");
    }
}

#[test]
fn a_tablespace_whose_disk_is_not_mounted_is_an_error() {
    let tree = Tree::new();
    let elsewhere = tree.folder.path().join("mountpoint");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, tree.root().join("pg_tblspc/16999")).unwrap();
    let error = list(&tree.root(), 15, CATALOG).unwrap_err();
    assert_eq!(error.kind(), PostgresErrorKind::Mismatch);
    assert!(error.to_string().contains("16999"), "{error}");
    assert!(error.hint().unwrap().contains("mounted"), "{error:?}");
    fs::create_dir(elsewhere.join(format!("PG_15_{CATALOG}"))).unwrap();
    assert!(tree.paths().contains(&"data/pg_tblspc".to_owned()));
}

#[test]
fn a_link_in_place_of_a_part_of_the_cluster_is_a_problem() {
    let tree = Tree::new();
    let elsewhere = tree.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("file"), "x").unwrap();
    tree.directory("pg_multixact");
    tree.directory("log");
    let parts = ["base/5/16400", "global/1262", "pg_multixact/members", "pg_xact/0000"];
    for path in parts.iter().chain(&["log/postgresql.log"]) {
        symlink(elsewhere.join("file"), tree.root().join(path)).unwrap();
    }
    let listing = tree.list();
    let mut found: Vec<_> = listing.problems.iter().map(|p| p.path.as_str()).collect();
    found.sort_unstable();
    assert_eq!(found, parts.map(|path| format!("data/{path}")));
}
