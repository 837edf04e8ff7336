//! Where requests run and how long they are waited for: one runtime that starts with the first call
//! and serves all stores of the process, while callers block.

use std::future::Future;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use object_store::{ClientOptions, RetryConfig};

use super::answers::translate;
use crate::{ErrorKind, Result, StoreError};

/// How long a service may take to connect, or to send nothing.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The slowest connection that is still waited for, in bytes a second.
pub(super) const SLOWEST: u64 = 32 << 10;

pub(super) fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        // A pack on a slow line takes minutes; `within` has the patience instead.
        .with_timeout_disabled()
        .with_read_timeout_disabled()
}

pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Runs `work` on the runtime and waits for it, from any thread (a runtime's own included).
pub(crate) fn wait<T: Send + 'static>(
    doing: &'static str,
    key: &str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    static RUNTIME: OnceLock<std::io::Result<tokio::runtime::Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("backstay-network")
            .enable_all()
            .build()
    });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            return Err(StoreError::new(ErrorKind::Other, doing, key)
                .with_detail(format!("no threads for the network: {error}")));
        }
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // The receiver waits until there is an answer.
        let _ = sender.send(work.await);
    });
    receiver.recv().unwrap_or_else(|_| {
        Err(StoreError::new(ErrorKind::Other, doing, key).with_detail("the request was abandoned"))
    })
}

/// Gives up `work` when it takes longer than `bytes` may take.
pub(super) async fn within<T>(
    doing: &'static str,
    key: &str,
    bytes: u64,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T> {
    let patience = PATIENCE + Duration::from_secs(bytes / SLOWEST);
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result.map_err(|error| translate(doing, key, &error)),
        Err(_) => Err(StoreError::new(ErrorKind::Transient, doing, key)
            .with_detail(format!("no answer within {} s", patience.as_secs()))),
    }
}
