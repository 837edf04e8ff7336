//! What opens a repository: key files, passphrases, age identities and services that keep keys, and
//! where they come from.
//!
//! Secrets are read from files, from the output of a command, or from one variable. They are never
//! an argument, and no message here repeats one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use backstay_repo::{Environment, Identity, KeyService, Secret};
use backstay_store::{AwsKmsOptions, KeyServiceError, VaultOptions};
use zeroize::Zeroizing;

use crate::Result;
use crate::config::{AwsKmsKeys, RepositoryConfig, Search, VaultKeys, Warning};
use crate::error::{Error, ErrorKind, plain};

/// The variable that holds a passphrase.
pub const PASSPHRASE_VARIABLE: &str = "BACKSTAY_PASSPHRASE";

/// A key file longer than this is not a key file. Bytes.
const LONGEST: u64 = 1 << 20;

/// The secret of a repository, and what is unwise about where it lies.
///
/// # Errors
/// Configuration, when there is none or it cannot be read.
pub fn secret_of(repository: &RepositoryConfig, search: &Search) -> Result<(Secret, Vec<Warning>)> {
    let keys = &repository.keys;
    let mut warnings = Vec::new();
    if let Some(path) = &keys.key_file {
        let secret = key_file(path, &mut warnings)?;
        return Ok((secret, warnings));
    }
    if let Some(path) = &keys.passphrase_file {
        let secret = passphrase_file(path, &mut warnings)?;
        return Ok((secret, warnings));
    }
    if let Some((program, arguments)) = keys.passphrase_command.split_first() {
        return Ok((passphrase_command(program, arguments)?, warnings));
    }
    if let Some(path) = &keys.identity {
        return Ok((identity_file(path, &mut warnings)?, warnings));
    }
    if let Some(keys) = &keys.aws_kms {
        return Ok((aws_kms(keys)?, warnings));
    }
    if let Some(keys) = &keys.vault {
        return Ok((vault(keys)?, warnings));
    }
    if let Some(passphrase) = search.passphrase() {
        let secret = Secret::passphrase(passphrase).map_err(|e| Error::from(e).into_config())?;
        return Ok((secret, warnings));
    }
    if !repository.configured {
        return Err(Error::usage(
            format!("nothing says how {} is opened", keys.url),
            format!("say --key-file PATH, or set {PASSPHRASE_VARIABLE}"),
        ));
    }
    Err(Error::new(
        ErrorKind::Configuration,
        format!("nothing says how the repository `{}` is opened", repository.name),
    )
    .with_hint(format!(
        "give it a key-file, a passphrase-file, a passphrase-command, an identity, aws-kms or \
         vault, set {PASSPHRASE_VARIABLE}, or say --key-file PATH"
    )))
}

/// Reads a key file.
pub fn key_file(path: &Path, warnings: &mut Vec<Warning>) -> Result<Secret> {
    let bytes = read_secret(path, "key file", warnings)?;
    Secret::key_file(bytes.to_vec()).map_err(|error| {
        let error = Error::from(error);
        let hint = error.hint().unwrap_or("name another file").to_owned();
        Error::new(ErrorKind::Configuration, format!("{} cannot be used: {error}", path.display()))
            .with_hint(hint)
    })
}

/// Reads an age identity file.
pub fn identity_file(path: &Path, warnings: &mut Vec<Warning>) -> Result<Secret> {
    let bytes = read_secret(path, "identity file", warnings)?;
    let refused = |why: String, hint: &str| {
        Error::new(ErrorKind::Configuration, format!("{} cannot be used: {why}", path.display()))
            .with_hint(hint.to_owned())
    };
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| refused("it is no text".to_owned(), "name a file that `age-keygen` wrote"))?;
    Identity::read_file(text).map(Secret::Identities).map_err(|error| {
        refused(error.to_string(), error.hint().unwrap_or("name a file that `age-keygen` wrote"))
    })
}

/// A key in AWS KMS. Asks nobody yet.
pub fn aws_kms(keys: &AwsKmsKeys) -> Result<Secret> {
    let options = AwsKmsOptions {
        key: keys.key.clone(),
        region: keys.region.clone(),
        endpoint: keys.endpoint.clone(),
        allow_http: keys.allow_http,
        ..AwsKmsOptions::default()
    };
    KeyService::aws_kms(&options).map(Secret::Service).map_err(of_service)
}

