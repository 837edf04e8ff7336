//! Services that keep a key and let nobody see it: AWS KMS, and the transit engine of HashiCorp
//! Vault. They encrypt and decrypt a few bytes for whoever may ask.
//!
//! The network is the store's business (it is the one floor with async inside), so they are here;
//! what the bytes are for is not known here. A service that does not answer, or says no, is never
//! "this is not mine": [`KeyServiceErrorKind::NotOpened`] is made only of a service's own word about
//! the ciphertext.

mod error;

#[cfg(feature = "key-services")]
mod aws;
#[cfg(feature = "key-services")]
mod http;
#[cfg(feature = "key-services")]
mod vault;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

pub use error::{KeyServiceError, KeyServiceErrorKind};

use crate::RetryPolicy;

type Result<T> = std::result::Result<T, KeyServiceError>;

/// Which services there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyServiceKind {
    AwsKms,
    VaultTransit,
}

impl fmt::Display for KeyServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AwsKms => "AWS KMS",
            Self::VaultTransit => "Vault",
        })
    }
}

/// What a service made of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// What the service calls the key that it used.
    pub key: String,
    /// In the service's own form; text.
    pub ciphertext: String,
}

/// How a key in AWS KMS is reached. Credentials come from the variables, files and machine roles that
/// AWS's own tools use.
#[derive(Clone, Default)]
pub struct AwsKmsOptions {
    /// An ARN, an id, or `alias/…`.
    pub key: String,
    /// Where it is; none: as the ARN or `AWS_REGION` says.
    pub region: Option<String>,
    /// The address of the service, where it is not AWS's own.
    pub endpoint: Option<String>,
    pub allow_http: bool,
    /// None: some tries within half a minute.
    pub retries: Option<RetryPolicy>,
    /// Instead of the environment of the process.
    pub variables: Option<Vec<(String, String)>>,
}

/// How a key in Vault's transit engine is reached.
#[derive(Clone, Default)]
pub struct VaultOptions {
    /// The name of the key.
    pub key: String,
    /// Where the engine is mounted; none: `transit`.
    pub mount: Option<String>,
    /// None: `VAULT_ADDR`.
    pub address: Option<String>,
    /// None: `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// A file that holds the token; none: `VAULT_TOKEN`, else `~/.vault-token`.
    pub token_file: Option<PathBuf>,
    /// Certificates to trust besides the system's; none: `VAULT_CACERT`.
    pub ca_file: Option<PathBuf>,
    pub allow_http: bool,
    /// None: some tries within half a minute.
    pub retries: Option<RetryPolicy>,
    /// Instead of the environment of the process.
    pub variables: Option<Vec<(String, String)>>,
}

/// What a service does.
trait Service: Send + Sync {
    fn kind(&self) -> KeyServiceKind;
    /// The key's name as it was configured.
    fn key(&self) -> &str;
    fn wrap(&self, secret: &[u8], repository: &str) -> Result<Wrapped>;
    fn unwrap(&self, ciphertext: &str, repository: &str) -> Result<Zeroizing<Vec<u8>>>;
}

/// A key in a service. Cheap to clone.
#[derive(Clone)]
pub struct KeyService {
    service: Arc<dyn Service>,
}

impl fmt::Debug for KeyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyService({}, {})", self.kind(), self.key())
    }
}

impl KeyService {
    /// A key in AWS KMS. Touches nothing.
    ///
    /// # Errors
    /// Configuration, when it cannot be said where the service is.
    pub fn aws_kms(options: &AwsKmsOptions) -> Result<Self> {
        #[cfg(feature = "key-services")]
        return Ok(Self { service: Arc::new(aws::AwsKms::new(options)?) });
        #[cfg(not(feature = "key-services"))]
        Err(left_out(KeyServiceKind::AwsKms, &options.key))
    }

    /// A key in Vault. Reads the token and the certificates, and touches nothing else.
    ///
    /// # Errors
    /// Configuration, when address, token or certificates are missing or cannot be used.
    pub fn vault(options: &VaultOptions) -> Result<Self> {
        #[cfg(feature = "key-services")]
        return Ok(Self { service: Arc::new(vault::Transit::new(options)?) });
        #[cfg(not(feature = "key-services"))]
        Err(left_out(KeyServiceKind::VaultTransit, &options.key))
    }

    pub fn kind(&self) -> KeyServiceKind {
        self.service.kind()
    }

    /// The key's name as it was configured.
    pub fn key(&self) -> &str {
        self.service.key()
    }

    /// Encrypts a secret, bound to a repository.
    pub fn wrap(&self, secret: &[u8], repository: &str) -> Result<Wrapped> {
        self.service.wrap(secret, repository)
    }

    /// Decrypts what [`wrap`](Self::wrap) made.
    ///
    /// # Errors
    /// [`NotOpened`](KeyServiceErrorKind::NotOpened) only when the service says that it is not of
    /// this key and this repository.
    pub fn unwrap(&self, ciphertext: &str, repository: &str) -> Result<Zeroizing<Vec<u8>>> {
        self.service.unwrap(ciphertext, repository)
    }
}

#[cfg(not(feature = "key-services"))]
fn left_out(kind: KeyServiceKind, key: &str) -> KeyServiceError {
    KeyServiceError::new(kind, KeyServiceErrorKind::Configuration, "use the key", key)
        .with_detail("this program was built without it")
}

/// A service answers soon or not at all, and a person or an archiver waits.
pub(crate) const RETRIES: RetryPolicy = RetryPolicy {
    attempts: 8,
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
    budget: Duration::from_secs(30),
};
