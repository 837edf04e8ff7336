//! From an address and options to a service.
//!
//! Credentials come from the variables that each provider's own tools use; nothing of them is
//! kept here.

use std::sync::Arc;

use object_store::ObjectStore;

#[cfg(feature = "s3")]
use super::credentials::{self, Files, FromFiles};
use super::extras::SharedExtras;
#[cfg(feature = "gcs")]
use super::google_credentials;
use super::line::{Line, Signer};
use super::runtime::{client_options, no_retries};
use super::{Remote, Sum};
use crate::tier::in_own_words;
use crate::{StorageClasses, StoreOptions};

/// The service of a bucket, and what is needed besides.
pub(super) struct Opened {
    pub service: Arc<dyn ObjectStore>,
    pub line: Line,
    pub sum: Sum,
    pub extras: SharedExtras,
    /// In its own words.
    pub classes: StorageClasses,
}

/// A service, or why there is none.
type Opening = Result<Opened, String>;

/// Opens `scheme://bucket/prefix`; none when the scheme is not one of ours. The error is why not.
pub(crate) fn open(
    url: &str,
    scheme: &str,
    rest: &str,
    options: &StoreOptions,
) -> Option<Result<Remote, String>> {
    let build: fn(&str, &StoreOptions) -> Opening = match scheme {
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
    build: fn(&str, &StoreOptions) -> Opening,
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
    let opened = build(bucket, options)?;
    Ok(Remote::new(url.trim_end_matches('/').to_owned(), opened, prefix, options))
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

/// One variable, as given or from the process.
#[cfg(any(feature = "s3", feature = "gcs"))]
fn variable(options: &StoreOptions, name: &str) -> Option<String> {
    let mut known = variables(options, name).into_iter();
    known.find(|(known, _)| known == name).map(|(_, value)| value)
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
fn s3(bucket: &str, options: &StoreOptions) -> Opening {
    let classes = in_own_words(&options.classes, &super::tiers::OF_S3, options.endpoint.is_some())?;
    if classes.later.iter().any(|one| crate::tier::is_archive(&one.class)) {
        return Err("rules of S3 cannot tell content from lists of files, which must be read at \
                    once: by age, data can go to warm and cold; what is stored as archive from the \
                    beginning (data = \"archive\") may"
            .to_owned());
    }
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
    let value = |builder: &AmazonS3Builder, key| builder.get_config_value(key);
    let mut builder = AmazonS3Builder::new().with_client_options(client_options());
    // Where the machine's own credentials are asked for, in the variable of Amazon's tools.
    if let Some(endpoint) = variable(options, "AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        builder = builder.with_metadata_endpoint(endpoint.trim_end_matches('/'));
    }
    let files = Files::of(|name| variable(options, name));
    let profile = files.read()?;
    // Other variables say who it is: then only the rest of the profile counts.
    let said = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    let said = said.iter().any(|name| variable(options, name).is_some());
    match credentials::keys_of(&profile) {
        Some(credential) if !said => {
            builder = builder.with_credentials(Arc::new(FromFiles::new(files, credential)));
        }
        None if !said => match (profile.get("role_arn"), profile.get("web_identity_token_file")) {
            (Some(role), Some(token)) => {
                builder = builder
                    .with_config(AmazonS3ConfigKey::RoleArn, role)
                    .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token);
            }
            _ => {
                if let Some(why) = credentials::unusable(&profile) {
                    return Err(why);
                }
            }
        },
        _ => {}
    }
    if let Some(region) = profile.get("region") {
        builder = builder.with_region(region);
    }
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
    let region = value(&builder, &AmazonS3ConfigKey::Region).unwrap_or("us-east-1".to_owned());
    let virtual_hosted = value(&builder, &AmazonS3ConfigKey::VirtualHostedStyleRequest)
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let endpoint = value(&builder, &AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| value(&builder, &AmazonS3ConfigKey::Endpoint));
    let address = match (endpoint, virtual_hosted) {
        (Some(endpoint), true) => endpoint,
        (Some(endpoint), false) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
        (None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        (None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    };
    let line = Line::default();
    let service = builder.with_http_connector(line.clone()).build().map_err(|e| e.to_string())?;
    let credentials = Arc::clone(service.credentials());
    let _ = line.signer.set(Signer::Aws { credentials, region });
    let desk = desk(&line, address, options)?;
    let extras: SharedExtras = Arc::new(super::s3::S3::new(desk));
    Ok(Opened { service: Arc::new(service), line, sum: Sum::Sha256, extras, classes })
}

/// Where Google's own service is.
#[cfg(feature = "gcs")]
const GOOGLE: &str = "https://storage.googleapis.com";

#[cfg(feature = "gcs")]
fn gcs(bucket: &str, options: &StoreOptions) -> Opening {
    let classes = in_own_words(&options.classes, &super::tiers::OF_GOOGLE, false)?;
    use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
    let client = client_options().with_allow_http(options.allow_http);
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client);
    configure!(builder, options, "GOOGLE_");
    builder = builder.with_bucket_name(bucket).with_retry(no_retries());
    let file = google_credentials::File::of(
        |name| variable(options, name),
        |key| builder.get_config_value(&key),
    )?;
    let base = match (&options.endpoint, builder.get_config_value(&GoogleConfigKey::BaseUrl)) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(base)) => base,
        (None, None) => file.as_ref().and_then(|file| file.base()).unwrap_or(GOOGLE.to_owned()),
    };
    let base = base.trim_end_matches('/').to_owned();
    builder = builder.with_base_url(&base);
    let line = Line::default();
    if let Some(federated) = file.and_then(|file| file.federated(&line, options).transpose()) {
        builder = builder.with_credentials(Arc::new(federated?));
    }
    let service = builder.with_http_connector(line.clone()).build().map_err(|e| e.to_string())?;
    let credentials = Arc::clone(service.credentials());
    let _ = line.signer.set(Signer::Google { credentials });
    let desk = desk(&line, format!("{base}/storage/v1/b/{bucket}"), options)?;
    let uploads = format!("{base}/upload/storage/v1/b/{bucket}/o");
    let extras: SharedExtras = Arc::new(super::google::Google { desk, uploads });
    Ok(Opened { service: Arc::new(service), line, sum: Sum::Crc32c, extras, classes })
}

#[cfg(feature = "azure")]
fn azure(container: &str, options: &StoreOptions) -> Opening {
    let classes = in_own_words(&options.classes, &super::tiers::OF_AZURE, false)?;
    use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client_options());
    configure!(builder, options, "AZURE_");
    builder = builder.with_container_name(container).with_retry(no_retries());
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    if options.allow_http {
        builder = builder.with_allow_http(true);
    }
    let account = builder.get_config_value(&AzureConfigKey::AccountName).unwrap_or_default();
    let address = match builder.get_config_value(&AzureConfigKey::Endpoint) {
        Some(endpoint) => format!("{}/{container}", endpoint.trim_end_matches('/')),
        None => format!("https://{account}.blob.core.windows.net/{container}"),
    };
    let line = Line::default();
    let service = builder.with_http_connector(line.clone()).build().map_err(|e| e.to_string())?;
    let credentials = Arc::clone(service.credentials());
    let _ = line.signer.set(Signer::Azure { credentials, account });
    let extras: SharedExtras = Arc::new(super::azure::Azure(desk(&line, address, options)?));
    Ok(Opened { service: Arc::new(service), line, sum: Sum::Md5, extras, classes })
}

/// Where requests of our own go, by the same line.
fn desk(
    line: &Line,
    bucket: String,
    options: &StoreOptions,
) -> Result<super::extras::Desk, String> {
    use object_store::client::HttpConnector as _;
    let client = client_options().with_allow_http(options.allow_http);
    let client = line.connect(&client).map_err(|e| e.to_string())?;
    Ok(super::extras::Desk { line: line.clone(), client, bucket })
}
