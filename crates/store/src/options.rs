//! What a person can say about a store besides its address.

use std::fmt;
use std::time::Duration;

use crate::{LockPolicy, StorageClasses};

/// How a store is reached. [`Default`] suits a local directory and the public clouds.
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// The address of the service, for a store that is not the provider's own
    /// (`http://127.0.0.1:8333`).
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Permits plain HTTP. Off: an endpoint without TLS is refused.
    pub allow_http: bool,
    /// Bytes a second that may be sent; none: no limit.
    pub upload_limit: Option<u64>,
    /// Bytes a second that may be received; none: no limit.
    pub download_limit: Option<u64>,
    /// Packs of more bytes than this are sent in parts, where the service can do that; none: of
    /// more than 32 MiB.
    pub parts_above: Option<u64>,
    /// The storage classes of new objects, in the service's words.
    pub classes: StorageClasses,
    /// How new objects are locked; none: they are not.
    pub lock: Option<LockPolicy>,
    /// How long transient failures are tried again.
    pub retries: RetryPolicy,
    /// Where credentials are looked up (`AWS_ACCESS_KEY_ID`, `GOOGLE_SERVICE_ACCOUNT`,
    /// `AZURE_STORAGE_ACCOUNT_NAME`, …); none: the environment of the process.
    pub variables: Option<Vec<(String, String)>>,
}

/// How often and how long a call is tried again after a transient failure.
///
/// The n-th wait is a random time between nothing and `first · 2ⁿ`, at most `longest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many times a call is made at most, the first included.
    pub attempts: u32,
    /// The longest first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// The sum of all waits and failed calls after which a call is given up.
    pub budget: Duration,
}

impl RetryPolicy {
    /// Every failure is the caller's.
    pub const NONE: Self = Self {
        attempts: 1,
        first: Duration::ZERO,
        longest: Duration::ZERO,
        budget: Duration::ZERO,
    };
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 12,
            first: Duration::from_millis(200),
            longest: Duration::from_secs(20),
            budget: Duration::from_secs(180),
        }
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("allow_http", &self.allow_http)
            .field("upload_limit", &self.upload_limit)
            .field("download_limit", &self.download_limit)
            .field("parts_above", &self.parts_above)
            .field("classes", &self.classes)
            .field("lock", &self.lock)
            .field("retries", &self.retries)
            // Their values are secrets.
            .field("variables", &self.variables.as_ref().map(|v| v.iter().map(|(k, _)| k)))
            .finish()
    }
}
