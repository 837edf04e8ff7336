//! From a place to a connection that takes queries: encryption, then who is there.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::message::{Message, ServerSaid, string};
use super::{Stream, Wire};
use crate::connection::{Attempt, Endpoint, Parameters};
use crate::{PostgresError, PostgresErrorKind, Result};

/// How many rounds of hashing a server may ask for, which has this side do the work: its own default is
/// 4096, and more than this is nobody's wish but somebody's who wants it to be busy.
const MOST_ROUNDS: u32 = 10_000_000;

/// Logs in to one server, in the ways that `sslmode` leaves open, in their order.
pub(super) fn connect(parameters: &Parameters, endpoint: &Endpoint) -> Result<Wire> {
    let attempts = parameters.attempts(endpoint)?;
    let tls = if attempts == [Attempt::Plain] { None } else { parameters.encryption()? };
    let mut failure: Option<Failure> = None;
    for attempt in attempts {
        let failed = match one(parameters, endpoint, *attempt, tls.clone()) {
            Ok(wire) => return Ok(wire),
            Err(failed) => failed,
        };
        // Only who the server does not let in this way may be let in the other way.
        let again = failed.may_differ;
        failure.get_or_insert(failed);
        if !again {
            break;
        }
    }
    Err(failure.map(|failed| failed.error).unwrap_or_else(|| {
        PostgresError::usage(format!("there is no way to connect to {}", endpoint.place()))
    }))
}

struct Failure {
    error: PostgresError,
    /// With more or less encryption it may go otherwise.
    may_differ: bool,
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Self { error, may_differ: false }
    }
}

fn one(
    parameters: &Parameters,
    endpoint: &Endpoint,
    attempt: Attempt,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Wire, Failure> {
    let deadline = parameters.connect_timeout()?.map(|time| Instant::now() + time);
    let cannot = |error: io::Error| {
        PostgresError::new(
            PostgresErrorKind::Connection,
            format!("could not connect to PostgreSQL on {}: {error}", endpoint.place()),
        )
        .with_hint("check that the server runs, and host and port in `connection`")
        .with_source(error)
        .transient()
    };
    let stream = if endpoint.host.starts_with('/') {
        let path = Path::new(&endpoint.host).join(format!(".s.PGSQL.{}", endpoint.port));
        Stream::Unix(UnixStream::connect(path).map_err(cannot)?)
    } else {
        let socket = tcp(endpoint, deadline).map_err(cannot)?;
        socket.set_nodelay(true).map_err(cannot)?;
        parameters.keep_alive(&socket)?;
        match (attempt, tls) {
            (Attempt::Plain, _) | (_, None) => Stream::Tcp(socket),
            (_, Some(config)) => encrypt(socket, endpoint, config, attempt, deadline)
                // Who only prefers it goes without where it cannot be agreed on.
                .map_err(|error| Failure { error, may_differ: attempt == Attempt::Either })?,
        }
    };
    // The other way is no other where this one was not encrypted already, or is not to be.
    let encrypted = matches!(stream, Stream::Tls(_));
    let other = encrypted == (attempt == Attempt::Either);
    let mut wire = Wire {
        stream,
        buffer: BytesMut::new(),
        place: endpoint.place(),
        reported: Default::default(),
        version: 0,
        broken: false,
    };
    let done = log_in(&mut wire, parameters, endpoint, deadline);
    if done.is_err() {
        wire.broken = true;
    }
    done.map_err(|error| {
        let may_differ = other && attempt.may_differ(&error.code);
        Failure { error: error.error, may_differ }
    })?;
    Ok(wire)
}

fn left(deadline: Option<Instant>) -> io::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
        time => Ok(Some(time)),
    }
}

