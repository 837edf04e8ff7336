//! An archive in memory whose store can be made to fail, and a `pg_wal` beside it.
#![allow(clippy::unwrap_used)] // all of this is tests
#![allow(dead_code)] // each test binary uses a part of it

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_postgres::wal::{
    self, FetchOptions, FetchOutcome, PushOptions, SegmentName, SegmentSize,
};
use backstay_repo::{InitOptions, Repository, Secret};
use backstay_store::{Environment, Faulty, Memory, Store};

pub const SYSTEM: u64 = 7_000_000_000_000_000_001;

/// A repository, and the handle by which its store is made to fail.
pub struct Place {
    pub repositories: Vec<Repository>,
    pub faulty: Faulty,
    pub folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let env = Environment::seeded(5);
        let faulty = Faulty::new(Memory::new(), env.clone(), 5);
        let secret = Secret::key_file([3; 32]).unwrap();
        let store = Store::new(faulty.clone());
        let repository = Repository::init(store, env, &secret, InitOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("pg_wal/archive_status")).unwrap();
        Self { repositories: vec![repository], faulty, folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("pg_wal").join(name)
    }

    /// A file that PostgreSQL has finished.
    pub fn ready(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        fs::write(self.path(&format!("archive_status/{name}.ready")), "").unwrap();
        self.path(name)
    }

    pub fn push(&self, path: &Path) -> backstay_postgres::Result<wal::PushReport> {
        self.push_ahead(path, 0)
    }

    pub fn push_ahead(
        &self,
        path: &Path,
        ahead: usize,
    ) -> backstay_postgres::Result<wal::PushReport> {
        let options =
            PushOptions { system_identifier: Some(SYSTEM), ahead, ..PushOptions::default() };
        wal::push(&self.repositories, path, &options)
    }

    pub fn has(&self, name: &str) -> bool {
        self.repositories[0].archive(SYSTEM).contains(name).unwrap()
    }

    pub fn destination(&self) -> PathBuf {
        self.path("RECOVERYXLOG")
    }

    pub fn options(&self) -> FetchOptions {
        FetchOptions {
            system_identifier: SYSTEM,
            prefetch: 0,
            spool: Some(self.folder.path().join("spool")),
            slices: true,
            origin: "here".to_owned(),
            retry_for: Duration::from_secs(60),
        }
    }

    pub fn fetch(&self, name: &str) -> FetchOutcome {
        wal::fetch(&self.repositories, name, &self.destination(), &self.options())
    }

    pub fn fetch_ahead(&self, name: &str, prefetch: usize) -> FetchOutcome {
        let options = FetchOptions { prefetch, ..self.options() };
        wal::fetch(&self.repositories, name, &self.destination(), &options)
    }

    pub fn spooled(&self) -> Vec<String> {
        let folder = self.folder.path().join("spool").join(SYSTEM.to_string());
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A segment as a server begins it, filled with something that tells it from others.
pub fn segment(name: &str, system: u64, fill: u8) -> Vec<u8> {
    let name: SegmentName = name.parse().unwrap();
    let size = SegmentSize::MIN;
    let mut bytes = vec![fill; size.bytes() as usize];
    bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&name.timeline().to_le_bytes());
    bytes[8..16].copy_from_slice(&name.start(size).unwrap().0.to_le_bytes());
    bytes[16..24].fill(0);
    bytes[24..32].copy_from_slice(&system.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32::from(size).to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    bytes
}

pub fn nth(number: u64) -> String {
    SegmentName::new(1, number, SegmentSize::MIN).unwrap().to_string()
}
