//! The format of age (age-encryption.org/v1), as far as a slot needs it: a small content sealed to
//! X25519 recipients, in the armoured form. Any implementation of age opens what is written here,
//! and what `age-keygen` writes opens it here.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <ephemeral public key>
//! <file key, sealed: ChaCha20-Poly1305 under HKDF(shared secret, ephemeral ‖ recipient, "age-encryption.org/v1/X25519")>
//! --- <HMAC-SHA-256 of all above under HKDF(file key, "", "header")>
//! <16 bytes nonce><content, sealed under HKDF(file key, nonce, "payload")>
//! ```
//!
//! Written here on the one cryptography library that is linked anyway: the `age` crate brings
//! another four and a translation framework.

use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::hmac;
use backstay_store::Environment;
use base64ct::{Base64, Base64Unpadded, Encoding};
use zeroize::Zeroizing;

use super::bech32;
use crate::crypto::derive;
use crate::{RepoError, RepoErrorKind, Result};

const VERSION: &str = "age-encryption.org/v1";
const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
/// A nonce, and the tag of the only piece.
const PAYLOAD_OVERHEAD: usize = 16 + 16;
/// The content is one piece of the stream, which may hold so much. Bytes.
const PIECE: usize = 64 << 10;
/// Of a file that is read. Bytes.
const LONGEST: usize = 128 << 10;

/// Whom something is sealed to: the public half of an age key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Recipient([u8; 32]);

impl Recipient {
    /// Reads `age1…`.
    ///
    /// # Errors
    /// Usage, for what is mistyped or another kind of recipient.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let refused = |what: &str, hint: &str| {
            RepoError::new(RepoErrorKind::Usage, what).with_hint(hint.to_owned())
        };
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(refused(
                "this is an age identity, which is secret, and no recipient",
                "`age-keygen -y FILE` prints the recipient of an identity file",
            ));
        }
        let public = match bech32::decode(text) {
            Some((name, bytes)) if name == "age" => <[u8; 32]>::try_from(&bytes[..]).ok(),
            Some((name, _)) if name.starts_with("age") => {
                return Err(refused(
                    &format!("{text} is a recipient of another kind than X25519"),
                    "name one that `age-keygen` made: age1 and 58 more letters",
                ));
            }
            _ => None,
        };
        let public = public.map(Self).ok_or_else(|| {
            let hint = if text.starts_with("ssh-") {
                "keys of SSH are not taken; make one with `age-keygen`"
            } else {
                "it is `age1` and 58 letters and digits, as `age-keygen -y FILE` prints it"
            };
            refused(&format!("{text:?} is no age recipient"), hint)
        })?;
        // A point of small order would give everybody the same secret.
        if public.agree(&Zeroizing::new([9; 32])).is_none() {
            return Err(refused(
                &format!("{text} is a recipient that anybody could open"),
                "make one with `age-keygen`",
            ));
        }
        Ok(public)
    }

    fn agree(&self, secret: &Zeroizing<[u8; 32]>) -> Option<Zeroizing<[u8; 32]>> {
        let private = PrivateKey::from_private_key(&X25519, secret.as_slice()).ok()?;
        agreement::agree(&private, UnparsedPublicKey::new(&X25519, &self.0), (), |shared| {
            <[u8; 32]>::try_from(shared).map(Zeroizing::new).map_err(|_| ())
        })
        .ok()
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bech32::encode("age", &self.0))
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// What opens what was sealed to a recipient. Never printed.
#[derive(Clone)]
pub struct Identity {
    secret: Zeroizing<[u8; 32]>,
    recipient: Recipient,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.recipient)
    }
}

impl Identity {
    fn new(secret: Zeroizing<[u8; 32]>) -> Option<Self> {
        let private = PrivateKey::from_private_key(&X25519, secret.as_slice()).ok()?;
        let public = private.compute_public_key().ok()?;
        let recipient = Recipient(public.as_ref().try_into().ok()?);
        Some(Self { secret, recipient })
    }

    pub fn recipient(&self) -> Recipient {
        self.recipient
    }