/// To the first address that answers.
fn tcp(endpoint: &Endpoint, deadline: Option<Instant>) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match &endpoint.address {
        Some(address) => vec![SocketAddr::new(*address, endpoint.port)],
        None => (endpoint.host.as_str(), endpoint.port).to_socket_addrs()?.collect(),
    };
    let mut failure = None;
    for address in addresses {
        let connected = match left(deadline)? {
            Some(time) => TcpStream::connect_timeout(&address, time),
            None => TcpStream::connect(address),
        };
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure
        .unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// Asks the server for TLS and agrees on it.
fn encrypt(
    mut socket: TcpStream,
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
    attempt: Attempt,
    deadline: Option<Instant>,
) -> Result<Stream> {
    use std::io::{Read as _, Write as _};
    let place = endpoint.place();
    let failed = |error: io::Error| tls_failed(&place, &error);
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.set_read_timeout(left(deadline).map_err(failed)?).map_err(failed)?;
    socket.write_all(&request).map_err(failed)?;
    // One byte and no more: what follows in the same breath would not be encrypted.
    let mut answer = [0];
    socket.read_exact(&mut answer).map_err(failed)?;
    match answer {
        [b'S'] => {}
        [b'N'] if attempt == Attempt::Either => return Ok(Stream::Tcp(socket)),
        [b'N'] => {
            return Err(PostgresError::new(
                PostgresErrorKind::Connection,
                format!("the server on {place} has no TLS, and sslmode does not go without"),
            )
            .with_hint("set ssl = on with a certificate on the server, or another sslmode"));
        }
        // An error before TLS cannot be trusted to be the server's.
        _ => {
            return Err(PostgresError::new(
                PostgresErrorKind::Connection,
                format!("what answers on {place} is no PostgreSQL server, or one that refuses"),
            )
            .with_hint("check host and port in `connection`, and the server's log"));
        }
    }
    let name = match endpoint.host.as_str() {
        "" => endpoint.address.map(ServerName::from).ok_or_else(|| {
            PostgresError::usage("TLS needs a host's name or address to be checked")
        })?,
        host => match host.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| {
                PostgresError::usage(format!("{host:?} is no name that a certificate can have"))
            })?,
        },
    };
    let session = ClientConnection::new(config, name)
        .map_err(|error| tls_failed(&place, &io::Error::other(error)))?;
    let mut tls = StreamOwned::new(session, socket);
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock).map_err(failed)?;
    }
    Ok(Stream::Tls(Box::new(tls)))
}

fn tls_failed(place: &str, error: &io::Error) -> PostgresError {
    let said = error.to_string();
    let hint = if said.contains("NotValidForName") || said.contains("not valid for name") {
        "the certificate is for another name: use the name that is in it as host, or \
         sslmode=verify-ca"
    } else if said.contains("UnknownIssuer") {
        "name the file of the authority that signed the server's certificate with sslrootcert"
    } else if said.contains("xpired") {
        "renew the server's certificate, or set this machine's clock"
    } else {
        "check the server's certificate, and sslrootcert, sslcert and sslkey in `connection`"
    };
    PostgresError::new(
        PostgresErrorKind::Connection,
        format!("no encrypted connection with PostgreSQL on {place}: {said}"),
    )
    .with_hint(hint)
}

struct LoginError {
    error: PostgresError,
    /// What the server refuses, by its SQLSTATE; empty where it did not.
    code: String,
}

impl From<PostgresError> for LoginError {
    fn from(error: PostgresError) -> Self {
        Self { error, code: String::new() }
    }
}

fn log_in(
    wire: &mut Wire,
    parameters: &Parameters,
    endpoint: &Endpoint,
    deadline: Option<Instant>,
) -> Result<(), LoginError> {
    const DOING: &str = "log in";
    let user = parameters.user().to_owned();
    let mut out = BytesMut::new();
    let mut pairs = vec![
        ("user", user.as_str()),
        ("replication", "true"),
        ("client_encoding", "UTF8"),
        ("application_name", parameters.application_name()),
    ];
    pairs.extend(parameters.options().map(|options| ("options", options)));
    frontend::startup_message(pairs, &mut out)
        .map_err(|error| PostgresError::usage(format!("the login cannot be sent: {error}")))?;
    wire.send(DOING, &out)?;
    let next = |wire: &mut Wire| -> Result<Message, LoginError> {
        let time = left(deadline).map_err(|error| wire.lost(DOING, &error.to_string()))?;
        match wire.message_within(DOING, time)? {
            Some(Message::Error(said)) => Err(refused(wire, parameters, said)),
            Some(message) => Ok(message),
            None => Err(wire.lost(DOING, "the server took too long to answer").into()),
        }
    };
    // One proof and no second: what asks for another after it is no server that took the first.
    let asked = next(wire)?;
    if !matches!(asked, Message::Authentication(0, _)) {
        authenticate(wire, parameters, endpoint, asked, &next)?;
        if !matches!(next(wire)?, Message::Authentication(0, _)) {
            return Err(wire.strange(DOING).into());
        }
    } else if parameters.channel_binding()? == "require" {
        return Err(unbound(wire).into());
    }
    loop {
        match next(wire)? {
            Message::Ready => break,
            Message::Key => {}
            _ => return Err(wire.strange(DOING).into()),
        }
    }
    let said = wire.reported.get("server_version").cloned().unwrap_or_default();
    wire.version = version_number(&said).ok_or_else(|| wire.strange(DOING))?;
    Ok(())
}

