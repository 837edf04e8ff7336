//! Objects that lead to deletions or say who may write: a body, and the owner's signature of it. A
//! host that may only write can read what is condemned, and can condemn nothing.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::crypto::{Class, Keys, epoch_of};
use crate::index::{open_object, seal_object};
use crate::signing::SIGNATURE;
use crate::{Environment, RepoError, Result};

pub(crate) fn sign<T: Serialize>(
    keys: &Keys,
    env: &Environment,
    class: Class,
    key: &str,
    value: &T,
) -> Bytes {
    let mut body = postcard::to_stdvec(value).expect("plain data");
    let signature = keys.sign(key, &body);
    body.extend_from_slice(&signature);
    seal_object(keys, env.random(), class, key, body)
}

pub(crate) fn open<T: DeserializeOwned>(
    keys: &Keys,
    class: Class,
    key: &str,
    object: &[u8],
) -> Result<T> {
    let value = open_of_any_time(keys, class, key, object)?;
    keys.must_count(epoch_of(object), key)?;
    Ok(value)
}

/// The same, of an object that may have been made with a root key after that was replaced.
pub(crate) fn open_of_any_time<T: DeserializeOwned>(
    keys: &Keys,
    class: Class,
    key: &str,
    object: &[u8],
) -> Result<T> {
    let plain = open_object(keys, class, key, object)?;
    let (body, signature) = plain
        .split_last_chunk::<SIGNATURE>()
        .ok_or_else(|| RepoError::damaged(key, "it is cut short"))?;
    keys.owner_signed(epoch_of(object), key, body, signature)?;
    postcard::from_bytes(body).map_err(|error| RepoError::damaged(key, error))
}
