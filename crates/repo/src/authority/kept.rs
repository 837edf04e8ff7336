//! What a host that may only write keeps, so that it finds its own last backup: the session keys of
//! the metadata that it wrote, sealed with its key, in the cache.
//!
//! With them it can read names, times and small files of its own earlier snapshots, and see what has
//! changed without reading everything; it still opens no data pack. When they are lost, it reads
//! everything once and stores nothing twice.
//!
//! ```text
//! id (16, random) ‖ session key (32) ‖ tag (16)
//! ```

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use crate::Environment;
use crate::crypto::{Class, PackKey, TAG};
use crate::id::hex;
use crate::layout::Work;

/// Sessions of which keys are kept at most.
const MOST: usize = 4096;
const KIND: u8 = 1;
const PREFIX: &str = "kept-";

fn path(folder: &Path, session: &[u8; 16]) -> PathBuf {
    folder.join(format!("{PREFIX}{}", hex(session)))
}

/// Keeps the key of a session. A cache that cannot be written is no error.
pub(crate) fn keep(
    folder: &Path,
    env: &Environment,
    secret: &[u8; 32],
    work: &Work,
    session_key: &[u8; 32],
) {
    let id: [u8; 16] = env.random();
    let mut record = session_key.to_vec();
    let tag = PackKey::new(secret, id, Class::Session).seal(KIND, 0, &work.session, &mut record);
    let kept = [&id[..], &record, &tag].concat();
    crate::index::keep(&path(folder, &work.session), &kept);
    forget_oldest(folder);
}

pub(crate) fn find(folder: &Path, secret: &[u8; 32], work: &Work) -> Option<Zeroizing<[u8; 32]>> {
    let kept = std::fs::read(path(folder, &work.session)).ok()?;
    let (id, sealed) = kept.split_first_chunk::<16>()?;
    let mut record = Zeroizing::new(sealed.get(..32 + TAG)?.to_vec());
    let key = PackKey::new(secret, *id, Class::Session);
    (*key.open(KIND, 0, &work.session, &mut record)?).try_into().ok().map(Zeroizing::new)
}

fn forget_oldest(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut kept: Vec<(SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let ours = entry.file_name().to_str()?.starts_with(PREFIX);
            let time = entry.metadata().ok()?.modified().ok()?;
            ours.then(|| (time, entry.path()))
        })
        .collect();
    kept.sort_unstable();
    let many = kept.len().saturating_sub(MOST);
    for (_, path) in kept.into_iter().take(many) {
        let _ = std::fs::remove_file(path);
    }
}