    /// The identities in a file as `age-keygen` writes it.
    ///
    /// # Errors
    /// Usage, with the line that cannot be used; no message repeats it.
    pub fn read_file(text: &str) -> Result<Vec<Self>> {
        let refused = |what: String, hint: &str| {
            RepoError::new(RepoErrorKind::Usage, what).with_hint(hint.to_owned())
        };
        const HINT: &str = "it holds lines that begin with AGE-SECRET-KEY-1, as `age-keygen` \
                            writes them";
        if text.starts_with(BEGIN) || text.starts_with(VERSION) {
            return Err(refused(
                "it is encrypted itself".to_owned(),
                "let `age -d` open the slot with it, and use what it gives as a key file: docs/keys.md \
                 says how",
            ));
        }
        let mut identities = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = number + 1;
            let upper = Zeroizing::new(line.to_ascii_uppercase());
            if upper.starts_with("AGE-PLUGIN-") || upper.starts_with("AGE-SECRET-KEY-PQ-") {
                return Err(refused(
                    format!("line {number} is an identity of another kind than X25519"),
                    HINT,
                ));
            }
            let identity = match bech32::decode(line) {
                Some((name, bytes)) if name == "age-secret-key-" => {
                    <[u8; 32]>::try_from(&bytes[..])
                        .ok()
                        .and_then(|secret| Self::new(Zeroizing::new(secret)))
                }
                _ => None,
            };
            identities.push(
                identity
                    .ok_or_else(|| refused(format!("line {number} is no age identity"), HINT))?,
            );
        }
        if identities.is_empty() {
            return Err(refused("it holds no age identity".to_owned(), HINT));
        }
        Ok(identities)
    }
}

fn chacha(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes"))
}

