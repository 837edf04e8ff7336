//! What a host that only backs up must be allowed to do in the cloud, and nothing else.
//!
//! Such a host reads, lists, and creates objects that do not exist. It neither overwrites nor
//! removes, and it creates no tombstone and nothing of maintenance: whoever steals its credential
//! can add to the repository, and can take nothing away.

use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};

/// Where a host's objects go. The asterisk is the writer, where it is not a certain one.
const OF_WRITERS: [&str; 4] = ["packs/*", "sessions/*", "snapshots/*", "index/0/*"];
/// Whoever archives or probes writes here too.
const OF_ALL: [&str; 2] = ["wal/*", "probe/*"];

/// Whose privileges are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    S3,
    Gcs,
    Azure,
}

impl Cloud {
    /// The cloud of an address; none for a folder.
    pub fn of(url: &str) -> Option<Self> {
        match url.split_once("://")?.0 {
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Gcs),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }
}

/// A host, and the repository that it may add to.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub bucket: String,
    /// Without slashes at its ends.
    pub prefix: String,
    /// As the cloud calls it; none: a placeholder.
    pub principal: Option<String>,
    /// The only writer it may be: the directory below `packs/`, `snapshots/`, …
    pub writer: Option<String>,
    /// How long it locks what it stores.
    pub lock: Option<Duration>,
}

