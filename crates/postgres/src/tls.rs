//! TLS to a server, in the strengths that libpq's `sslmode` names.

use std::sync::Arc;

use postgres::Socket;
use postgres::tls::MakeTlsConnect;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{PostgresError, Result};

/// How much of the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Encryption against listeners only.
    Nothing,
    /// Signed by somebody trusted; the name in it does not matter.
    Authority,
    /// Signed by somebody trusted, for the name that was asked for.
    Full,
}

/// A way to encrypt a connection, or none.
#[derive(Debug)]
pub(crate) struct Tls(Option<ClientConfig>);

impl Tls {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(
        verify: Verify,
        roots: Option<&str>,
        certificate: Option<&str>,
        key: Option<&str>,
    ) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match verify {
            Verify::Nothing => Arc::new(Lenient { provider: provider.clone(), inner: None }),
            Verify::Authority | Verify::Full => {
                let store = Arc::new(trusted(roots)?);
                let inner = WebPkiServerVerifier::builder_with_provider(store, provider.clone())
                    .build()
                    .map_err(|error| {
                        PostgresError::usage(format!(
                            "the trusted certificates cannot be used: {error}"
                        ))
                    })?;
                if verify == Verify::Full {
                    inner
                } else {
                    Arc::new(Lenient { provider: provider.clone(), inner: Some(inner) })
                }
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| PostgresError::usage(format!("TLS cannot be used: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match (certificate, key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)
                .map_err(|error| {
                    PostgresError::usage(format!(
                        "the client certificate {certificate} and its key cannot be used: {error}"
                    ))
                })?,
            (None, None) => builder.with_no_client_auth(),
            _ => {
                return Err(PostgresError::usage("sslcert and sslkey only work together")
                    .with_hint("give both in the connection string, or neither"));
            }
        };
        Ok(Self(Some(config)))
    }

    /// The configuration, for a client that encrypts by itself.
    pub(crate) fn into_config(self) -> Option<ClientConfig> {
        self.0
    }

    /// Connects; the two kinds of stream end in the same type.
    pub(crate) fn connect(
        self,
        config: &postgres::Config,
    ) -> std::result::Result<postgres::Client, postgres::Error> {
        fn with<T>(
            config: &postgres::Config,
            tls: T,
        ) -> std::result::Result<postgres::Client, postgres::Error>
        where
            T: MakeTlsConnect<Socket> + 'static + Send,
            T::TlsConnect: Send,
            T::Stream: Send,
            <T::TlsConnect as postgres::tls::TlsConnect<Socket>>::Future: Send,
        {
            config.connect(tls)
        }
        match self.0 {
            None => with(config, postgres::NoTls),
            Some(tls) => with(config, MakeRustlsConnect::new(tls)),
        }
    }
}

/// The certificates in the file, or the system's where none is named or it is called `system`.
fn trusted(roots: Option<&str>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let (certificates, from) = match roots {
        Some(path) if path != "system" => (read_certificates(path)?, path),
        _ => (rustls_native_certs::load_native_certs().certs, "the system's store"),
    };
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(PostgresError::usage(format!("no certificate to trust was found in {from}"))
            .with_hint(
                "name the file of the authority with sslrootcert in the connection string",
            ));
    }
    Ok(store)
}

fn read_certificates(path: &str) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| {
        PostgresError::usage(format!("could not read certificates from {path}: {error}"))
    })
}

fn read_key(path: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|_| PostgresError::usage(format!("{path} holds no private key in PEM form")))
}

/// Checks nothing, or all but the name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    inner: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // The chain is checked before the name is.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