/// Gives what the server asks for to log in. With `channel_binding=require` no secret goes out, nor
/// anything that is made of one, before it is sure that the login will be bound.
fn authenticate(
    wire: &mut Wire,
    parameters: &Parameters,
    endpoint: &Endpoint,
    asked: Message,
    next: &dyn Fn(&mut Wire) -> Result<Message, LoginError>,
) -> Result<(), LoginError> {
    const DOING: &str = "log in";
    let required = parameters.channel_binding()? == "require";
    match asked {
        Message::Authentication(10, mechanisms) => {
            scram(wire, parameters, endpoint, mechanisms, next)
        }
        Message::Authentication(..) if required => Err(unbound(wire).into()),
        Message::Authentication(3, _) => {
            if !wire.stream.is_private() {
                return Err(PostgresError::new(
                    PostgresErrorKind::Connection,
                    format!(
                        "the server on {} asks for the password in plain, over a connection that \
                         others can read",
                        wire.place
                    ),
                )
                .with_hint("use sslmode=require or better, or scram-sha-256 in pg_hba.conf")
                .into());
            }
            let password = password(wire, parameters, endpoint)?;
            Ok(send_password(wire, password.as_bytes())?)
        }
        Message::Authentication(5, salt) => {
            tracing::warn!(
                server = wire.place,
                "the server takes the password by MD5, which is weak: set \
                 password_encryption = 'scram-sha-256' and the password anew"
            );
            let salt = salt.first_chunk::<4>().copied().ok_or_else(|| wire.strange(DOING))?;
            let password = password(wire, parameters, endpoint)?;
            let answer = md5_hash(parameters.user().as_bytes(), password.as_bytes(), salt);
            Ok(send_password(wire, answer.as_bytes())?)
        }
        Message::Authentication(kind, _) => Err(PostgresError::new(
            PostgresErrorKind::Unsupported,
            format!("the server on {} wants a login of the kind {kind}", wire.place),
        )
        .with_hint("let pg_hba.conf ask for scram-sha-256, a certificate, or peer")
        .into()),
        _ => Err(wire.strange(DOING).into()),
    }
}

/// `15.18 (Debian …)` as 150018, `19beta1` as 190000.
fn version_number(said: &str) -> Option<u32> {
    let mut numbers = said.split(|c: char| !c.is_ascii_digit());
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor = match said.contains('.') {
        true => numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0),
        false => 0,
    };
    major.checked_mul(10_000)?.checked_add(minor)
}

fn password(wire: &Wire, parameters: &Parameters, endpoint: &Endpoint) -> Result<String> {
    parameters.password(endpoint, "replication")?.ok_or_else(|| {
        PostgresError::new(
            PostgresErrorKind::Connection,
            format!(
                "the server on {} asks for the password of {:?}, and none is given",
                wire.place,
                parameters.user()
            ),
        )
        .with_hint("set PGPASSWORD, or write it into ~/.pgpass with `replication` as the database")
    })
}

fn send_password(wire: &mut Wire, password: &[u8]) -> Result<()> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)
        .map_err(|_| PostgresError::usage("the password has a zero byte in it"))?;
    wire.send("log in", &out)
}

