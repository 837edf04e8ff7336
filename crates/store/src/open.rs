//! From an address to a back end.

use std::path::PathBuf;

use crate::{ErrorKind, Local, Memory, Result, Store, StoreError, StoreOptions};

impl Store {
    /// Opens the store at `url`: `file:///path` or an absolute path, `memory:`.
    ///
    /// Touches nothing: whether the store can be reached shows with the first call.
    ///
    /// # Errors
    ///
    /// [`Configuration`](ErrorKind::Configuration) when the address or an option cannot be used.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let _ = options;
        if url.starts_with('/') {
            return Ok(Self::new(Local::new(url)?));
        }
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(unusable(
                url,
                "a store's address is an absolute path or begins with file:",
            ));
        };
        match scheme {
            "file" => Ok(Self::new(Local::new(file_path(url, rest)?)?)),
            "memory" => Ok(Self::new(Memory::new())),
            other => Err(unusable(url, &format!("{other}: is not a kind of store"))),
        }
    }
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
    StoreError::new(ErrorKind::Configuration, "open", url).with_detail(why)
}
