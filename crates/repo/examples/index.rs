//! Measures the index of a large repository, without its content.
//!
//! ```text
//! cargo run --release -p backstay-repo --example index -- fill FOLDER 100000000
//! cargo run --release -p backstay-repo --example index -- measure FOLDER 100000000
//! cargo run --release -p backstay-repo --example index -- write FOLDER 100000000
//! cargo run --release -p backstay-repo --example index -- merge FOLDER 100000000
//! ```
//!
//! The first writes an index of so many chunks below the folder. The second opens it as who reads
//! does, and looks chunks up; the first time the folder of local copies is empty. The third opens it
//! as a backup does, which also looks which packs are there. Packs are not stored: a store that makes
//! up a list of them stands in. The fourth merges ten backups of 10,000 new chunks.

#![allow(clippy::print_stdout)]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_repo::internals::Synthetic;
use backstay_repo::{ObjectId, Store};
use backstay_store::{Backend, Bytes, Local, ObjectMeta, Result};

/// A folder, and packs that are only listed.
struct Listing {
    local: Local,
    chunks: u64,
}

impl Backend for Listing {
    fn url(&self) -> String {
        self.local.url()
    }

    fn create(&self, key: &str, body: Bytes) -> Result<()> {
        self.local.create(key, body)
    }

    fn read(&self, key: &str) -> Result<Bytes> {
        self.local.read(key)
    }

    fn read_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.local.read_range(key, range)
    }

    fn head(&self, key: &str) -> Result<ObjectMeta> {
        self.local.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        if prefix != "packs/" {
            return self.local.list(prefix);
        }
        let packs = Synthetic::packs(self.chunks);
        Ok(packs.map(|(key, size)| ObjectMeta { key, size, modified: None }).collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.local.delete(key)
    }
}

/// Resident now, and at most so far. MiB.
fn memory() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    };
    let value = |name| value(name).unwrap_or(0.0) / 1024.0;
    (value("VmRSS:"), value("VmHWM:"))
}

/// How long this thread has been at work, so that it does not count what else the machine does.
fn at_work() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let time = text.split(' ').next().and_then(|time| time.parse().ok());
    Duration::from_nanos(time.unwrap_or(0))
}

fn rate(what: &str, ids: &[ObjectId], wanted: bool, look: impl Fn(&ObjectId) -> bool) {
    let started = at_work();
    let found = ids.iter().filter(|id| look(id) == wanted).count();
    let rate = ids.len() as f64 / (at_work() - started).as_secs_f64() / 1e6;
    assert_eq!(found, ids.len(), "{what}: the index is wrong");
    println!("{what}: {rate:.2} million look-ups a second");
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, folder, chunks] = arguments.as_slice() else {
        return Err("say fill, measure, write or merge, a folder, and how many chunks".into());
    };
    let (folder, chunks) = (PathBuf::from(folder), chunks.parse::<u64>()?);
    let cache = folder.join("cache");
    let local = Local::new(folder.join("store"))?;
    let synthetic = Synthetic::new(Store::new(Listing { local, chunks }));
    match what.as_str() {
        "fill" => {
            let started = Instant::now();
            synthetic.fill(chunks)?;
            println!("{chunks} chunks written in {:.1} s", started.elapsed().as_secs_f64());
        }
        "measure" => measure(&synthetic, &cache, chunks, false)?,
        "write" => measure(&synthetic, &cache, chunks, true)?,
        "merge" => merge(&synthetic, &cache, chunks)?,
        other => return Err(format!("{other:?} is nothing to do").into()),
    }
    Ok(())
}

/// A cold start is one without local copies; the page cache is warm.
fn measure(
    synthetic: &Synthetic,
    cache: &Path,
    chunks: u64,
    to_write: bool,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let start = if cache.exists() { "warm" } else { "cold" };
    let (before, _) = memory();
    let started = Instant::now();
    let opened = synthetic.open(Some(cache), to_write)?;
    let took = started.elapsed().as_secs_f64();
    let (after, most) = memory();
    if to_write {
        let started = Instant::now();
        let packs = Synthetic::packs(chunks).collect::<Vec<_>>().len();
        let took = started.elapsed().as_secs_f64();
        println!("{packs} packs, of which a list was made up in {took:.2} s");
    }
    let tebibytes = chunks as f64 / (1 << 20) as f64;
    println!(
        "{start}: {} chunks opened in {took:.2} s; {:.0} MiB resident, {:.0} MiB at most: {:.1} MiB \
         for each TiB",
        opened.chunks(),
        after - before,
        most - before,
        (after - before) / tebibytes,
    );
    let step = (chunks / 2_000_000).max(1);
    // Not in the order in which they lie.
    let some = (0..2_000_000).map(|n| n * 982_451_653 % 2_000_000 * step % chunks);
    let there: Vec<_> = some.map(|n| Synthetic::chunk(n, chunks)).collect();
    let absent: Vec<_> = (0..2_000_000).map(|n| Synthetic::chunk(chunks + n, chunks)).collect();
    let finds = |id: &ObjectId| opened.finds(id).unwrap_or(false);
    for _ in 0..5 {
        rate("there", &there, true, finds);
        rate("absent", &absent, false, finds);
    }
    let (now, _) = memory();
    println!(
        "then {:.0} MiB resident: {:.1} MiB for each TiB",
        now - before,
        (now - before) / tebibytes
    );
    if to_write {
        rate("there, for a backup", &there, true, |id| opened.holds(id));
        rate("absent, for a backup", &absent, false, |id| opened.holds(id));
    }
    Ok(())
}

/// Ten backups of 10,000 new chunks, a merge after each.
fn merge(
    synthetic: &Synthetic,
    cache: &Path,
    chunks: u64,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let first = synthetic.open(Some(cache), false)?.chunks() as u64 + chunks;
    for n in 0..10 {
        synthetic.store(first + n * 10_016, 10_000)?;
        let opened = synthetic.open(Some(cache), false)?;
        let started = Instant::now();
        let (bytes, runs) = synthetic.merge(&opened, Some(cache))?;
        println!(
            "merged 10000 chunks: {:.2} MB written in {:.0} ms, {runs} runs",
            bytes as f64 / 1e6,
            started.elapsed().as_secs_f64() * 1e3,
        );
    }
    Ok(())
}
