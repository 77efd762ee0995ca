//! TLS as libpq's `sslmode` has it.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, InconsistentKeys,
    RootCertStore, SignatureScheme, WantsVerifier,
};

use super::dsn::{SslFiles, SslMode};
use crate::broker::tls::AnyCertificate;

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))
}

/// For a connection that is not encrypted.
pub fn none() -> Result<ClientConfig, String> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// For one that is, in this mode.
pub fn config(mode: SslMode, files: &SslFiles) -> Result<ClientConfig, String> {
    let verifier: Arc<dyn ServerCertVerifier> = match (mode, &files.root) {
        (SslMode::Disable | SslMode::Allow | SslMode::Prefer, _) | (SslMode::Require, None) => {
            Arc::new(AnyCertificate::new())
        }
        (SslMode::VerifyCa, None) => {
            return Err("sslmode=verify-ca needs sslrootcert, the authorities' certificates".into());
        }
        (mode, Some(root)) if root.as_os_str() == "system" && mode != SslMode::VerifyFull => {
            return Err(
                "sslrootcert=system goes with sslmode=verify-full alone: anybody can have a \
                        certificate of these authorities"
                    .into(),
            );
        }
        (SslMode::VerifyFull, None) => {
            Arc::new(Verifier::new(crate::broker::tls::system()?, true)?)
        }
        (mode, Some(root)) => {
            let roots = if root.as_os_str() == "system" {
                crate::broker::tls::system()?
            } else {
                certificates("sslrootcert", root)?
            };
            Arc::new(Verifier::new(roots, mode == SslMode::VerifyFull)?)
        }
    };
    let config = builder()?.dangerous().with_custom_certificate_verifier(verifier);
    match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("sslcert", cert)?;
            kept_to_oneself(key)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable("sslkey", key, &error))?;
            let key = ring::default_provider().key_provider.load_private_key(key);
            let key = key.map_err(|error| format!("sslkey: {error}"))?;
            let certified = CertifiedKey::new(chain, key);
            // The server is to judge a certificate that cannot be read here, as old ones of OpenSSL's.
            if let Err(error @ rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) =
                certified.keys_match()
            {
                return Err(format!("sslcert and sslkey do not go together: {error}"));
            }
            Ok(config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))))
        }
        (Some(_), None) => Err("sslcert needs sslkey".into()),
        (None, _) => Ok(config.with_no_client_auth()),
    }
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(name, path, &error))?;
    if certificates.is_empty() {
        return Err(format!("{name}: {} holds no certificate", path.display()));
    }
    Ok(certificates)
}

/// libpq takes no key that others may read, either: 0600 or less, or 0640 if it is root's.
#[cfg(unix)]
fn kept_to_oneself(key: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(key).map_err(|error| unreadable("sslkey", key, &error))?;
    let mode = metadata.mode() & 0o777;
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && mode & others != 0 {
        return Err(format!(
            "sslkey: {} is not read, because its permissions are {mode:04o}; they must be 0600 or less, \
             or 0640 or less if it is root's",
            key.display()
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn kept_to_oneself(_key: &Path) -> Result<(), String> {
    Ok(())
}

fn unreadable(name: &str, path: &Path, error: &dyn Display) -> String {
    format!("{name}: cannot read {}: {error}", path.display())
}

/// Wants a certificate of one of some authorities, and in one mode with the server's name.
#[derive(Debug)]
struct Verifier {
    web: Arc<WebPkiServerVerifier>,
    roots: Vec<CertificateDer<'static>>,
    names: bool,
}

impl Verifier {
    fn new(roots: Vec<CertificateDer<'static>>, names: bool) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let provider = Arc::new(ring::default_provider());
        let web = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider);
        let web = web.build().map_err(|error| format!("sslrootcert: {error}"))?;
        Ok(Self { web, roots, names })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // A server that signs its own certificate is trusted by naming that one. It says of itself that
        // it is an authority, which the other way of verifying does not let pass for a server.
        if self.roots.contains(server) {
            if self.names {
                verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match self.web.verify_server_cert(server, chain, name, ocsp, now) {
            // The name is verified last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.names => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.web.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.web.supported_verify_schemes()
    }
}
