//! From an address to a handle.

use std::path::PathBuf;

use crate::{ErrorKind, Local, Memory, Result, Store, StoreError, StoreOptions};

const ADDRESSES: &str =
    "file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix";

impl Store {
    /// Opens the store at `url`: `file:///path` or an absolute path, `s3://bucket/prefix`,
    /// `gs://bucket/prefix`, `az://container/prefix`, `memory:`.
    ///
    /// Touches nothing: whether the store can be reached shows with the first call. A directory
    /// that is missing holds nothing, and the first creation makes it.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the address or an option cannot be used.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let store = if url.starts_with('/') {
            Self::new(Local::new(url)?.with_lock(options.lock)?)
        } else {
            let Some((scheme, rest)) = url.split_once(':') else {
                return Err(unusable(url, &format!("a store is one of {ADDRESSES}")));
            };
            match scheme {
                "file" => Self::new(Local::new(file_path(url, rest)?)?.with_lock(options.lock)?),
                "memory" => Self::new(Memory::new()),
                _ => remote(url, scheme, rest, options)?,
            }
        };
        Ok(store
            .with_retries(options.retries)
            .with_limits(options.upload_limit, options.download_limit))
    }
}

#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn remote(url: &str, scheme: &str, rest: &str, options: &StoreOptions) -> Result<Store> {
    match crate::remote::open(url, scheme, rest, options) {
        Some(Ok(remote)) => Ok(Store::new(remote)),
        Some(Err(why)) => Err(unusable(url, &why)),
        None => Err(unknown(url, scheme)),
    }
}

#[cfg(not(any(feature = "s3", feature = "gcs", feature = "azure")))]
fn remote(url: &str, scheme: &str, _: &str, _: &StoreOptions) -> Result<Store> {
    Err(unknown(url, scheme))
}

fn unknown(url: &str, scheme: &str) -> StoreError {
    if ["s3", "gs", "az"].contains(&scheme) {
        return unusable(url, &format!("this program was built without {scheme}:"));
    }
    unusable(url, &format!("{scheme}: is not a kind of store; a store is one of {ADDRESSES}"))
}

/// The path in `///path` or `//localhost/path`. It is taken as it is: nothing is unescaped.
fn file_path(url: &str, rest: &str) -> Result<PathBuf> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(path) => path.strip_prefix("localhost").unwrap_or(path),
    };
    if !path.starts_with('/') {
        return Err(unusable(url, "the path must be absolute, as in file:///var/backups"));
    }
    Ok(PathBuf::from(path))
}

fn unusable(url: &str, why: &str) -> StoreError {
    // Whatever somebody put behind a question mark, or before an @, may be a secret.
    let shown = url.split('?').next().unwrap_or_default();
    let shown = match (shown.split_once("://"), shown.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
        _ => shown.to_owned(),
    };
    StoreError::new(ErrorKind::Configuration, "open", shown).with_detail(why)
}
