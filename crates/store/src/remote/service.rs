//! From an address and options to a service.
//!
//! Credentials come from the variables that each provider's own tools use; nothing of them is
//! kept here.

use std::sync::Arc;

use object_store::ObjectStore;

use super::{Remote, client_options, no_retries};
use crate::StoreOptions;

/// The service of a bucket, or why there is none.
type Opened = Result<Arc<dyn ObjectStore>, String>;

/// Opens `scheme://bucket/prefix`; none when the scheme is not one of ours. The error is why not.
pub(crate) fn open(
    url: &str,
    scheme: &str,
    rest: &str,
    options: &StoreOptions,
) -> Option<Result<Remote, String>> {
    let build: fn(&str, &StoreOptions) -> Opened = match scheme {
        #[cfg(feature = "s3")]
        "s3" => s3,
        #[cfg(feature = "gcs")]
        "gs" => gcs,
        #[cfg(feature = "azure")]
        "az" => azure,
        _ => return None,
    };
    Some(open_with(url, rest, options, build))
}

fn open_with(
    url: &str,
    rest: &str,
    options: &StoreOptions,
    build: fn(&str, &StoreOptions) -> Opened,
) -> Result<Remote, String> {
    let place = rest.strip_prefix("//").unwrap_or(rest);
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    if bucket.is_empty() {
        return Err("the address must name a bucket or container".to_owned());
    }
    if url.contains(['?', '#', '@']) {
        return Err("an address is scheme://bucket/prefix; credentials and options are not \
                    part of it"
            .to_owned());
    }
    let prefix = prefix.trim_matches('/');
    if !prefix.is_empty() && object_store::path::Path::parse(prefix).is_err() {
        return Err(format!("{prefix} cannot begin the names of objects"));
    }
    if let Some(endpoint) = &options.endpoint {
        let plain = endpoint.starts_with("http://");
        if !plain && !endpoint.starts_with("https://") {
            return Err("the endpoint must begin with https://".to_owned());
        }
        if plain && !options.allow_http {
            return Err("the endpoint has no TLS; allow plain HTTP if that is meant".to_owned());
        }
    }
    let service = build(bucket, options)?;
    Ok(Remote::new(url.trim_end_matches('/').to_owned(), service, prefix))
}

/// The variables that begin with `start`, as given or from the process.
fn variables(options: &StoreOptions, start: &str) -> Vec<(String, String)> {
    let all: Vec<(String, String)> = match &options.variables {
        Some(variables) => variables.clone(),
        None => std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect(),
    };
    all.into_iter().filter(|(name, value)| name.starts_with(start) && !value.is_empty()).collect()
}

/// Hands every variable that the builder knows to it.
macro_rules! configure {
    ($builder:ident, $options:expr, $start:literal) => {
        for (name, value) in variables($options, $start) {
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                $builder = $builder.with_config(key, value);
            }
        }
    };
}

#[cfg(feature = "s3")]
fn s3(bucket: &str, options: &StoreOptions) -> Opened {
    use object_store::aws::{AmazonS3Builder, Checksum, S3ConditionalPut};
    let mut builder = AmazonS3Builder::new().with_client_options(client_options());
    configure!(builder, options, "AWS_");
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // The service checks what arrives, and keeps the sum with the object.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_disable_bulk_delete(true);
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build().map_err(|e| e.to_string())?))
}

#[cfg(feature = "gcs")]
fn gcs(bucket: &str, options: &StoreOptions) -> Opened {
    use object_store::gcp::GoogleCloudStorageBuilder;
    let client = client_options().with_allow_http(options.allow_http);
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client);
    configure!(builder, options, "GOOGLE_");
    builder = builder.with_bucket_name(bucket).with_retry(no_retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    Ok(Arc::new(builder.build().map_err(|e| e.to_string())?))
}

#[cfg(feature = "azure")]
fn azure(container: &str, options: &StoreOptions) -> Opened {
    use object_store::azure::MicrosoftAzureBuilder;
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client_options());
    configure!(builder, options, "AZURE_");
    builder = builder.with_container_name(container).with_retry(no_retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build().map_err(|e| e.to_string())?))
}
