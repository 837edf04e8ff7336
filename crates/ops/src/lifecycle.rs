//! Rules by which a cloud itself moves packs to a colder class, and removes the parts of uploads
//! that nobody finishes.
//!
//! Packs only, and only to classes that answer at once: lists of files lie among them.

use backstay_store::Later;
use serde_json::{Value, json};

use crate::privilege::Cloud;

/// After how many days packs are moved, and where to, when nobody says otherwise. The cold classes
/// charge for a month at least.
const AGE: u64 = 30;
/// After how many days an upload is given up. No pack takes that long.
const UPLOADS: u32 = 7;
/// Smaller packs would cost more there: each object is charged as if it had 128 KiB.
const SMALL: u32 = 1 << 20;

/// The classes of a cloud, and what the four words for them mean there.
fn class(cloud: Cloud, word: &str) -> &str {
    let words = ["hot", "warm", "cold", "archive"];
    let known = match cloud {
        Cloud::S3 => ["STANDARD", "STANDARD_IA", "GLACIER_IR", "DEEP_ARCHIVE"],
        Cloud::Gcs => ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
        Cloud::Azure => ["Hot", "Cool", "Cold", "Archive"],
    };
    words.iter().zip(known).find(|(known, _)| **known == word).map_or(word, |(_, class)| class)
}

/// The rules for a repository at `bucket`, below `prefix` (without slashes at its ends), as the
/// cloud's own tool takes them. `later` is what the configuration says; the store has checked it.
pub fn lifecycle(cloud: Cloud, bucket: &str, prefix: &str, later: &[Later]) -> Value {
    let usual = match cloud {
        Cloud::S3 => "GLACIER_IR",
        Cloud::Gcs => "NEARLINE",
        Cloud::Azure => "Cool",
    };
    let mut moves: Vec<(&str, u64)> = later
        .iter()
        .map(|one| (class(cloud, &one.class), one.after.as_secs().div_ceil(86_400)))
        .collect();
    if moves.is_empty() {
        moves.push((usual, AGE));
    }
    let packs = if prefix.is_empty() { "packs/".to_owned() } else { format!("{prefix}/packs/") };
    match cloud {
        Cloud::S3 => json!({ "Rules": [
            {
                "ID": "backstay-packs-grow-cold",
                "Status": "Enabled",
                "Filter": { "And": { "Prefix": packs, "ObjectSizeGreaterThan": SMALL } },
                "Transitions": moves
                    .iter()
                    .map(|(class, days)| json!({ "Days": days, "StorageClass": class }))
                    .collect::<Vec<_>>(),
            },
            {
                "ID": "backstay-unfinished-uploads",
                "Status": "Enabled",
                "Filter": { "Prefix": packs },
                "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": UPLOADS },
            },
        ] }),
        Cloud::Gcs => {
            let mut from = vec![class(cloud, "hot")];
            let mut rules: Vec<Value> = Vec::new();
            for (class, days) in &moves {
                rules.push(json!({
                    "action": { "type": "SetStorageClass", "storageClass": class },
                    "condition": {
                        "age": days,
                        "matchesPrefix": [packs],
                        "matchesStorageClass": from,
                    },
                }));
                from.push(class);
            }
            rules.push(json!({
                "action": { "type": "AbortIncompleteMultipartUpload" },
                "condition": { "age": UPLOADS, "matchesPrefix": [packs] },
            }));
            json!({ "lifecycle": { "rule": rules } })
        }
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
                let text = lifecycle(cloud, "bucket", prefix, &[]).to_string();
                for never in ["\"GLACIER\"", "DEEP_ARCHIVE", "tierToArchive", "index", "keys"] {
                    assert!(!text.contains(never), "{never}: {text}");
                }
                assert!(text.contains("packs/"), "{text}");
                assert_eq!(text.contains("some/where/packs/"), !prefix.is_empty(), "{text}");
            }
        }
        let azure = lifecycle(Cloud::Azure, "container", "p", &[]).to_string();
        assert!(azure.contains("container/p/packs/"), "{azure}");
    }
    #[test]
    fn ages_of_the_configuration_are_the_clouds_rules() {
        let day = std::time::Duration::from_secs(86_400);
        let later = [("warm", 30), ("cold", 90)]
            .map(|(class, days)| Later { class: class.to_owned(), after: day * days });
        let s3 = lifecycle(Cloud::S3, "b", "p", &later);
        assert_eq!(
            s3["Rules"][0]["Transitions"],
            json!([
                { "Days": 30, "StorageClass": "STANDARD_IA" },
                { "Days": 90, "StorageClass": "GLACIER_IR" },
            ])
        );
        let google = lifecycle(Cloud::Gcs, "b", "p", &later);
        let second = &google["lifecycle"]["rule"][1];
        assert_eq!(second["action"]["storageClass"], "COLDLINE");
        assert_eq!(second["condition"]["age"], 90);
        assert_eq!(second["condition"]["matchesStorageClass"], json!(["STANDARD", "NEARLINE"]));
    }
}
