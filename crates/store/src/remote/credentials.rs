//! The files in which Amazon's own tools keep credentials: `~/.aws/credentials` and
//! `~/.aws/config`, with their profiles.
//!
//! Variables go before files. What is in a file may be renewed by another program while this one
//! runs: it is looked at again before a request when the file has changed. Roles of machines and
//! containers, which come over the network, are the work of `object_store`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

/// What a profile says, by its keys.
type Profile = BTreeMap<String, String>;

/// Where the files are, and which of their profiles is meant.
#[derive(Debug, Clone)]
pub(super) struct Files {
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
    profile: String,
    /// Somebody named it, so that it must be there.
    named: bool,
}

impl Files {
    /// As the variables say, else in the home folder.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let home = variable("HOME").map(|home| Path::new(&home).join(".aws"));
        let path = |name: &str, file: &str| {
            variable(name).map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(file)))
        };
        let named = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
        Self {
            credentials: path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: path("AWS_CONFIG_FILE", "config"),
            named: named.is_some(),
            profile: named.unwrap_or_else(|| "default".to_owned()),
        }
    }

    /// What both files say of the profile; of a key in both, the one with the secrets counts.
    ///
    /// # Errors
    /// A file that is there and cannot be read, and a profile that somebody named and is in none.
    pub(super) fn read(&self) -> Result<Profile, String> {
        let mut profile = Profile::new();
        let mut found = false;
        for (path, of_config) in [(&self.config, true), (&self.credentials, false)] {
            let Some(path) = path else { continue };
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
            };
            if let Some(more) = section(&text, &self.profile, of_config) {
                found = true;
                profile.extend(more);
            }
        }
        if self.named && !found {
            return Err(format!("there is no profile {:?} in the files of AWS", self.profile));
        }
        Ok(profile)
    }

    /// When either file was written last.
    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.config, &self.credentials]
            .map(|path| path.as_ref()?.metadata().ok()?.modified().ok())
    }
}

/// The keys of `[profile]`; `[profile NAME]` in the file of the configuration.
fn section(text: &str, profile: &str, of_config: bool) -> Option<Profile> {
    let mut found = None;
    let mut inside = false;
    for line in text.lines() {
        // What is indented belongs to the key above it, and means nothing here.
        if line.starts_with([' ', '\t', '#', ';']) || line.trim().is_empty() {
            continue;
        }
        if let Some(name) = line.trim().strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default().trim();
            let name = match name.strip_prefix("profile") {
                Some(rest) if of_config && rest.starts_with([' ', '\t']) => rest.trim(),
                _ if of_config && name != "default" => "",
                _ => name,
            };
            inside = name == profile && !name.is_empty();
            if inside {
                found.get_or_insert_with(Profile::new);
            }
            continue;
        }
        if let (true, Some((key, value)), Some(found)) = (inside, line.split_once('='), &mut found)
            && !value.trim().is_empty()
        {
            found.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

/// The keys in a profile, if it has any.
pub(super) fn keys_of(profile: &Profile) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: profile.get("aws_access_key_id")?.clone(),
        secret_key: profile.get("aws_secret_access_key")?.clone(),
        token: profile.get("aws_session_token").cloned(),
    })
}

/// Why a profile without keys cannot be used, where that is known.
pub(super) fn unusable(profile: &Profile) -> Option<String> {
    let key = [
        "credential_process",
        "sso_session",
        "sso_start_url",
        "source_profile",
        "credential_source",
    ]
    .into_iter()
    .find(|key| profile.contains_key(*key))?;
    Some(format!(
        "the profile gets its credentials by {key}, which is not supported; `aws configure \
         export-credentials --format env` prints what to put into the environment"
    ))
}

/// Credentials that are read again when their file has changed.
#[derive(Debug)]
pub(super) struct FromFiles {
    files: Files,
    known: Mutex<([Option<SystemTime>; 2], Arc<AwsCredential>)>,
}

impl FromFiles {
    pub(super) fn new(files: Files, credential: AwsCredential) -> Self {
        let known = Mutex::new((files.changed(), Arc::new(credential)));
        Self { files, known }
    }
}

#[async_trait]
impl CredentialProvider for FromFiles {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        let changed = self.files.changed();
        if changed != known.0
            // A file that is just being written counts when it is whole.
            && let Some(credential) = self.files.read().ok().as_ref().and_then(keys_of)
        {
            *known = (changed, Arc::new(credential));
        }
        Ok(Arc::clone(&known.1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n\
                               # [work]\n[ work ]\naws_access_key_id=C=\n  nested = x\n\
                               AWS_Secret_Access_Key = D\naws_session_token = E\n[empty]\n";
    const CONFIG: &str = "[default]\nregion = here\n[profile work]\nregion=there\ns3 =\n  \
                          max_concurrent_requests = 1\n[work]\nregion = nowhere\n";

    #[test]
    fn profiles_are_found_in_both_kinds_of_files() {
        let default = section(CREDENTIALS, "default", false).unwrap();
        assert_eq!(keys_of(&default).unwrap().secret_key, "B");
        let work = keys_of(&section(CREDENTIALS, "work", false).unwrap()).unwrap();
        assert_eq!((work.key_id.as_str(), work.secret_key.as_str()), ("C=", "D"));
        assert_eq!(work.token.as_deref(), Some("E"));
        assert_eq!(section(CONFIG, "work", true).unwrap()["region"], "there");
        assert_eq!(section(CONFIG, "default", true).unwrap()["region"], "here");
        assert_eq!(section(CREDENTIALS, "empty", false), Some(Profile::new()));
        assert_eq!(section(CREDENTIALS, "other", false), None);
        assert!(unusable(&[("sso_session".to_owned(), "x".to_owned())].into()).is_some());
    }

    proptest! {
        #[test]
        fn no_file_panics(text in "[\\[\\]=a-z \t\n#;é]{0,200}", profile in "[a-z ]{0,4}") {
            for of_config in [true, false] {
                let _ = section(&text, &profile, of_config);
            }
        }
    }
}
