//! Which strings are keys of objects.
//!
//! The rule is the narrowest of all back ends, so that a repository can move between them: it is
//! a relative path for a directory, needs no escaping in a bucket's address, and cannot collide
//! with what a back end hides (names that begin with a dot).

use crate::{ErrorKind, Result, StoreError};

/// The longest key, in bytes: what S3, GCS and Azure all take, with room for a prefix.
pub const MAX_KEY: usize = 512;

/// The longest component of a key, in bytes: what file systems take.
pub const MAX_COMPONENT: usize = 200;

/// Whether `key` names an object: components of ASCII letters, digits and `-`, `_`, `.`, `=`,
/// separated by single slashes, none of them empty or starting with a dot.
pub fn is_valid_key(key: &str) -> bool {
    key.len() <= MAX_KEY && key.split('/').all(is_valid_component)
}

/// Whether `prefix` can begin a key: empty, or complete components followed by the beginning of
/// one.
pub fn is_valid_prefix(prefix: &str) -> bool {
    match prefix.rsplit_once('/') {
        _ if prefix.is_empty() => true,
        Some((parents, "")) => is_valid_key(parents),
        _ => is_valid_key(prefix),
    }
}

pub(crate) fn is_valid_component(component: &str) -> bool {
    !component.is_empty()
        && component.len() <= MAX_COMPONENT
        && !component.starts_with('.')
        && component.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.=".contains(&b))
}

pub(crate) fn check_key(doing: &'static str, key: &str) -> Result<()> {
    if is_valid_key(key) {
        return Ok(());
    }
    Err(StoreError::new(ErrorKind::Configuration, doing, key.escape_debug().to_string())
        .with_detail("this is not the name of an object"))
}

pub(crate) fn check_prefix(doing: &'static str, prefix: &str) -> Result<()> {
    if is_valid_prefix(prefix) {
        return Ok(());
    }
    Err(StoreError::new(ErrorKind::Configuration, doing, prefix.escape_debug().to_string())
        .with_detail("no name of an object begins like this"))
}