/// A key in Vault. Asks nobody yet.
pub fn vault(keys: &VaultKeys) -> Result<Secret> {
    let options = VaultOptions {
        key: keys.key.clone(),
        mount: Some(keys.mount.clone()),
        address: keys.address.clone(),
        namespace: keys.namespace.clone(),
        token_file: keys.token_file.clone(),
        ca_file: keys.ca_file.clone(),
        allow_http: keys.allow_http,
        ..VaultOptions::default()
    };
    KeyService::vault(&options).map(Secret::Service).map_err(of_service)
}

fn of_service(error: KeyServiceError) -> Error {
    let it = Error::new(ErrorKind::Configuration, error.to_string());
    match error.hint() {
        Some(hint) => it.with_hint(hint),
        None => it,
    }
}

/// Reads a passphrase from the first line of a file.
pub fn passphrase_file(path: &Path, warnings: &mut Vec<Warning>) -> Result<Secret> {
    let bytes = read_secret(path, "passphrase file", warnings)?;
    let named = format!("the first line of {}", path.display());
    first_line(&bytes, &named)
}

fn passphrase_command(program: &str, arguments: &[String]) -> Result<Secret> {
    // The command may carry secrets itself in its arguments: only the program is named.
    let failed = |what: String| {
        Error::new(ErrorKind::Configuration, format!("the passphrase-command `{program}` {what}"))
            .with_hint("run it by hand: it has to print the passphrase as its first line")
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("could not be started: {}", plain(&error))))?;
    let mut bytes = Zeroizing::new(Vec::new());
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(LONGEST)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(format!("could not be read: {}", plain(&error))))?;
    }
    let status = child
        .wait()
        .map_err(|error| failed(format!("could not be waited for: {}", plain(&error))))?;
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    first_line(&bytes, &format!("the output of the passphrase-command `{program}`"))
}

fn first_line(bytes: &[u8], named: &str) -> Result<Secret> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let unusable = |why: &str| {
        Error::new(ErrorKind::Configuration, format!("{named} {why}"))
            .with_hint("it has to be the passphrase alone")
    };
    let text = std::str::from_utf8(line).map_err(|_| unusable("is no text"))?;
    if text.is_empty() {
        return Err(unusable("is empty"));
    }
    Ok(Secret::passphrase(text)?)
}

fn read_secret(path: &Path, what: &str, warnings: &mut Vec<Warning>) -> Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => {
                "correct the path, or run `backstay init` to make a repository with a new key"
            }
            _ => "run it as a user who may read it",
        };
        Error::new(
            ErrorKind::Configuration,
            format!("could not read the {what} {}: {}", path.display(), plain(&error)),
        )
        .with_hint(hint)
    })?;
    let mode = file.metadata().map_or(0, |meta| meta.permissions().mode());
    if mode & 0o077 != 0 {
        warnings.push(Warning {
            message: format!("the {what} {} can be read by others", path.display()),
            hint: format!("run `chmod 600 {}`", path.display()),
        });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::new(
            ErrorKind::Configuration,
            format!("{} is no {what}: it is longer than 1 MiB", path.display()),
        )
        .with_hint("name another file"));
    }
    Ok(bytes)
}

/// Makes a key file of 32 random bytes that only its owner may read. One that is there is left as
/// it is. True when it was made.
pub fn create_key_file(path: &Path, env: &Environment) -> Result<bool> {
    create(path, || Ok(Zeroizing::new(env.random::<32>().to_vec())))
}

/// Writes what `make` makes into a key file that must not be there yet; whether it was not. The file is
/// there, and can be written, before anything is made.
pub fn create(path: &Path, make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>>) -> Result<bool> {
    // A bare name has an empty parent, which is no folder that could be opened.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(Error::io("create the key file", path, error)),
    };
    let written = make().and_then(|key| {
        let mut write = || {
            file.write_all(&key)?;
            file.sync_all()?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|error| Error::io("write the key file", path, error))
    });
    if let Err(error) = written {
        // Half a key must not be taken for one.
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(true)
}

