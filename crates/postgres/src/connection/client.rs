//! With what encryption servers are tried, and how an SQL session with one of them is set up.

use std::sync::Arc;
use std::time::Duration;

use postgres::config::{ChannelBinding, SslMode};
use rustls::ClientConfig;

use super::{Endpoint, Parameters};
use crate::tls::{Tls, Verify};
use crate::{PostgresError, Result};

/// One way to come to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    Plain,
    /// Encrypted where the server has it.
    Either,
    Encrypted,
}

impl Attempt {
    /// Whether a server that refuses a login so may take it with more or less encryption: `prefer` is
    /// satisfied with less, and `allow` with more. What it says of other things it says either way; a
    /// pooler in front of it has 08P01 for a client without encryption.
    pub(crate) fn may_differ(self, code: &str) -> bool {
        self != Self::Encrypted && (code.starts_with("28") || code == "08P01")
    }
}

impl Parameters {
    /// The ways to a server that `sslmode` leaves open, in their order.
    pub(crate) fn attempts(&self, endpoint: &Endpoint) -> Result<&'static [Attempt]> {
        // A socket of this machine has nobody in between, and servers offer no TLS on it.
        if endpoint.host.starts_with('/') {
            return Ok(&[Attempt::Plain]);
        }
        Ok(match self.get("sslmode").unwrap_or("prefer") {
            "disable" => &[Attempt::Plain],
            "allow" => &[Attempt::Plain, Attempt::Encrypted],
            "prefer" => &[Attempt::Either, Attempt::Plain],
            "require" | "verify-ca" | "verify-full" => &[Attempt::Encrypted],
            other => {
                return Err(PostgresError::usage(format!("sslmode={other} is not known"))
                    .with_hint("say disable, prefer, require, verify-ca or verify-full"));
            }
        })
    }

    /// How the server is checked where the connection is encrypted.
    fn tls(&self) -> Result<Tls> {
        let roots = self.get("sslrootcert");
        let verify = match self.get("sslmode") {
            Some("verify-full") => Verify::Full,
            Some("verify-ca") => Verify::Authority,
            // As libpq has it: with a certificate to trust at hand, it is heeded.
            Some("require") if roots.is_some() => Verify::Authority,
            _ => Verify::Nothing,
        };
        Tls::new(verify, roots, self.get("sslcert"), self.get("sslkey"))
    }

    /// The same for a client that encrypts by itself.
    pub(crate) fn encryption(&self) -> Result<Option<Arc<ClientConfig>>> {
        Ok(self.tls()?.into_config().map(Arc::new))
    }

    /// One way to one server, as a client's configuration and the TLS to use.
    pub(crate) fn client(
        &self,
        endpoint: &Endpoint,
        attempt: Attempt,
    ) -> Result<(postgres::Config, Tls)> {
        let mut config = postgres::Config::new();
        if let Some(address) = endpoint.address {
            config.hostaddr(address);
        }
        // TLS has the name checked, or the address where there is no name.
        let address = || endpoint.address.map(|address| address.to_string()).unwrap_or_default();
        match endpoint.host.as_str() {
            "" => config.host(&address()),
            name => config.host(name),
        };
        config.port(endpoint.port);
        config.user(self.user());
        config.dbname(self.database());
        config.application_name(self.application_name());
        if let Some(options) = self.get("options") {
            config.options(options);
        }
        if let Some(time) = self.connect_timeout()? {
            config.connect_timeout(time);
        }
        config.keepalives(self.get("keepalives") != Some("0"));
        if let Some(seconds) = self.get("keepalives_idle") {
            config.keepalives_idle(Duration::from_secs(self.number("keepalives_idle", seconds)?));
        }
        if let Some(millis) = self.get("tcp_user_timeout") {
            config
                .tcp_user_timeout(Duration::from_millis(self.number("tcp_user_timeout", millis)?));
        }
        config.channel_binding(match self.channel_binding()? {
            "disable" => ChannelBinding::Disable,
            "require" => ChannelBinding::Require,
            _ => ChannelBinding::Prefer,
        });
        if let Some(password) = self.password(endpoint, self.database())? {
            config.password(password);
        }
        config.ssl_mode(match attempt {
            Attempt::Plain => SslMode::Disable,
            Attempt::Either => SslMode::Prefer,
            Attempt::Encrypted => SslMode::Require,
        });
        let tls = if attempt == Attempt::Plain { Tls::none() } else { self.tls()? };
        Ok((config, tls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_leaves_its_ways_open() {
        use Attempt::{Either, Encrypted, Plain};
        let ways = |text: &str| {
            let it = Parameters::with_environment(text, |_| None).unwrap();
            it.attempts(&it.endpoints().unwrap()[0]).map(<[Attempt]>::to_vec)
        };
        for (mode, open) in [
            ("disable", vec![Plain]),
            ("allow", vec![Plain, Encrypted]),
            ("prefer", vec![Either, Plain]),
            ("require", vec![Encrypted]),
            ("verify-full", vec![Encrypted]),
        ] {
            assert_eq!(ways(&format!("host=db sslmode={mode}")).unwrap(), open, "{mode}");
            assert_eq!(ways(&format!("host=/run/pg sslmode={mode}")).unwrap(), [Plain], "{mode}");
        }
        assert_eq!(ways("host=db").unwrap(), [Either, Plain]);
        assert!(ways("host=db sslmode=maybe").is_err());
    }

    #[test]
    fn only_who_was_refused_comes_again_the_other_way() {
        for code in ["28000", "28P01", "08P01"] {
            assert!(Attempt::Plain.may_differ(code) && Attempt::Either.may_differ(code));
            assert!(!Attempt::Encrypted.may_differ(code));
        }
        for code in ["53300", "57P03", "3D000", ""] {
            assert!(!Attempt::Plain.may_differ(code), "{code}");
        }
    }
}
