//! Rules by which a cloud itself moves packs to a colder class, and removes the parts of uploads
//! that nobody finishes.
//!
//! Packs only, and only to classes that answer at once: lists of files lie among them.

use serde_json::{Value, json};

use crate::privilege::Cloud;

/// After how many days packs are moved. The cold classes charge for a month at least.
const AGE: u32 = 30;
/// After how many days an upload is given up. No pack takes that long.
const UPLOADS: u32 = 7;
/// Smaller packs would cost more there: each object is charged as if it had 128 KiB.
const SMALL: u32 = 1 << 20;

/// The rules for a repository at `bucket`, below `prefix` (without slashes at its ends), as the
/// cloud's own tool takes them.
pub fn lifecycle(cloud: Cloud, bucket: &str, prefix: &str) -> Value {
    let packs = if prefix.is_empty() { "packs/".to_owned() } else { format!("{prefix}/packs/") };
    match cloud {
        Cloud::S3 => json!({ "Rules": [
            {
                "ID": "backstay-packs-grow-cold",
                "Status": "Enabled",
                "Filter": { "And": { "Prefix": packs, "ObjectSizeGreaterThan": SMALL } },
                "Transitions": [{ "Days": AGE, "StorageClass": "GLACIER_IR" }],
            },
            {
                "ID": "backstay-unfinished-uploads",
                "Status": "Enabled",
                "Filter": { "Prefix": packs },
                "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": UPLOADS },
            },
        ] }),
        Cloud::Gcs => json!({ "lifecycle": { "rule": [
            {
                "action": { "type": "SetStorageClass", "storageClass": "NEARLINE" },
                "condition": {
                    "age": AGE,
                    "matchesPrefix": [packs],
                    "matchesStorageClass": ["STANDARD"],
                },
            },
            {
                "action": { "type": "AbortIncompleteMultipartUpload" },
                "condition": { "age": UPLOADS, "matchesPrefix": [packs] },
            },
        ] } }),
        Cloud::Azure => json!({ "rules": [{
            "name": "backstay-packs-grow-cold",
            "enabled": true,
            "type": "Lifecycle",
            "definition": {
                "filters": {
                    "blobTypes": ["blockBlob"],
                    "prefixMatch": [format!("{bucket}/{packs}")],
                },
                "actions": {
                    "baseBlob": { "tierToCool": { "daysAfterCreationGreaterThan": AGE } },
                },
            },
        }] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packs_move_and_never_to_where_they_must_be_fetched_from() {
        for cloud in [Cloud::S3, Cloud::Gcs, Cloud::Azure] {
            for prefix in ["", "some/where"] {
                let text = lifecycle(cloud, "bucket", prefix).to_string();
                for never in ["\"GLACIER\"", "DEEP_ARCHIVE", "tierToArchive", "index", "keys"] {
                    assert!(!text.contains(never), "{never}: {text}");
                }
                assert!(text.contains("packs/"), "{text}");
                assert_eq!(text.contains("some/where/packs/"), !prefix.is_empty(), "{text}");
            }
        }
        let azure = lifecycle(Cloud::Azure, "container", "p").to_string();
        assert!(azure.contains("container/p/packs/"), "{azure}");
    }
}