fn open(key: &[u8; 32], nonce: [u8; 12], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut plain = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let length = chacha(key).open_in_place(nonce, Aad::empty(), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

fn seal(key: &[u8; 32], nonce: [u8; 12], plain: &[u8]) -> Vec<u8> {
    let mut sealed = plain.to_vec();
    chacha(key)
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .expect("a slot's secret is far below the limit");
    sealed
}

/// The nonce of the last piece of a stream that has only one.
const LAST: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

fn wrap_key(shared: &[u8; 32], ephemeral: &[u8; 32], recipient: &Recipient) -> Zeroizing<[u8; 32]> {
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(ephemeral);
    salt[32..].copy_from_slice(&recipient.0);
    Zeroizing::new(derive(shared, &salt, &[b"age-encryption.org/v1/X25519"]))
}

fn header_key(file_key: &[u8]) -> hmac::Key {
    let key = Zeroizing::new(derive::<32>(file_key, &[], &[b"header"]));
    hmac::Key::new(hmac::HMAC_SHA256, key.as_slice())
}

/// Seals `content`, of at most 64 KiB, to a recipient; armoured.
pub(crate) fn encrypt(recipient: &Recipient, content: &[u8], env: &Environment) -> String {
    debug_assert!(content.len() <= PIECE);
    let file_key = Zeroizing::new(env.random::<16>());
    let secret = Zeroizing::new(env.random::<32>());
    let ephemeral = Identity::new(secret).expect("any 32 bytes are a private key of X25519");
    let shared =
        recipient.agree(&ephemeral.secret).expect("recipients of small order were refused");
    let wrap = wrap_key(&shared, &ephemeral.recipient.0, recipient);
    let mut header = format!(
        "{VERSION}\n-> X25519 {}\n{}\n---",
        Base64Unpadded::encode_string(&ephemeral.recipient.0),
        Base64Unpadded::encode_string(&seal(&wrap, [0; 12], file_key.as_slice())),
    );
    let mac = hmac::sign(&header_key(file_key.as_slice()), header.as_bytes());
    header.push_str(&format!(" {}\n", Base64Unpadded::encode_string(mac.as_ref())));
    let nonce: [u8; 16] = env.random();
    let payload = Zeroizing::new(derive(file_key.as_slice(), &nonce, &[b"payload"]));
    let mut file = header.into_bytes();
    file.extend_from_slice(&nonce);
    file.extend(seal(&payload, LAST, content));
    armour(&file)
}

fn armour(file: &[u8]) -> String {
    let text = Base64::encode_string(file);
    let mut out = format!("{BEGIN}\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str(END);
    out.push('\n');
    out
}

fn dearmour(text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    let joined: String = body.lines().map(str::trim).collect();
    Base64::decode_vec(&joined).ok()
}

/// Why something is not opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is sealed to somebody else.
    NotOurs,
    /// It is not what it should be.
    Damaged(&'static str),
}

/// Opens what was sealed to one of `identities`.
pub(crate) fn decrypt(
    identities: &[Identity],
    armoured: &str,
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    if armoured.len() > LONGEST {
        return Err(Refused::Damaged("it is too long"));
    }
    let file = dearmour(armoured).ok_or(Refused::Damaged("it is no armoured file of age"))?;
    let (header, mac, payload) = parse(&file).ok_or(Refused::Damaged("it is no file of age"))?;
    let file_key = header
        .stanzas
        .iter()
        .flat_map(|stanza| identities.iter().map(move |identity| (stanza, identity)))
        .find_map(|(stanza, identity)| {
            let shared = Recipient(stanza.ephemeral).agree(&identity.secret)?;
            let wrap = wrap_key(&shared, &stanza.ephemeral, &identity.recipient);
            open(&wrap, [0; 12], &stanza.body).filter(|key| key.len() == 16)
        })
        .ok_or(Refused::NotOurs)?;
    hmac::verify(&header_key(&file_key), header.text, &mac)
        .map_err(|_| Refused::Damaged("its header was altered"))?;
    let (nonce, sealed) = payload
        .split_at_checked(16)
        .filter(|(_, sealed)| sealed.len() <= PIECE + PAYLOAD_OVERHEAD)
        .ok_or(Refused::Damaged("it is cut short"))?;
    let key = Zeroizing::new(derive(&file_key, nonce, &[b"payload"]));
    open(&key, LAST, sealed).ok_or(Refused::Damaged("its content was altered"))
}

/// What [`opens_for_fuzzing`] opens.
pub(crate) fn sample_for_fuzzing(env: &Environment) -> String {
    let identity = Identity::new(Zeroizing::new([42; 32]));
    identity.map(|it| encrypt(&it.recipient(), &[1; 32], env)).unwrap_or_default()
}

/// For [`internals`](crate::internals).
pub(crate) fn opens_for_fuzzing(text: &str) -> bool {
    Identity::new(Zeroizing::new([42; 32])).is_some_and(|it| decrypt(&[it], text).is_ok())
}

struct Header<'a> {
    /// All that the code at its end is about.
    text: &'a [u8],
    stanzas: Vec<Stanza>,
}

/// One recipient of the kind that is known here; others are passed over.
struct Stanza {
    ephemeral: [u8; 32],
    body: Vec<u8>,
}

/// A header, its code, and what follows.
fn parse(file: &[u8]) -> Option<(Header<'_>, Vec<u8>, &[u8])> {
    let mut at = 0;
    let mut line = || {
        let rest = file.get(at..)?;
        let length = rest.iter().position(|byte| *byte == b'\n')?;
        at += length + 1;
        std::str::from_utf8(rest.get(..length)?).ok().map(|text| (text, at - length - 1, at))
    };
    if line()?.0 != VERSION {
        return None;
    }
    let mut stanzas = Vec::new();
    let mut next = line()?;
    loop {
        let (text, start, end) = next;
        if let Some(mac) = text.strip_prefix("--- ") {
            let header = Header { text: file.get(..start + 3)?, stanzas };
            return Some((header, Base64Unpadded::decode_vec(mac).ok()?, file.get(end..)?));
        }
        let words: Vec<&str> = text.strip_prefix("-> ")?.split(' ').collect();
        let mut body = Vec::new();
        loop {
            let (text, ..) = line()?;
            body.extend(Base64Unpadded::decode_vec(text).ok()?);
            if text.len() < 64 {
                break;
            }
        }
        if let ["X25519", ephemeral] = words.as_slice() {
            let ephemeral = Base64Unpadded::decode_vec(ephemeral).ok()?;
            stanzas.push(Stanza { ephemeral: ephemeral.try_into().ok()?, body });
        }
        next = line()?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From the documentation of age and `age-keygen -y`.
    const KNOWN: &str =
        "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX";
    const ITS_RECIPIENT: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    fn known() -> Vec<Identity> {
        Identity::read_file(&format!("# created: long ago\n# public key: x\n{KNOWN}\n")).unwrap()
    }

    #[test]
    fn keys_are_those_of_age() {
        assert_eq!(known()[0].recipient().to_string(), ITS_RECIPIENT);
        assert_eq!(Recipient::parse(ITS_RECIPIENT).unwrap(), known()[0].recipient());
    }

    #[test]
    fn what_is_sealed_opens_for_its_recipient_alone() {
        let env = Environment::seeded(4);
        let file = encrypt(&known()[0].recipient(), b"a secret", &env);
        assert_eq!(&**decrypt(&known(), &file).unwrap(), b"a secret");
        let other = Identity::new(Zeroizing::new([1; 32])).unwrap();
        assert_eq!(decrypt(std::slice::from_ref(&other), &file).unwrap_err(), Refused::NotOurs);
        let both = [other, known().remove(0)];
        assert_eq!(&**decrypt(&both, &file).unwrap(), b"a secret");
    }

    #[test]
    fn every_altered_byte_is_found() {
        let file = dearmour(&encrypt(&known()[0].recipient(), &[7; 32], &Environment::seeded(5)));
        let file = file.unwrap();
        for at in 0..file.len() {
            let mut wrong = file.clone();
            wrong[at] ^= 1;
            assert!(decrypt(&known(), &armour(&wrong)).is_err(), "byte {at}");
            assert!(decrypt(&known(), &armour(&file[..at])).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn recipients_and_identities_that_cannot_be_used_say_why() {
        for (text, what) in [
            (KNOWN, "is secret"),
            ("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwk", "no age recipient"),
            ("ssh-ed25519 AAAA", "no age recipient"),
            ("", "no age recipient"),
            (&bech32::encode("age1pq", &[1; 40]), "another kind"),
            (&bech32::encode("age", &[1; 31]), "no age recipient"),
            (&bech32::encode("age", &[0; 32]), "anybody could open"),
        ] {
            let error = Recipient::parse(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(error.hint().is_some());
            assert!(!error.to_string().contains("GFPYYSJZ"), "{error}");
        }
        for (text, what) in [
            ("", "no age identity"),
            ("# only a comment", "no age identity"),
            (&KNOWN.replace("EGAEX", "EGAEZ"), "line 1 is no age identity"),
            (BEGIN, "encrypted itself"),
            ("\nAGE-PLUGIN-YUBIKEY-1AAAA", "line 2 is an identity of another kind"),
        ] {
            let error = Identity::read_file(text).unwrap_err();
            assert!(error.to_string().contains(what), "{text}: {error}");
            assert!(!format!("{error:?}").contains("GFPYYSJZ"), "{error:?}");
        }
        assert!(!format!("{:?}", known()).contains("GFPYYSJZ"));
    }

    proptest! {
        #[test]
        fn any_content_comes_back(secret: [u8; 32], content: Vec<u8>, seed: u64) {
            let identity = Identity::new(Zeroizing::new(secret)).unwrap();
            let file = encrypt(&identity.recipient(), &content, &Environment::seeded(seed));
            prop_assert_eq!(&*decrypt(&[identity], &file).unwrap(), &content);
        }

        #[test]
        fn anything_ends_in_an_answer(bytes: Vec<u8>, text in "(-> |---|X25519|[ \nA-Za-z0-9+/=]){0,40}") {
            let _ = parse(&bytes);
            let _ = parse(format!("{VERSION}\n{text}").as_bytes());
            let _ = decrypt(&known(), &format!("{BEGIN}\n{text}\n{END}"));
            let _ = Identity::read_file(&text);
        }
    }
}
