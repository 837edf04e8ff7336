//! Objects of one record under the index key, and copies of objects on the local disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Current;
use crate::crypto::{Class, HEADER, Keys, PackKey, TAG, epoch_of};
use crate::{RepoError, Result, Store};

/// An object of one record that whoever holds the index key may open.
pub(crate) fn seal_object(
    keys: &Keys,
    id: [u8; 16],
    class: Class,
    name: &str,
    plain: Vec<u8>,
) -> Bytes {
    let (key, header) = keys.index_object(id, class);
    seal_with(&key, &header, name, plain)
}

pub(crate) fn seal_with(key: &PackKey, header: &[u8; HEADER], name: &str, plain: Vec<u8>) -> Bytes {
    let mut object = Vec::with_capacity(HEADER + plain.len() + TAG);
    object.extend_from_slice(header);
    object.extend_from_slice(&plain);
    let tag = key.seal(0, HEADER as u64, name.as_bytes(), &mut object[HEADER..]);
    object.extend_from_slice(&tag);
    Bytes::from(object)
}

/// What [`seal_object`] and [`seal_with`] sealed.
pub(crate) fn open_object(keys: &Keys, class: Class, name: &str, object: &[u8]) -> Result<Vec<u8>> {
    open_record_of(&keys.open(name, class, object)?, name, object)
}

/// The only record of an object.
pub(crate) fn open_record_of(key: &PackKey, name: &str, object: &[u8]) -> Result<Vec<u8>> {
    let mut record = object.get(HEADER..).unwrap_or_default().to_vec();
    let length = key
        .open(0, HEADER as u64, name.as_bytes(), &mut record)
        .ok_or_else(|| RepoError::damaged(name, "it was altered, cut short, or is another object"))?
        .len();
    record.truncate(length);
    Ok(record)
}

/// What is inside of an index segment, from the local copy where that is right.
pub(super) fn read_segment(
    store: &Store,
    keys: &Keys,
    cache: Option<&Path>,
    key: &str,
    size: u64,
) -> Result<(u32, Vec<u8>)> {
    let cached = cache.map(|folder| cache_path(folder, key));
    if let Some(path) = &cached
        && let Ok(object) = std::fs::read(path)
        && object.len() as u64 == size
        && let Ok(plain) = open_object(keys, Class::Index, key, &object)
    {
        return Ok((epoch_of(&object), plain));
    }
    let object = store.read(key)?;
    let plain = open_object(keys, Class::Index, key, &object)?;
    if let Some(path) = cached {
        keep(&path, &object);
    }
    Ok((epoch_of(&object), plain))
}

/// Removes copies of segments that do not count any more.
pub(super) fn forget_segments(folder: &Path, current: &Current) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let wanted: HashSet<PathBuf> =
        current.segments.iter().map(|object| cache_path(folder, &object.key)).collect();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Of a session that is being committed there may be one that no list had yet: it is
        // fetched when it is wanted.
        if name.starts_with("index-") && !wanted.contains(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(super) fn cache_path(folder: &Path, key: &str) -> PathBuf {
    folder.join(key.replace('/', "-"))
}

/// Puts an object into the cache if that can be done; a cache that cannot be written is no error.
pub(crate) fn keep(path: &Path, object: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&temporary, object))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&temporary);
        tracing::debug!(path = %path.display(), %error, "the cache could not be written");
    }
}

pub(crate) fn keep_segment(cache: Option<&Path>, key: &str, object: &[u8]) {
    if let Some(folder) = cache {
        keep(&cache_path(folder, key), object);
    }
}