impl Error {
    /// The same, as a mistake of the configuration.
    fn into_config(self) -> Self {
        let it = Self::new(ErrorKind::Configuration, self.to_string());
        match self.hint() {
            Some(hint) => it.with_hint(hint),
            None => it,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Config;

    fn repository(keys: &str, folder: &Path) -> RepositoryConfig {
        let text = format!("[repositories.main]\nurl = \"/b\"\n{keys}");
        let search = Search { current: folder.to_path_buf(), ..Search::default() };
        let file = folder.join("backstay.toml");
        Config::read(&text, Some(&file), &search).unwrap().repositories.remove(0)
    }

    fn with_mode(path: &Path, content: &[u8], mode: u32) {
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_file_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/main.key");
        assert!(create_key_file(&path, &Environment::system()).unwrap());
        let first = std::fs::read(&path).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!create_key_file(&path, &Environment::system()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }

    #[test]
    fn a_key_file_that_others_can_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        with_mode(&path, &[7; 32], 0o640);
        let it = repository("key-file = \"k\"", folder.path());
        let (secret, warnings) = secret_of(&it, &Search::default()).unwrap();
        assert!(matches!(secret, Secret::KeyFile(_)));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].hint.starts_with("run `chmod 600 "));
        with_mode(&path, &[7; 32], 0o600);
        assert!(secret_of(&it, &Search::default()).unwrap().1.is_empty());
    }

    #[test]
    fn a_key_file_that_is_too_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        with_mode(&folder.path().join("k"), b"short", 0o600);
        let it = repository("key-file = \"k\"", folder.path());
        let error = secret_of(&it, &Search::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains("holds 5 bytes"), "{error}");
    }

    #[test]
    fn passphrases_come_from_a_file_a_command_or_the_variable() {
        let folder = tempfile::tempdir().unwrap();
        with_mode(&folder.path().join("p"), b"correct horse\nrest\n", 0o600);
        let cases = ["passphrase-file = \"p\"", "passphrase-command = [\"echo\", \"battery\"]", ""];
        let mut search = Search { current: PathBuf::from("/"), ..Search::default() };
        search.variables.insert(PASSPHRASE_VARIABLE.into(), "staple".into());
        for case in cases {
            let it = repository(case, folder.path());
            let (secret, _) = secret_of(&it, &search).unwrap();
            assert!(matches!(secret, Secret::Passphrase(_)), "{case}");
        }
    }

    #[test]
    fn an_identity_file_is_read_and_one_that_others_can_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        const KEY: &str =
            "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
        let path = folder.path().join("id.txt");
        with_mode(&path, format!("# made today\n{KEY}\n").as_bytes(), 0o644);
        let it = repository("identity = \"id.txt\"", folder.path());
        let (secret, warnings) = secret_of(&it, &Search::default()).unwrap();
        assert!(matches!(secret, Secret::Identities(all) if all.len() == 1));
        assert_eq!(warnings.len(), 1);
        for (content, what) in [
            (KEY.replace("EGAEX", "EGAEZ").as_bytes(), "line 1 is no age identity"),
            (b"age-encryption.org/v1\n-> scrypt", "it is encrypted itself"),
            (&[0xff, 0xfe], "it is no text"),
        ] {
            with_mode(&path, content, 0o600);
            let error = secret_of(&it, &Search::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration);
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.hint().is_some() && !format!("{error:?}").contains("GFPYYSJZ"));
        }
    }

    #[test]
    fn no_message_repeats_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let it = repository(
            "passphrase-command = [\"sh\", \"-c\", \"echo hunter2; exit 3\"]",
            folder.path(),
        );
        let error = secret_of(&it, &Search::default()).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.hint());
        assert!(!shown.contains("hunter2"), "{shown}");
        let it = repository("passphrase-command = [\"false\"]", folder.path());
        let error = secret_of(&it, &Search::default()).unwrap_err();
        assert!(error.to_string().contains("exit status: 1"), "{error}");
    }

    #[test]
    fn nothing_that_opens_it_says_what_to_do() {
        let it = repository("", Path::new("/"));
        let error = secret_of(&it, &Search::default()).unwrap_err();
        assert!(error.hint().unwrap().contains("--key-file"));
    }
}