impl Host {
    /// Of the repository at `url`.
    pub fn of(url: &str) -> Result<Self, Error> {
        let place = url.split_once("://").filter(|_| Cloud::of(url).is_some()).map(|(_, p)| p);
        let Some(place) = place else {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("{url} is no bucket, so there is no policy for it"),
            )
            .with_hint("name one with --repository s3://bucket/prefix, gs://… or az://…"));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            ..Self::default()
        })
    }

    fn below(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// Patterns of the names that it may create.
    fn creates(&self) -> Vec<String> {
        let of_writer = OF_WRITERS.iter().map(|pattern| match &self.writer {
            Some(writer) => pattern.replace('*', &format!("{writer}/*")),
            None => (*pattern).to_owned(),
        });
        of_writer
            .chain(OF_ALL.iter().map(|pattern| (*pattern).to_owned()))
            .map(|pattern| self.below(&pattern))
            .collect()
    }

    /// What to set, as text: a bucket policy for S3, commands for the others.
    pub fn policy(&self, cloud: Cloud) -> String {
        match cloud {
            Cloud::S3 => format!("{:#}", self.s3()),
            Cloud::Gcs => self.gcs(),
            Cloud::Azure => self.azure(),
        }
    }

    /// The policy of an S3 bucket.
    ///
    /// What is denied is denied whatever other policies allow. A creation must carry
    /// `If-None-Match`: so none overwrites. Parts of a large object cannot carry it, and create
    /// nothing; the request that puts them together must.
    pub fn s3(&self) -> Value {
        let bucket = format!("arn:aws:s3:::{}", self.bucket);
        let everything = format!("{bucket}/*");
        let object = |pattern: &String| format!("{bucket}/{pattern}");
        let creates: Vec<String> = self.creates().iter().map(object).collect();
        let placeholder = "arn:aws:iam::111122223333:user/backstay-host";
        let principal = match self.principal.as_deref().unwrap_or(placeholder) {
            "*" => json!("*"),
            arn => json!({ "AWS": arn }),
        };
        let mut list = json!({
            "Sid": "List",
            "Effect": "Allow",
            "Principal": principal,
            "Action": "s3:ListBucket",
            "Resource": bucket,
        });
        if !self.prefix.is_empty() {
            let below = [self.prefix.clone(), format!("{}/*", self.prefix)];
            // Of an object that is missing S3 says so only to who may list, and such a request has
            // no prefix: a condition that demands one would turn "not found" into "denied".
            list["Condition"] = json!({ "StringLikeIfExists": { "s3:prefix": below } });
        }
        let mut statements = vec![
            list,
            json!({
                "Sid": "LookAtLocks",
                "Effect": "Allow",
                "Principal": principal,
                "Action": "s3:GetBucketObjectLockConfiguration",
                "Resource": bucket,
            }),
            json!({
                "Sid": "Read",
                "Effect": "Allow",
                "Principal": principal,
                "Action": ["s3:GetObject", "s3:GetObjectRetention", "s3:GetObjectLegalHold"],
                "Resource": object(&self.below("*")),
            }),
            json!({
                "Sid": "Create",
                "Effect": "Allow",
                "Principal": principal,
                "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
                "Resource": creates,
            }),
            json!({
                "Sid": "NeverOverwrite",
                "Effect": "Deny",
                "Principal": principal,
                "Action": "s3:PutObject",
                "Resource": everything,
                "Condition": {
                    "Null": { "s3:if-none-match": "true" },
                    "Bool": { "s3:ObjectCreationOperation": "true" },
                },
            }),
            json!({
                "Sid": "NowhereElse",
                "Effect": "Deny",
                "Principal": principal,
                "Action": "s3:PutObject",
                "NotResource": creates,
            }),
            json!({
                "Sid": "NeverRemove",
                "Effect": "Deny",
                "Principal": principal,
                "Action": [
                    "s3:BypassGovernanceRetention",
                    "s3:DeleteObject",
                    "s3:DeleteObjectVersion",
                    "s3:PutBucketObjectLockConfiguration",
                    "s3:PutBucketPolicy",
                    "s3:PutBucketVersioning",
                    "s3:PutLifecycleConfiguration",
                    "s3:PutObjectAcl",
                    "s3:PutObjectLegalHold",
                ],
                "Resource": [bucket, everything],
            }),
        ];
        if let Some(period) = self.lock {
            let days = period.as_secs().div_ceil(24 * 3600);
            statements.push(json!({
                "Sid": "Lock",
                "Effect": "Allow",
                "Principal": principal,
                "Action": "s3:PutObjectRetention",
                "Resource": creates,
                "Condition": {
                    "NumericLessThanEquals": {
                        "s3:object-lock-remaining-retention-days": days.to_string(),
                    },
                },
            }));
        }
        json!({ "Version": "2012-10-17", "Statement": statements })
    }

    /// Google Cloud: whoever may not delete may not overwrite either.
    fn gcs(&self) -> String {
        let names = format!("projects/_/buckets/{}/objects/", self.bucket);
        let starts: Vec<String> = self
            .creates()
            .iter()
            .map(|pattern| {
                let start = pattern.trim_end_matches('*');
                format!("resource.name.startsWith('{names}{start}')")
            })
            .collect();
        let member = self
            .principal
            .as_deref()
            .unwrap_or("serviceAccount:backstay-host@PROJECT.iam.gserviceaccount.com");
        let add = |role: &str, title: &str, condition: &str| {
            format!(
                "gcloud storage buckets add-iam-policy-binding gs://{} \\\n  --member='{member}' \
                 --role='{role}' \\\n  --condition=\"title={title},expression={condition}\"\n",
                self.bucket
            )
        };
        let below = if self.prefix.is_empty() { String::new() } else { self.below("") };
        let read = format!(
            "resource.name.startsWith('{names}{below}') || \
             resource.type == 'storage.googleapis.com/Bucket'"
        );
        let lock = match self.lock {
            None => String::new(),
            // No role of Google's own has this right and not that to remove.
            Some(_) => format!(
                "\n# Lock what it creates, and shorten no lock.\n\
                 gcloud iam roles create backstayLock --project=PROJECT \\\n  \
                 --permissions=storage.objects.setRetention\n{}",
                add("projects/PROJECT/roles/backstayLock", "backstay-lock", &starts.join(" || ")),
            ),
        };
        format!(
            "# Conditions need uniform bucket-level access.\n\
             gcloud storage buckets update gs://{} --uniform-bucket-level-access\n\n\
             # Create, and never replace: replacing needs the permission to delete.\n{}\n\
             # Read and list.\n{}{lock}",
            self.bucket,
            add("roles/storage.objectCreator", "backstay-create", &starts.join(" || ")),
            add("roles/storage.objectViewer", "backstay-read", &read),
        )
    }

    /// Azure: a shared access signature that may read, create and list. It cannot be limited to
    /// names that begin alike.
    fn azure(&self) -> String {
        format!(
            "# A stored policy, so that the signature can be revoked; r: read, c: create (never \
             overwrite), l: list.\n\
             az storage container policy create --account-name ACCOUNT --container-name {0} \\\n  \
             --name backstay-host --permissions rcl --expiry 2099-01-01T00:00Z\n\
             # The signature, for the host's AZURE_STORAGE_SAS_KEY; its AZURE_STORAGE_ACCOUNT_NAME \
             is ACCOUNT.\n\
             az storage container generate-sas --account-name ACCOUNT --name {0} \\\n  \
             --policy-name backstay-host --https-only --output tsv\n",
            self.bucket
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let mut host = Host::of("s3://bucket/some/prefix/").unwrap();
        host.writer = Some("0123456789abcdef".to_owned());
        host
    }

    #[test]
    fn a_host_creates_where_it_writes_and_nowhere_else() {
        let creates = host().creates();
        assert!(creates.contains(&"some/prefix/packs/0123456789abcdef/*".to_owned()));
        assert!(creates.contains(&"some/prefix/index/0/0123456789abcdef/*".to_owned()));
        let everybody = Host { writer: None, ..host() }.creates();
        assert!(everybody.contains(&"some/prefix/snapshots/*".to_owned()));
        for pattern in creates.iter().chain(&everybody) {
            for never in ["format", "keys/", "tombstones/", "gc/", "index/1/", "index/heads/"] {
                let never = format!("some/prefix/{never}");
                assert!(!never.starts_with(pattern.trim_end_matches('*')), "{pattern} {never}");
            }
        }
    }

    #[test]
    fn the_s3_policy_allows_no_removal_and_demands_the_condition() {
        let locked = Host { lock: Some(Duration::from_secs(30 * 86_400 + 1)), ..host() };
        for host in [host(), Host { prefix: String::new(), ..host() }, locked] {
            let policy = host.s3();
            let statements = policy["Statement"].as_array().unwrap();
            let of = |effect: &str| {
                let found = statements.iter().filter(|s| s["Effect"] == effect);
                found.map(|s| s["Action"].to_string()).collect::<String>()
            };
            for word in ["Delete", "Bypass", "s3:*", "Policy", "Acl\"", "PutObjectLegalHold"] {
                assert!(!of("Allow").contains(word), "{word}");
            }
            assert!(of("Deny").contains("s3:DeleteObjectVersion"));
            let never = statements.iter().find(|s| s["Sid"] == "NeverOverwrite").unwrap();
            assert_eq!(never["Condition"]["Null"]["s3:if-none-match"], "true");
            let lock = statements.iter().find(|s| s["Sid"] == "Lock");
            assert_eq!(lock.is_some(), host.lock.is_some());
            if let Some(lock) = lock {
                let limit = &lock["Condition"]["NumericLessThanEquals"];
                assert_eq!(limit["s3:object-lock-remaining-retention-days"], "31");
            }
        }
    }

    #[test]
    fn the_other_clouds_get_commands() {
        let gcs = Host::of("gs://b/p").unwrap().policy(Cloud::Gcs);
        assert!(gcs.contains("objectCreator") && gcs.contains("buckets/b/objects/p/packs/"));
        assert!(!gcs.contains("objectAdmin") && !gcs.contains("objectUser"), "{gcs}");
        assert!(!gcs.contains("setRetention"), "{gcs}");
        let mut locking = Host::of("gs://b/p").unwrap();
        locking.lock = Some(Duration::from_secs(86_400));
        let gcs = locking.policy(Cloud::Gcs);
        assert!(gcs.contains("setRetention") && !gcs.contains("overrideUnlocked"), "{gcs}");
        let azure = Host::of("az://c").unwrap().policy(Cloud::Azure);
        assert!(azure.contains("--permissions rcl ") && azure.contains("--container-name c"));
        assert!(Host::of("file:///var/backups").is_err());
    }
}
