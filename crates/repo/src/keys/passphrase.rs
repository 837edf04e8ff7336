//! From a passphrase to a key: Argon2id, with parameters that the slot keeps.

use argon2::{Algorithm, Argon2, ParamsBuilder, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{RepoError, RepoErrorKind, Result};

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Argon2Parameters {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl Argon2Parameters {
    /// Of new slots.
    pub const NEW: Self = Self { memory_kib: 256 << 10, passes: 4, lanes: 1 };

    /// The key; none when the parameters are beyond all reason: a forged slot must not make us
    /// allocate without bounds.
    pub fn stretch(self, passphrase: &str, salt: &[u8; 32]) -> Result<Option<Zeroizing<Vec<u8>>>> {
        if self.memory_kib > 4 << 20 || self.passes > 64 || self.lanes > 64 {
            return Ok(None);
        }
        let parameters = ParamsBuilder::new()
            .m_cost(self.memory_kib)
            .t_cost(self.passes)
            .p_cost(self.lanes)
            .output_len(32)
            .build()
            .map_err(|e| RepoError::damaged("a key slot", e))?;
        let mut out = Zeroizing::new(vec![0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
            .hash_password_into(passphrase.as_bytes(), salt, &mut out)
            .map_err(|e| {
                RepoError::new(
                    RepoErrorKind::Io,
                    format!("could not derive a key from the passphrase: {e}"),
                )
            })?;
        Ok(Some(out))
    }
}
