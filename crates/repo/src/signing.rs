//! Signatures: who wrote an object.
//!
//! Ed25519 over `"backstay v1 signature" ‖ BLAKE3(key of the object ‖ 0 ‖ body)`. The key of the
//! object is part of it, so that nothing signed counts under another name. The hash without a key is
//! no secret: bodies are signed inside of a seal.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// Bytes.
pub(crate) const SIGNATURE: usize = 64;

pub(crate) struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed of Ed25519"))
    }

    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.0.public_key().as_ref());
        public
    }

    pub fn sign(&self, object: &str, body: &[u8]) -> [u8; SIGNATURE] {
        let mut signature = [0; SIGNATURE];
        signature.copy_from_slice(self.0.sign(&message(object, body)).as_ref());
        signature
    }
}

pub(crate) fn verifies(
    public: &[u8; 32],
    object: &str,
    body: &[u8],
    signature: &[u8; SIGNATURE],
) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(&message(object, body), signature).is_ok()
}

fn message(object: &str, body: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(object.as_bytes()).update(&[0]).update(body);
    let mut message = b"backstay v1 signature".to_vec();
    message.extend_from_slice(hasher.finalize().as_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_one_body_under_one_name_by_one_key() {
        let (key, other) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let signature = key.sign("snapshots/a/b", b"body");
        assert!(verifies(&key.public(), "snapshots/a/b", b"body", &signature));
        assert!(!verifies(&other.public(), "snapshots/a/b", b"body", &signature));
        assert!(!verifies(&key.public(), "snapshots/a/c", b"body", &signature));
        assert!(!verifies(&key.public(), "snapshots/a/b", b"bodY", &signature));
        // The border between name and body is fixed.
        assert!(!verifies(&key.public(), "snapshots/a/bb", b"ody", &signature));
        for at in 0..SIGNATURE {
            let mut altered = signature;
            altered[at] ^= 1;
            assert!(!verifies(&key.public(), "snapshots/a/b", b"body", &altered), "byte {at}");
        }
    }
}