/// Proves the password without sending it, and that the server knows it too; bound to the encrypted
/// connection where the server can.
fn scram(
    wire: &mut Wire,
    parameters: &Parameters,
    endpoint: &Endpoint,
    mut mechanisms: Bytes,
    next: &dyn Fn(&mut Wire) -> Result<Message, LoginError>,
) -> Result<(), LoginError> {
    const DOING: &str = "log in";
    let mut offered = Vec::new();
    while let Some(name) = string(&mut mechanisms).filter(|name| !name.is_empty()) {
        offered.push(name);
    }
    let has = |name: &str| offered.iter().any(|offered| offered == name);
    let wanted = parameters.channel_binding()?;
    let digest = match wanted {
        "disable" => None,
        _ => wire.stream.certificate().and_then(end_point),
    };
    let (mechanism, binding) = match digest {
        Some(digest) if has(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(digest))
        }
        _ if wanted == "require" => return Err(unbound(wire).into()),
        // Said aloud, so that a server that did offer it notices who removed the offer.
        Some(_) if has(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None if has(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        _ => {
            return Err(PostgresError::new(
                PostgresErrorKind::Unsupported,
                format!("the server on {} offers {} to log in", wire.place, offered.join(", ")),
            )
            .with_hint("let pg_hba.conf ask for scram-sha-256")
            .into());
        }
    };
    let cannot = |wire: &Wire, error: io::Error| {
        PostgresError::new(
            PostgresErrorKind::Connection,
            format!(
                "the server on {} does not prove that it knows the password: {error}",
                wire.place
            ),
        )
        .with_hint("is it the server that it should be? check host and sslmode")
    };
    let password = password(wire, parameters, endpoint)?;
    let mut proof = ScramSha256::new(password.as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, proof.message(), &mut out)
        .map_err(|error| cannot(wire, error))?;
    wire.send(DOING, &out)?;
    let Message::Authentication(11, challenge) = next(wire)? else {
        return Err(wire.strange(DOING).into());
    };
    if rounds(&challenge).is_none_or(|rounds| rounds > MOST_ROUNDS) {
        let what = "it asks for more rounds of hashing than any server does";
        return Err(cannot(wire, io::Error::other(what)).into());
    }
    proof.update(&challenge).map_err(|error| cannot(wire, error))?;
    let mut out = BytesMut::new();
    frontend::sasl_response(proof.message(), &mut out).map_err(|error| cannot(wire, error))?;
    wire.send(DOING, &out)?;
    let Message::Authentication(12, end) = next(wire)? else {
        return Err(wire.strange(DOING).into());
    };
    Ok(proof.finish(&end).map_err(|error| cannot(wire, error))?)
}

/// How many rounds of hashing the first answer of a server asks for.
pub(crate) fn rounds(challenge: &[u8]) -> Option<u32> {
    let part = challenge.split(|byte| *byte == b',').find_map(|part| part.strip_prefix(b"i="))?;
    std::str::from_utf8(part).ok()?.parse().ok()
}

/// What a login is bound to: `tls-server-end-point` of RFC 5929. None where the signature of the
/// certificate has no hash of its own.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.oid.to_string().as_str() {
        // RSA and ECDSA; MD5 and SHA-1 count as SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

fn unbound(wire: &Wire) -> PostgresError {
    PostgresError::new(
        PostgresErrorKind::Connection,
        format!(
            "the login on {} cannot be bound to the encrypted connection, which \
             channel_binding=require wants",
            wire.place
        ),
    )
    .with_hint("it takes TLS, and scram-sha-256 in pg_hba.conf")
}

fn refused(wire: &Wire, parameters: &Parameters, said: ServerSaid) -> LoginError {
    let hint = match said.code.as_str() {
        "28P01" => format!(
            "check the password of {:?}: it comes from `connection`, PGPASSWORD or ~/.pgpass",
            parameters.user()
        ),
        "28000" => format!(
            "pg_hba.conf needs a line for the database `replication` and the user {:?}",
            parameters.user()
        ),
        "42501" => format!("ALTER ROLE {:?} REPLICATION", parameters.user()),
        "53300" => "raise max_wal_senders on the server".to_owned(),
        "57P03" => "the server is starting up or shutting down; try again".to_owned(),
        _ => "look into the server's log".to_owned(),
    };
    let code = said.code.clone();
    let error = PostgresError::new(
        PostgresErrorKind::Connection,
        format!("could not connect to PostgreSQL on {}: {}", wire.place, said.sentence()),
    )
    .with_hint(hint);
    // Wrong passwords and missing rights do not mend themselves.
    let error = match said.code.as_str() {
        "28P01" | "28000" | "42501" => error,
        _ => error.transient(),
    };
    LoginError { error: error.with_source(said), code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_those_that_are_asked_for() {
        assert_eq!(rounds(b"r=a,s=QSXC,i=4096"), Some(4096));
        for wrong in ["r=a,s=QSXC", "r=a,s=QSXC,i=", "r=a,i=-1,s=b", "i=99999999999", ""] {
            assert_eq!(rounds(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn versions_are_read_as_servers_write_them() {
        for (said, number) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("13.0", Some(130_000)),
            ("19beta1", Some(190_000)),
            ("18", Some(180_000)),
            ("", None),
            ("devel", None),
        ] {
            assert_eq!(version_number(said), number, "{said}");
        }
    }
}
