//! What a client gives away to somebody who only says that it is the server.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use super::Wire;
use crate::connection::Parameters;
use crate::session::{Session, Source};

const OK: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 0];
const PLAIN: &[u8] = &[b'R', 0, 0, 0, 8, 0, 0, 0, 3];
const MD5: &[u8] = &[b'R', 0, 0, 0, 12, 0, 0, 0, 5, 1, 2, 3, 4];

fn offer(mechanisms: &[&str]) -> Vec<u8> {
    let mut body = 10u32.to_be_bytes().to_vec();
    for name in mechanisms {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    body.push(0);
    [b"R".as_slice(), &(body.len() as u32 + 4).to_be_bytes(), &body].concat()
}

/// Takes one client, says each of `words` after what the client said before it, and returns what it
/// was sent after the first message, which has no secret.
fn stranger(folder: &Path, words: Vec<Vec<u8>>) -> JoinHandle<Vec<u8>> {
    let path = folder.join(".s.PGSQL.5432");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        client.read_exact(&mut length).unwrap();
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        client.read_exact(&mut startup).unwrap();
        let mut heard = Vec::new();
        let count = words.len();
        for (at, word) in words.into_iter().enumerate() {
            // A client that hung up says with that all that is left to say.
            if client.write_all(&word).is_err() {
                break;
            }
            if at + 1 < count {
                let mut head = [0; 5];
                if client.read_exact(&mut head).is_err() {
                    break;
                }
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
                let mut body = vec![0; length as usize - 4];
                client.read_exact(&mut body).unwrap();
                heard.extend([&head[..], &body].concat());
            }
        }
        let _ = client.read_to_end(&mut heard);
        heard
    })
}

fn source(connection: &str) -> Source {
    Source { name: "main".to_owned(), connection: connection.to_owned(), data_directory: None }
}

#[test]
fn whoever_wants_a_bound_login_tells_nothing_before_it_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let connection =
        format!("host={} user=me password=secret channel_binding=require", folder.path().display());
    for (what, word) in [
        ("lets everybody in", OK.to_vec()),
        ("wants the password", PLAIN.to_vec()),
        ("wants it by MD5", MD5.to_vec()),
        ("has SCRAM without binding", offer(&["SCRAM-SHA-256"])),
        ("has SCRAM with nothing to bind to", offer(&["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])),
        ("wants Kerberos", vec![b'R', 0, 0, 0, 8, 0, 0, 0, 7]),
    ] {
        let heard = stranger(folder.path(), vec![word.clone()]);
        let error = Wire::connect(&Parameters::new(&connection).unwrap()).unwrap_err();
        assert!(error.to_string().contains("channel_binding=require"), "{what}: {error}");
        assert_eq!(heard.join().unwrap(), b"", "{what}");

        let heard = stranger(folder.path(), vec![word]);
        let error = Session::open(&source(&connection)).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{what}: {error}");
        // Nothing but a farewell.
        let heard = heard.join().unwrap();
        assert!(heard.is_empty() || heard == [b'X', 0, 0, 0, 4], "{what}: {heard:?}");
    }
}

#[test]
fn one_who_wants_this_side_to_hash_for_ever_is_left_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let connection = format!("host={} user=me password=secret", folder.path().display());
    let challenge = b"\0\0\0\x0br=abc,s=QSXCR+Q6sek8bf92,i=4294967295";
    let frame = [b"R", &(challenge.len() as u32 + 4).to_be_bytes()[..], challenge].concat();
    let heard = stranger(folder.path(), vec![offer(&["SCRAM-SHA-256"]), frame]);
    let error = Wire::connect(&Parameters::new(&connection).unwrap()).unwrap_err();
    assert!(error.to_string().contains("rounds of hashing"), "{error}");
    assert!(heard.join().unwrap().starts_with(b"p"));
}

#[test]
fn one_who_took_a_proof_and_asks_for_the_password_gets_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let connection = format!("host={} user=me password=secret", folder.path().display());
    let heard = stranger(folder.path(), vec![MD5.to_vec(), PLAIN.to_vec()]);
    Wire::connect(&Parameters::new(&connection).unwrap()).unwrap_err();
    let heard = heard.join().unwrap();
    assert!(heard.starts_with(b"p"), "{heard:?}");
    assert!(!String::from_utf8_lossy(&heard).contains("secret"), "{heard:?}");
}
