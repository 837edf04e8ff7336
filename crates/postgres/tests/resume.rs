//! A backup that was killed, and the one after it: what the first had sent is not sent again.
#![allow(clippy::unwrap_used)] // all of this is tests

mod common;

use std::os::unix::process::ExitStatusExt as _;

use backstay_postgres::wal::RecoveryTarget;
use backstay_testing::postgres::version;
use backstay_testing::{own, skip};
use common::Fixture;

/// Each about as large as a pack. Bytes.
const FILE: usize = 32 << 20;
const FILES: u64 = 10;

/// Bytes that do not shrink.
fn noise(mut state: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE);
    while bytes.len() < FILE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn what_a_killed_backup_had_sent_is_read_again_and_not_sent_again() {
    let Some(installation) = version(15) else { skip!("PostgreSQL 15 is not installed") };
    let fixture = Fixture::new(&installation);
    let cluster = &fixture.cluster;
    cluster.sql("create table t as select generate_series(1, 1000) i");
    let folder = cluster.data().join("extra");
    std::fs::create_dir(&folder).unwrap();
    own(&folder);
    for number in 0..FILES {
        cluster.write(&format!("extra/{number}"), noise(number + 1));
    }
    let root = std::path::Path::new("/");
    let status = fixture.elsewhere("backup", "pack-created:9", "", root);
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(fixture.repo.snapshots().unwrap().is_empty());

    let made = fixture.backup();
    let all = FILES * FILE as u64;
    let stats = &made.snapshot.stats;
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("read {}, new {} of {all}\n", stats.bytes_read, stats.new_bytes),
    );
    assert!(stats.bytes_read >= all, "only reading tells whether it is the same");
    // The first four packs were listed at least.
    assert!(stats.new_bytes <= all - 3 * FILE as u64, "{stats:?}");
    let options = fixture.restoring("restored", RecoveryTarget::Immediate);
    fixture.restore(&made.snapshot, &options);
    for number in 0..FILES {
        let content = std::fs::read(options.to.join(format!("extra/{number}"))).unwrap();
        assert!(content == noise(number + 1), "{number}");
    }
    assert_eq!(fixture.promoted(&options).value("select count(*) from t"), "1000");
}
