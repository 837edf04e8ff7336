//! Objects that lead to deletions: a body, and a keyed hash of it under a key that a host which may
//! only write does not have. Such a host can read what is condemned, and can condemn nothing.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crypto::{Class, Keys, equal};
use crate::index::{open_object, seal_object};
use crate::{Environment, RepoError, Result};

const SEAL: usize = 32;

fn seal(keys: &Keys, key: &str, body: &[u8]) -> [u8; SEAL] {
    let mut hasher = blake3::Hasher::new_keyed(&keys.maintenance);
    hasher.update(key.as_bytes()).update(&[0]).update(body);
    *hasher.finalize().as_bytes()
}

pub(crate) fn sign<T: Serialize>(
    keys: &Keys,
    env: &Environment,
    class: Class,
    key: &str,
    value: &T,
) -> Bytes {
    let mut body = postcard::to_stdvec(value).expect("plain data");
    let seal = seal(keys, key, &body);
    body.extend_from_slice(&seal);
    seal_object(keys, env.random(), class, key, body)
}

pub(crate) fn open<T: DeserializeOwned>(
    keys: &Keys,
    class: Class,
    key: &str,
    object: &[u8],
) -> Result<T> {
    let body = body(keys, class, key, object)?;
    postcard::from_bytes(&body).map_err(|error| RepoError::damaged(key, error))
}

/// What was signed, whatever it says.
pub(super) fn body(keys: &Keys, class: Class, key: &str, object: &[u8]) -> Result<Vec<u8>> {
    let plain = open_object(keys, class, key, object)?;
    let (body, found) = plain
        .split_last_chunk::<SEAL>()
        .ok_or_else(|| RepoError::damaged(key, "it is cut short"))?;
    if !equal(&seal(keys, key, body), found) {
        return Err(RepoError::damaged(key, "whoever made it may not remove anything here"));
    }
    Ok(body.to_vec())
}
