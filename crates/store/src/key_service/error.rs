use std::fmt;

use super::KeyServiceKind;

/// What went wrong, as far as a caller must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyServiceErrorKind {
    /// The service answered that the ciphertext is not of this key, or not of this repository.
    NotOpened,
    /// The service refused: credentials, token or permissions.
    Denied,
    /// The key is there and may not be used: disabled, or about to be deleted.
    Unusable,
    /// The service did not answer, or asked to be tried again.
    Unavailable,
    /// What was configured cannot be used: an address, a name, a file.
    Configuration,
    /// Anything else.
    Other,
}

/// A service that keeps keys failed: what was asked of it, of which key, and why.
#[derive(Debug)]
pub struct KeyServiceError {
    service: KeyServiceKind,
    kind: KeyServiceErrorKind,
    doing: &'static str,
    key: String,
    detail: String,
}

impl KeyServiceError {
    /// `doing` completes the sentence "could not … KEY".
    pub(super) fn new(
        service: KeyServiceKind,
        kind: KeyServiceErrorKind,
        doing: &'static str,
        key: impl Into<String>,
    ) -> Self {
        Self { service, kind, doing, key: key.into(), detail: String::new() }
    }

    #[must_use]
    pub(super) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub fn kind(&self) -> KeyServiceErrorKind {
        self.kind
    }

    /// The same call may succeed later.
    pub fn is_transient(&self) -> bool {
        self.kind == KeyServiceErrorKind::Unavailable
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        use KeyServiceErrorKind as Kind;
        Some(match (self.kind, self.service) {
            (Kind::NotOpened, _) => "is it the right key, and the right repository?",
            (Kind::Denied, KeyServiceKind::AwsKms) => {
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN or the role of \
                 this machine, its clock, and that they may kms:Encrypt and kms:Decrypt with this key"
            }
            (Kind::Denied, KeyServiceKind::VaultTransit) => {
                "check VAULT_TOKEN or the token-file, the namespace, and that the token's policy \
                 permits update on encrypt/ and decrypt/ of this key"
            }
            (Kind::Unusable, _) => "enable the key again; until then use another key slot",
            (Kind::Unavailable, _) => {
                "nothing is known to be wrong with the key; try again when the service answers, or \
                 use another key slot"
            }
            (Kind::Configuration, KeyServiceKind::AwsKms) => {
                "check the key, its region and the endpoint"
            }
            (Kind::Configuration, KeyServiceKind::VaultTransit) => {
                "check the address (VAULT_ADDR), the mount, the key's name and the files"
            }
            (Kind::Other, _) => return None,
        })
    }
}

impl fmt::Display for KeyServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use KeyServiceErrorKind as Kind;
        write!(f, "could not {} {} in {}: ", self.doing, self.key, self.service)?;
        f.write_str(match self.kind {
            Kind::NotOpened => "it was not encrypted with that key for this repository",
            Kind::Denied => "access denied",
            Kind::Unusable => "the key may not be used now",
            Kind::Unavailable => "the service did not answer",
            Kind::Configuration => "what is configured cannot be used",
            Kind::Other => "the answer was not understood",
        })?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::error::Error for KeyServiceError {}
